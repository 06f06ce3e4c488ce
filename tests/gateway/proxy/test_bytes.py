"""More octets compared at both ends: bodies of every kind, actions, statuses; and how much is ever held of them."""

import asyncio
import gzip
import resource
import zlib
from pathlib import Path

import pytest

from tests.conftest import closed, envelope, gateway_over, post, raw_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
XML = '<?xml version="1.0" encoding="%s"?>' + envelope().decode()
ROOT = b"Content-Type: text/xml\r\nContent-ID: <root>\r\n\r\n" + envelope()
OTHER = b"Content-ID: <a>\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\xff--not it\r\n--b-\r\n"
BODIES = {
    "plain": ("text/xml; charset=utf-8", "", envelope(), "bcss"),
    "gzip": ("text/xml", "gzip", gzip.compress(envelope(), mtime=0), "bcss"),
    "deflate": ("text/xml", "deflate", zlib.compress(envelope()), "bcss"),
    "raw deflate": ("text/xml", "deflate", zlib.compress(envelope(), wbits=-15), "bcss"),
    "UTF-16 with BOM": ("text/xml", "", (XML % "UTF-16").encode("utf-16"), "bcss"),
    "UTF-16LE by charset": (
        'application/soap+xml;charset="UTF-16LE"',
        "",
        XML.partition("?>")[2].encode("utf-16-le"),
        "bcss",
    ),
    "UTF-8 with BOM": ("text/xml", "", b"\xef\xbb\xbf" + envelope(), "bcss"),
    "SwA": (
        'multipart/related; type="text/xml"; start="<root>"; boundary="b"',
        "",
        b"--b\r\n%s\r\n--b\r\n%s\r\n--b--\r\n" % (OTHER, ROOT),
        "bcss",
    ),
    "MTOM, odd boundary": (
        'Multipart/Related; boundary="=_(a)+,\'/:? b"; type="application/xop+xml"',
        "",
        b"\r\n--=_(a)+,'/:? b  \r\n%s\r\n--=_(a)+,'/:? b--" % ROOT,
        "bcss",
    ),
    "multipart with two roots": (
        'multipart/related; start="<root>"; boundary=b',
        "",
        b"--b\r\n%s\r\n--b\r\n%s\r\n--b--\r\n" % (ROOT, ROOT),
        "unclassified",
    ),
    "multipart, boundary twice": (
        "multipart/related; boundary=b; boundary=c",
        "",
        b"--b\r\n%s\r\n--b--\r\n" % ROOT,
        "unclassified",
    ),
    "multipart, base64 root": (
        "multipart/related; boundary=b",
        "",
        b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\nPGEvPg==\r\n--b--\r\n",
        "unclassified",
    ),
    "multipart without its end": ("multipart/related; boundary=b", "", b"--b\r\n%s\r\n--b\r\n" % ROOT, "unclassified"),
    "multipart/mixed": ("multipart/mixed; boundary=b", "", b"--b\r\n%s\r\n--b--\r\n" % ROOT, "unclassified"),
    "not XML": ("application/octet-stream", "", bytes(range(256)), "unclassified"),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_a_body_passes_and_is_understood_from_a_copy(tmp_path: Path, tag: str, framing: str, kind: str) -> None:
    content_type, coding, body, source = BODIES[kind]
    fields = [f"Content-Type: {content_type}"] + ([f"Content-Encoding: {coding}"] if coding else [])
    head = "\r\n".join([f"POST {tag}/x HTTP/1.1", "Host: x", *fields])
    if framing == "length":
        request = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    else:
        half = len(body) // 2
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]))
        request = f"{head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        assert (await run.ask(request)).startswith(b"HTTP/1.1 200 OK")
    [sent] = server.requests
    sent_head, _, sent_body = sent.partition(b"\r\n\r\n")
    if framing == "chunked":
        size, _, rest = sent_body.partition(b"\r\n")
        pieces = b""
        while int(size, 16):
            pieces += rest[: int(size, 16)]
            size, _, rest = rest[int(size, 16) + 2 :].partition(b"\r\n")
        sent_body = pieces
    assert sent_body == body
    for field in fields:
        assert field.encode() in sent_head
    assert f'"source":"{source}"' in run.log.read_text()


@pytest.mark.parametrize("tag", ["", "/bulk"])
@pytest.mark.parametrize("action", ['SOAPAction: "urn:a"', "SOAPAction: urn:a", 'soapaction: ""', "SOAPACTION:", None])
async def test_an_action_passes_as_it_was_written(tmp_path: Path, tag: str, action: str | None) -> None:
    body = envelope()
    fields = [
        f"POST {tag}/x HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body)}",
        "content-type: Text/XML;Charset=UTF8",
    ]
    request = "\r\n".join([*fields, *([action] if action else [])]).encode() + b"\r\n\r\n" + body
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(request)
    head = server.requests[0].partition(b"\r\n\r\n")[0]
    assert head.split(b"\r\n")[3] == b"content-type: Text/XML;Charset=UTF8"
    assert [line.rstrip() for line in head.split(b"\r\n")[4:]] == ([action.encode()] if action else [])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 50\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=a\r\nWWW-Authenticate: Negotiate\r\n"
        b"Content-Length: 1\r\n\r\nx",
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 299 Own words, \xe9\r\nset-cookie: a=1\r\nX: y\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_a_status_passes_with_all_that_belongs_to_it(tmp_path: Path, answer: bytes) -> None:
    extra = "answers: {decision_header: false}\n"
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(post("/x", envelope()))
        assert await asyncio.wait_for(reader.readexactly(len(answer)), 5) == answer
        writer.write(post("/x", envelope()))  # nothing came behind it, and the connection goes on
        assert await asyncio.wait_for(reader.readexactly(len(answer)), 5) == answer
        await closed(writer)
    assert len(server.requests) == 2


async def test_interim_answers_stay_between_the_gateway_and_the_upstream(tmp_path: Path) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with raw_server(interim + OK) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(post("/x", envelope()))
    assert got.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")


@pytest.mark.parametrize("reads_slowly", ["client", "upstream"])
async def test_100_mb_pass_and_who_reads_slowly_does_not_make_the_gateway_hold_them(
    tmp_path: Path, reads_slowly: str
) -> None:
    """Counted at the sender: how much it could get rid of while nobody read at the other end."""
    size, piece = 100 << 20, b"x" * (1 << 20)
    sent = 0
    stalled = asyncio.Event()

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                stalled.set()
                await writer.drain()

    async def swallow(reader: asyncio.StreamReader, number: int) -> int:
        received = 0
        await asyncio.wait_for(stalled.wait(), 20)
        assert sent < 24 << 20, "more was taken than sockets and the gateway's bounds hold"
        while received < number and (data := await reader.read(1 << 20)):
            received += len(data)
        return received

    received = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        if reads_slowly == "upstream":
            received = await swallow(reader, size)
            writer.write(OK)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(writer)
        writer.close()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with gateway_over(tmp_path, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        if reads_slowly == "upstream":
            writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(writer)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        else:
            writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            received = await swallow(reader, size)
        await closed(writer)
    server.close()
    assert received == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB, both ends of the test included
