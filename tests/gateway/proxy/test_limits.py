"""What the gateway answers itself: bounds on clients, upstream trouble, telemetry; and what it keeps out of its log."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.conftest import closed, envelope, gateway_over, post, raw_server, whole_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_a_header_that_takes_too_long_is_answered_and_closed(tmp_path: Path) -> None:
    extra = "limits: {header_time: 50ms}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        got = await run.ask(b"GET /x HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in got


async def test_a_header_that_is_too_large_is_answered_and_closed(tmp_path: Path) -> None:
    extra = "limits: {head_size: 4KiB}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        fields = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(6))
        got = await run.ask(b"GET /x HTTP/1.1\r\nHost: x\r\n" + fields)
    assert got.startswith(b"HTTP/1.1 431 ")


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    extra = "limits: {idle_time: 50ms}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await closed(writer)


@pytest.mark.parametrize("path", ["/x", "/bulk/x"])
async def test_a_body_that_comes_too_slowly_is_answered(tmp_path: Path, path: str) -> None:
    extra = "limits: {body_grace: 50ms}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        got = await run.ask(post(path, b"x" * 100)[:-50])
    assert got.startswith(b"HTTP/1.1 408 ")


async def test_more_connections_than_allowed_are_told_so(tmp_path: Path) -> None:
    extra = "limits: {connections: 1}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        _, first = await asyncio.open_connection("127.0.0.1", run.port)
        reader, second = await asyncio.open_connection("127.0.0.1", run.port)
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 503 ")
        await closed(first)
        await closed(second)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /x HTTP/1.1\r\nHost x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /00000000097 HTTP/9.9\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n00000000097",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_without_quoting_it(tmp_path: Path, request_: bytes) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(request_)
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in got
    assert b"00000000097" not in got
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_methods_that_are_not_forwarded_are_answered(tmp_path: Path, method: str) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        target = "x:1" if method == "CONNECT" else "/x"
        got = await run.ask(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got.split(b" ")[1] in (b"404", b"405")
    assert server.requests == []


@pytest.mark.parametrize("tag", ["", "/bulk"])
async def test_upstream_trouble_is_a_fault_that_says_who_speaks(tmp_path: Path, tag: str) -> None:
    async with raw_server(b"SSH-2.0-x\r\n\r\n") as server, gateway_over(tmp_path, server.url) as run:
        broken = await run.ask(post(f"{tag}/x", envelope()))
        plain = await run.ask(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert broken.startswith(b"HTTP/1.1 500 ")
    assert b"<origin>gateway</origin><reason>upstream_broken</reason>" in broken
    assert b"not an answer of the BCSS" in broken
    assert plain.startswith(b"HTTP/1.1 502 ")


async def test_an_upstream_that_cannot_be_reached_is_a_fault_and_nothing_was_sent(tmp_path: Path) -> None:
    async with gateway_over(tmp_path, "http://127.0.0.1:9") as run:
        got = await run.ask(post("/bulk/x", envelope()))
    assert b"<reason>upstream_unreachable</reason>" in got
    assert b"Nothing was sent" in got


async def test_an_upstream_that_does_not_answer_in_time_is_a_fault(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def silent(_writer: asyncio.StreamWriter, _request: bytes) -> None:
        await never.wait()

    async with raw_server(silent) as server:
        async with gateway_over(tmp_path, server.url, upstream="first_byte_timeout: 50ms") as run:
            got = await run.ask(post("/x", envelope()))
            plain = await run.ask(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        never.set()
    assert b"<reason>upstream_timeout</reason>" in got
    assert plain.startswith(b"HTTP/1.1 504 ")


async def test_an_upstreams_own_fault_passes_untouched_and_is_counted(tmp_path: Path) -> None:
    fault = b"HTTP/1.1 500 Oops\r\nContent-Type: text/xml\r\nContent-Length: 7\r\n\r\n<fault>"
    async with raw_server(fault) as server, gateway_over(tmp_path, server.url) as run:
        got = await run.ask(post("/x", envelope()))
        text = await scraped(run.telemetry, "/metrics")
    assert got.startswith(b"HTTP/1.1 500 Oops\r\nContent-Type: text/xml\r\n")
    assert got.endswith(b"<fault>")
    assert b'bcss_gateway_soap_faults_total{origin="upstream",source="bcss"} 1.0' in text


async def test_an_early_answer_reaches_the_client_before_its_body_is_sent(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with gateway_over(tmp_path, url) as run:
        got = await run.ask(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nbegin")
    server.close()
    assert got.startswith(b"HTTP/1.1 413 Too large\r\n")
    assert b"Connection: close" in got


async def scraped(port: int, path: str, method: str = "GET") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    got = await whole_answer(reader)
    await closed(writer)
    return got


async def test_telemetry_says_that_it_lives_and_what_it_counts(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        assert (await scraped(run.telemetry, "/healthz")).endswith(b"alive\n")
        ready = await scraped(run.telemetry, "/readyz")
        assert json.loads(ready.partition(b"\r\n\r\n")[2]) == {"ready": True, "window_open": True, "in_flight": 0}
        text = await scraped(run.telemetry, "/metrics")
        assert (await scraped(run.telemetry, "/other")).startswith(b"HTTP/1.1 404 ")
        assert (await scraped(run.telemetry, "/metrics", "POST")).startswith(b"HTTP/1.1 405 ")
    for name in (
        b"window_open 1.0",
        b"window_next_change_timestamp_seconds",
        b'slots_limit{pool="base"} 4.0',
        b"build_info",
    ):
        assert b"bcss_gateway_" + name in text


async def test_no_personal_data_gets_into_the_log(tmp_path: Path) -> None:
    """A national number in path, query, body, identifiers and credentials; none of it, nor the body, is logged or
    measured."""
    person = "00000000097"
    fields = (
        f"X-Request-Id: {person}",
        f"Authorization: Basic {person}",
        f"User-Agent: {person}",
        f"X-Other: {person}",
    )
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        for tag in ("", "/bulk"):
            await run.ask(post(f"{tag}/x/{person}?ssin={person}", envelope(), *fields))
        await run.ask(post(f"/bulk/{person}", f"<{person}>".encode(), *fields))
        await run.ask(f"GET /{person} HTTP/1.1\r\nHost: {person}\r\nX:{person}\x00\r\n\r\n".encode())
        text = await scraped(run.telemetry, "/metrics")
    log = run.log.read_text()
    assert log.count('"event":"call"') == 3
    assert person not in log
    assert "hello" not in log
    assert person.encode() not in text


async def test_a_request_keeps_the_callers_identifier_where_it_is_safe(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(post("/x", envelope(), "X-Request-Id: job-7/3"))
        await run.ask(post("/x", envelope(), f"traceparent: 00-{trace}-b7ad6b7169203331-01"))
    log = run.log.read_text()
    assert '"request_id":"job-7/3"' in log
    assert f'"request_id":"{trace}"' in log


async def test_one_connection_serves_many_calls_and_pipelined_ones_in_order(tmp_path: Path) -> None:
    async def echo(writer: asyncio.StreamWriter, request: bytes) -> None:
        path = request.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    async with raw_server(echo) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50)))
        bodies = [(await whole_answer(reader)).rpartition(b"\r\n")[2] for _ in range(50)]
        await closed(writer)
    assert bodies == [b"/%d" % number for number in range(50)]
