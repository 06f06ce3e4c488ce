"""Messages signed by a real WS-Security stack (zeep with xmlsec) verify at the upstream: not an octet has changed."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import xmlsec
import zeep
from lxml import etree
from zeep.exceptions import SignatureVerificationFailed
from zeep.transports import Transport
from zeep.wsse.signature import BinarySignature, _verify_envelope_with_key
from zeep.wsse.utils import WSU

from gateway.simulator import standing_in
from tests.conftest import gateway_over


class Signing(BinarySignature):
    """Signs the Body and a Timestamp; the stand-in signs nothing, so answers are taken as they are."""

    def apply(self, envelope: etree._Element, headers: dict[str, str]) -> tuple[etree._Element, dict[str, str]]:
        security = zeep.wsse.utils.get_security_header(envelope)
        now = datetime.now(UTC)
        timestamp = WSU.Timestamp(
            WSU.Created(now.isoformat(timespec="seconds")),
            WSU.Expires((now + timedelta(minutes=5)).isoformat(timespec="seconds")),
        )
        security.append(timestamp)
        return super().apply(envelope, headers)

    def verify(self, envelope: etree._Element) -> etree._Element:
        return envelope


def called(base: str, tag: str, key: Path, certificate: Path) -> None:
    path = "RetrieveTIGroupsService/v2/retrieveTI"
    transport = Transport(timeout=10, operation_timeout=10)
    methods = {"signature_method": xmlsec.Transform.RSA_SHA256, "digest_method": xmlsec.Transform.SHA256}
    signing = Signing(str(key), str(certificate), **methods)
    client = zeep.Client(f"{base}/{path}?wsdl", transport=transport, wsse=signing)
    port = next(iter(client.wsdl.services.values())).ports["port"]
    service = client.create_service(port.binding.name.text, f"{base}{tag}/{path}")
    try:
        service.retrieveTI(legalContext="EXEMPLE été", ssin="00000000097")
    finally:
        transport.session.close()


def verify(message: bytes, certificate: Path) -> None:
    """Verify as a receiver does, from the octets that came. Raises SignatureVerificationFailed."""
    key = xmlsec.Key.from_file(str(certificate), xmlsec.KeyFormat.CERT_PEM)
    _verify_envelope_with_key(etree.fromstring(message), key)


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_a_signed_message_verifies_behind_the_gateway(tmp_path: Path, tag: str) -> None:
    issued = trustme.CA().issue_cert("client.example", key_type=trustme.KeyType.RSA)
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    async with standing_in(record=True) as stand_in, gateway_over(tmp_path, stand_in.url) as run:
        await asyncio.to_thread(called, run.gateway.addresses.traffic[0], tag, key, certificate)
        [received] = [one for one in stand_in.received if one.method == "POST"]
    assert b"SignatureValue" in received.body
    verify(received.body, certificate)
    assert '"source":"national-register"' in run.log.read_text()
    changed = received.body.replace(b"00000000097", b"00000000098")
    assert changed != received.body
    with pytest.raises(SignatureVerificationFailed):
        verify(changed, certificate)
