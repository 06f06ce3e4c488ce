"""A real SOAP toolkit through the gateway, unchanged but for its address: three styles, real-time and bulk, and a
refusal."""

import asyncio
from pathlib import Path

import pytest
import zeep
from lxml import etree
from zeep.transports import Transport

from gateway.simulator import standing_in
from tests.conftest import JumpingClock, gateway_over

SSDN = (
    "<?xml version='1.0' encoding='UTF-8' standalone='yes'?><SSDNRequest xmlns='http://www.ksz-bcss.fgov.be/XSD/SSDN/Service'>"
    "<RequestContext/>{requests}</SSDNRequest>"
)
IDENTIFY = (
    "<ServiceRequest><ServiceId>OCMWCPASIdentifyPerson</ServiceId><Version>20050930</Version><x/></ServiceRequest>"
)
LITE = (
    "<ServiceRequest><ServiceId>XMLite</ServiceId><Version>20051206</Version>"
    "<m:Message xmlns:m='http://www.ksz-bcss.fgov.be/XSD/Message'><m:Header/><m:Data><m:XML>"
    "<L950 xmlns='http://www.ksz-bcss.fgov.be/XmlSchema'/></m:XML></m:Data></m:Message></ServiceRequest>"
)
STYLES = {
    "new style": ("RetrieveTIGroupsService/v2/retrieveTI", "national-register"),
    "classic": ("connectors/webservice/KSZBCSSWebServiceConnectorPort", "bcss"),
    "classic XMLite": ("connectors/webservice/KSZBCSSWebServiceConnectorPort", "onss"),
}


def called(base: str, tag: str, style: str) -> str:
    """Call with zeep, blocking: the WSDL comes through the gateway, the address is the gateway's."""
    path = STYLES[style][0]
    transport = Transport(timeout=10, operation_timeout=10)
    client = zeep.Client(f"{base}/{path}?wsdl", transport=transport)
    port = next(iter(client.wsdl.services.values())).ports["port"]
    service = client.create_service(port.binding.name.text, f"{base}{tag}/{path}")
    with client.settings(extra_http_headers={"X-Test-Class": "bulk" if tag else "realtime"}):
        try:
            if style == "new style":
                answer = service.retrieveTI(legalContext="EXAMPLE", ssin="00000000097")
                return str([etree.QName(one).localname for one in answer])
            return str(service.sendXML(SSDN.format(requests=IDENTIFY if style == "classic" else LITE)))
        finally:
            transport.session.close()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_zeep_calls_through_the_gateway(tmp_path: Path, tag: str, style: str) -> None:
    async with standing_in() as stand_in, gateway_over(tmp_path, stand_in.url) as run:
        answer = await asyncio.to_thread(called, run.gateway.addresses.traffic[0], tag, style)
        source = STYLES[style][1]
        assert stand_in.counts.highest(source, "bulk" if tag else "realtime") == 1
    assert ("status" if style == "new style" else "<ReplyContext>") in answer


async def test_zeep_reads_a_refusal_as_the_fault_it_is(tmp_path: Path, morning: JumpingClock) -> None:
    async with standing_in() as stand_in, gateway_over(tmp_path, stand_in.url, clock=morning) as run:
        with pytest.raises(zeep.exceptions.Fault) as raised:
            await asyncio.to_thread(called, run.gateway.addresses.traffic[0], "/bulk", "new style")
        assert stand_in.counts.calls.total() == 0
    assert "mass calls are not let through in office hours" in raised.value.message
    detail = raised.value.detail
    assert detail.findtext(".//{urn:bcss-gateway:fault:1}reason") == "office_hours"
