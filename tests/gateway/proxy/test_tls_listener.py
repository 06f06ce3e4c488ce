"""A listener with TLS knows its clients by their certificates, which may make their calls bulk."""

import asyncio
import ssl
from pathlib import Path

import trustme

from tests.conftest import closed, envelope, gateway_over, post, raw_server, whole_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_a_client_certificate_is_verified_and_makes_its_calls_bulk(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.issue_cert("x.example", common_name="payroll").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "client.pem"
    )
    extra = (
        "listeners:\n- {address: 127.0.0.1, port: 0}\n- address: 127.0.0.1\n  port: 0\n  tls:\n"
        "    {certificate: server.pem, client_ca: ca.pem, client_certificate: required}\n"
        "clients: [{name: payroll, tls_subjects: ['%s'], class: bulk}]\n"
    )
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.load_cert_chain(tmp_path / "client.pem")
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra % "CN=payroll,O=other") as run:
        address = run.gateway.addresses.traffic[1]
        assert address.startswith("https://")
        port = int(address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(post("/x", envelope(), "X-Traffic-Class: bulk"))
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        await closed(writer)
        text = run.log.read_text()
        for _ in range(50):
            if '"event":"call"' in text:
                break
            await asyncio.sleep(0.02)
            text = run.log.read_text()
        subject = text.partition('"flow":"')[2].partition('"')[0]
        run.gateway.metrics.take()
        assert b'tls_not_after_timestamp_seconds{certificate="listeners.1"}' in run.gateway.metrics.exposition()
    assert "CN=payroll" in subject
    (tmp_path / "again").mkdir()
    for name in ("ca.pem", "server.pem"):
        (tmp_path / "again" / name).write_bytes((tmp_path / name).read_bytes())
    async with raw_server(OK) as server, gateway_over(tmp_path / "again", server.url, extra=extra % subject) as run:
        port = int(run.gateway.addresses.traffic[1].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(post("/x", envelope()))
        assert b"class=bulk" in await whole_answer(reader)
        await closed(writer)
    assert '"rule":"client rule payroll"' in run.log.read_text()


async def test_a_national_number_in_a_personal_certificate_is_not_logged(tmp_path: Path) -> None:
    """An eID's subject holds it; such a client may call in bulk, and be suspected."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    own = authority.issue_cert("x.example", common_name="Fictive Person 00000000097")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    extra = (
        "listeners: [{address: 127.0.0.1, port: 0, tls: {certificate: server.pem, client_ca: ca.pem, "
        "client_certificate: required}}]\n"
    )
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.load_cert_chain(tmp_path / "client.pem")
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, ssl=context)
        writer.write(post("/bulk/x", envelope()))
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        for _ in range(55):
            writer.write(post("/x", envelope()))
            await whole_answer(reader)
            run.clock.skip(seconds=1.2)
        await closed(writer)
    log = run.log.read_text()
    assert '"event":"suspected bulk"' in log
    assert "CN=Fictive Person (withheld)" in log
    assert "00000000097" not in log
