"""Bytes are not touched: octets are compared at both ends, for each class."""

import asyncio
import gzip
from pathlib import Path

import pytest

from tests.conftest import closed, envelope, gateway_over, post, raw_server, whole_answer

ANSWER = (
    b"HTTP/1.1 200 Fine\r\nX-b: 1\r\ncontent-TYPE: text/xml\r\nX-a: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
    b"Content-Length: 4\r\n\r\n<ok>"
)


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_a_request_reaches_the_upstream_octet_for_octet(tmp_path: Path, tag: str) -> None:
    """Order, case and repetition of fields, and the target as yarl would rewrite it; Host is the upstream's, tags
    are gone."""
    body = envelope()
    target = "/SOA%c3%a9/%7Euser//a/./b;x=1?q=%2F&&"
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        request = post(
            f"{tag}{target}",
            body,
            "x-Mixed-CASE: One",
            "X-Twice: 1",
            "X-Twice: 2",
            "X-Empty:",
            "Authorization: Basic eDp5",
        )
        await run.ask(request)
        authority = server.url.removeprefix("http://")
    expected = post(
        target, body, "x-Mixed-CASE: One", "X-Twice: 1", "X-Twice: 2", "X-Empty: ", "Authorization: Basic eDp5"
    )
    assert server.requests == [expected.replace(b"gateway.example", authority.encode())]


@pytest.mark.parametrize("target", ["/a?", "/a?b#c", "//a", "/a/../b", "/%7e", "/"])
async def test_odd_targets_pass_as_they_are(tmp_path: Path, target: str) -> None:
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert server.requests[0].split(b" ")[1] == target.encode()


async def test_an_answer_reaches_the_client_octet_for_octet(tmp_path: Path) -> None:
    """Nothing is added but the decision: no Date, no Server, no Content-Type."""
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(post("/x", envelope()))
    head, _, tail = ANSWER.partition(b"\r\n\r\n")
    assert got == head + b"\r\nX-Gateway-Decision: forwarded; class=realtime; mode=enforce\r\n\r\n" + tail


async def test_the_decision_can_be_switched_off(tmp_path: Path) -> None:
    extra = "answers: {decision_header: false}\n"
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        assert await run.ask(post("/x", envelope())) == ANSWER


async def test_hop_by_hop_fields_and_tags_go_neither_way(tmp_path: Path) -> None:
    own = b"Connection: X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n"
    answer = b"HTTP/1.1 200 OK\r\n" + own + b"Content-Length: 0\r\n\r\n"
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(
            post(
                "/x",
                b"",
                "Connection: keep-alive, X-Hop, Content-Length",
                "X-Hop: 1",
                "TE: trailers",
                "Keep-Alive: 3",
                "X-Traffic-Class: bulk",
                "Expect: 100-continue",
            )
        )
    sent = server.requests[0].lower()
    for name in (b"connection", b"x-hop", b"te:", b"keep-alive", b"x-traffic-class", b"expect"):
        assert name not in sent
    assert b"content-length: 0" in sent
    for name in (b"x-own", b"keep-alive", b"proxy-connection", b"connection:"):
        assert name not in got.lower()


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_a_compressed_body_stays_compressed_and_is_still_understood(tmp_path: Path, tag: str) -> None:
    body = gzip.compress(envelope())
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(post(f"{tag}/x", body, "Content-Encoding: gzip"))
        assert server.requests[0].endswith(body)
    assert '"source":"bcss"' in run.log.read_text()


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_a_chunked_body_arrives_chunked_and_whole(tmp_path: Path, tag: str) -> None:
    """Chunk boundaries and trailers are dropped, as is said; the octets are not."""
    body = envelope()
    head = f"POST {tag}/x HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(head + chunks + b"0\r\nX-Trailer: 1\r\n\r\n")
    request = server.requests[0]
    assert request.lower().count(b"transfer-encoding: chunked") == 1
    assert dechunked(request.partition(b"\r\n\r\n")[2]) == body
    assert b"X-Trailer" not in request


def dechunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        body += rest[: int(size, 16)]
        data = rest[int(size, 16) + 2 :]
    return body


async def test_a_large_body_streams_through_while_it_is_sent(tmp_path: Path) -> None:
    """20 MB up in pieces; the upstream has the beginning before the client has sent the end."""
    begun = asyncio.Event()
    piece = b"x" * 65536

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received = len(await reader.readexactly(len(piece)))
        begun.set()
        while received < 320 * len(piece):
            received += len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20971520\r\n\r\n")
        for _ in range(320):
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with gateway_over(tmp_path, url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 20971520\r\n\r\n" + piece)
        await asyncio.wait_for(begun.wait(), 5)
        for _ in range(319):
            writer.write(piece)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert len(await reader.readexactly(20971520)) == 20971520
        await closed(writer)
    server.close()


async def test_an_http_10_client_gets_an_unchunked_answer_and_a_close(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<ok>\r\n0\r\n\r\n"
    async with raw_server(chunked) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(b"POST /x HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in head.lower()
    assert b"Connection: close" in head
    assert body == b"<ok>"
    assert server.requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1")


async def test_a_chunked_answer_stays_chunked(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n<o\r\n2\r\nk>\r\n0\r\n\r\n"
    async with raw_server(chunked) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(post("/x", envelope()))
    assert b"Transfer-Encoding: chunked\r\n" in got
    assert dechunked(got.partition(b"\r\n\r\n")[2]) == b"<ok>"


async def test_expect_100_continue_is_answered_at_once(tmp_path: Path) -> None:
    body = envelope()
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        head, _, _ = post("/x", body, "Expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 Fine")
        await closed(writer)
    assert server.requests[0].endswith(body)


async def test_an_offer_to_upgrade_is_ignored(tmp_path: Path) -> None:
    """java.net.http offers h2c on every first call."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        assert (await run.ask(post("/x", envelope(), *offer))).startswith(b"HTTP/1.1 200 Fine")
        assert (await run.ask(post("/y", envelope(), "Connection: Upgrade", "Upgrade: websocket"))).startswith(
            b"HTTP/1.1 200 Fine"
        )
    assert b"pgrade" not in server.requests[0] + server.requests[1]


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    ],
)
async def test_an_answer_that_breaks_off_breaks_off_for_the_client(tmp_path: Path, cut: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(cut)
        await writer.drain()
        await asyncio.sleep(0.02)  # the beginning goes through before the end does not come
        writer.close()

    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(post("/x", envelope()))
        got = await reader.readuntil(b"12345")
        with pytest.raises(ConnectionResetError):  # an orderly end would return what is left
            await asyncio.wait_for(reader.read(), 5)
        await closed(writer)
    assert not got.endswith(b"0\r\n\r\n")
    assert '"outcome":"cut"' in run.log.read_text()


async def test_a_head_request_has_no_body_and_keeps_its_length(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 5)
        await closed(writer)
    assert b"Content-Length: 99\r\n" in got
    assert got.endswith(b"\r\n\r\n")


async def test_an_absolute_target_never_chooses_the_destination(tmp_path: Path) -> None:
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(b"GET http://elsewhere.example:99/a?b HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    assert server.requests[0].startswith(b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_a_route_may_replace_its_prefix(tmp_path: Path) -> None:
    extra = "routes: [{prefix: /b2b/, upstream: bcss, replace: /SOA4520/}]\n"
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        await run.ask(b"GET /b2b/x%20y?z HTTP/1.1\r\nHost: x\r\n\r\n")
        missing = await run.ask(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.requests[0].startswith(b"GET /SOA4520/x%20y?z HTTP/1.1")
    assert missing.startswith(b"HTTP/1.1 404 ")


async def test_many_bodies_larger_than_a_header_may_be_pass_on_one_connection(tmp_path: Path) -> None:
    """A body that comes before its handler has begun must not be counted as a header."""
    body = b"x" * 200_000
    async with raw_server(ANSWER) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        for _ in range(30):
            writer.write(post("/x", body))
            assert (await asyncio.wait_for(reader.readuntil(b"<ok>"), 5)).startswith(b"HTTP/1.1 200 Fine")
        await closed(writer)
    assert all(request.endswith(body) for request in server.requests)


async def test_calls_of_one_connection_share_no_more_than_their_header(tmp_path: Path) -> None:
    """What is made of a header is remembered on its connection: only the same octets, towards the same Host, are it."""
    async with raw_server(ANSWER) as server, raw_server(ANSWER) as other:
        port = other.url.rpartition(":")[2]
        extra = (
            f"upstreams: {{bcss: {{url: '{server.url}'}}, other: {{url: 'http://localhost:{port}'}}}}\n"
            "routes: [{prefix: /, upstream: bcss}, {prefix: /other, upstream: other}]\n"
        )
        async with gateway_over(tmp_path, server.url, extra=extra) as run:
            reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
            bodies = [envelope(), envelope("HealthCareInsuranceService/v1")[:-40], envelope()]
            same = [post("/x", body) for body in bodies]
            others = [
                post("/x", bodies[0], "X-Id: 1"),
                post("/x", bodies[0], "X-id: 1"),
                post("/x", bodies[0], "X-Id: 2"),
                post("/x", bodies[0], "X-Id: 2", "X-Id: 2"),
                post("/x", bodies[0], "X-Id: 2", "Connection: X-Id"),
            ]
            elsewhere = post("/other", bodies[0], "X-Id: 2", "X-Id: 2")
            for request in (*same, *others, elsewhere, same[0]):
                writer.write(request)
                assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200 Fine")
            writer.close()
        authority = server.url.removeprefix("http://").encode()
        named_away = b"\r\nX-Id: 2\r\nConnection: X-Id"
        expected = [one.replace(b"gateway.example", authority).replace(named_away, b"") for one in (*same, *others)]
        assert server.requests == [*expected, expected[0]]
        assert other.requests == [elsewhere.replace(b"gateway.example", f"localhost:{port}".encode())]
