"""WSDLs on their way: rewritten where the route says so, never bulk, else octet for octet."""

import gzip
from pathlib import Path

import pytest

from tests.conftest import JumpingClock, gateway_over, raw_server

ROUTE = "routes: [{prefix: /soa/, upstream: bcss, replace: /SOA4520/, wsdl_address: 'https://gateway.example:8443'}]\n"
WSDL = (
    '<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:s="http://schemas.xmlsoap.org/wsdl/soap/">'
    '<import namespace="n" location="%s/SOA4520/a?wsdl=2"/><import namespace="o" location="http://far.example/x"/>'
    '<service name="S"><port name="p"><s:address location="http://inner.example/SOA4520/a"/></port></service>'
    "</definitions>"
)


def answer(body: bytes, *fields: str) -> bytes:
    head = ["HTTP/1.1 200 OK", "X-A: 1", "content-type: text/xml", f"content-LENGTH: {len(body)}", "X-B: 2", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_addresses_lead_to_the_gateway(tmp_path: Path, morning: JumpingClock, tag: str) -> None:
    """In office hours too, and by way of /bulk/: a WSDL is no call."""
    said: list[bytes] = []

    async def serve(writer: object, _request: bytes) -> None:
        writer.write(answer((WSDL % server.url).encode()))

    async with raw_server(serve) as server, gateway_over(tmp_path, server.url, extra=ROUTE, clock=morning) as run:
        request = f"GET {tag}/soa/a?wsdl HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nAccept: */*\r\n\r\n"
        said.append(await run.ask(request.encode()))
    head, _, body = said[0].partition(b"\r\n\r\n")
    assert body.decode() == (WSDL % server.url).replace(
        f"{server.url}/SOA4520/a?wsdl=2", "https://gateway.example:8443/soa/a?wsdl=2"
    ).replace("http://inner.example/SOA4520/a", "https://gateway.example:8443/soa/a")
    assert head.split(b"\r\n")[:5] == [
        b"HTTP/1.1 200 OK",
        b"X-A: 1",
        b"content-type: text/xml",
        b"content-LENGTH: %d" % len(body),
        b"X-B: 2",
    ]
    assert b"Accept-Encoding" not in server.requests[0]
    assert b"Accept: */*" in server.requests[0]
    assert '"class":"realtime","rule":"wsdl"' in run.log.read_text()


async def test_a_wsdl_without_length_gets_one(tmp_path: Path) -> None:
    body = (WSDL % "http://x.example").encode()
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    async with (
        raw_server(chunked % (len(body), body)) as server,
        gateway_over(tmp_path, server.url, extra=ROUTE) as run,
    ):
        got = await run.ask(b"GET /soa/a?xsd=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"gateway.example:8443/soa/a" in got
    assert b"chunked" not in got.lower()


@pytest.mark.parametrize(
    ("target", "body", "fields"),
    [
        ("/soa/a?wsdl", gzip.compress(b"<a/>", mtime=0), ("Content-Encoding: gzip",)),
        ("/soa/a?wsdl", b"<!DOCTYPE a><a/>", ()),
        ("/soa/a?wsdl", b"<a", ()),
        ("/soa/a?x=wsdl", WSDL.encode(), ()),
        ("/soa/a", WSDL.encode(), ()),
    ],
)
async def test_what_is_no_readable_wsdl_passes_as_it_is(
    tmp_path: Path, target: str, body: bytes, fields: tuple[str, ...]
) -> None:
    async with raw_server(answer(body, *fields)) as server, gateway_over(tmp_path, server.url, extra=ROUTE) as run:
        got = await run.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got.endswith(b"\r\n\r\n" + body)


async def test_without_the_routes_leave_a_wsdl_passes_octet_for_octet(tmp_path: Path) -> None:
    body = WSDL.encode()
    async with raw_server(answer(body)) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(b"GET /SOA4520/a?wsdl HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
    assert got.endswith(body)
    assert b"Accept-Encoding: gzip" in server.requests[0]
