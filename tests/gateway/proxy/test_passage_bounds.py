"""What a real-time call that passes as callbacks may take from others: memory, or their turn at the upstream."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from gateway.proxy.site import Plan
from tests.conftest import closed, gateway_over, raw_server, whole_answer
from tests.gateway.proxy.test_passage import GET, OK, at_rest, booked, on_both_loops


@on_both_loops
async def test_who_pipelines_and_does_not_read_fills_no_memory(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, limit=1024)
        writer.write(GET * 200)
        await asyncio.sleep(0.5)
        [connection] = [one for one in run.gateway._listeners[0].connections if one._transport is not None]
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 1_000_000
        assert run.gateway.proxy.in_flight == 0
        for _ in range(200):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(200_000)
        writer.write(GET)
        assert (await whole_answer(reader)).endswith(b"x")
        await closed(writer)
        await at_rest(run)
    assert booked(run) == [(200, "forwarded")] * 201


@on_both_loops
async def test_who_pipelines_does_not_keep_the_upstream_from_others(tmp_path: Path) -> None:
    """There is one connection to it: who waits for it gets it before the next call of who had it."""

    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await asyncio.sleep(0.005)
        writer.write(OK)

    terms = "connections: 1, connect_timeout: 500ms"
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url, upstream=terms) as run:
        await run.ask(GET)
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(GET * 200)
        assert (await whole_answer(reader)).endswith(b"ok")
        for _ in range(3):
            assert (await run.ask(GET.replace(b"/x", b"/other"))).endswith(b"ok")
        place = [request.split(b" ")[1] for request in server.requests].index(b"/other")
        assert place < 20
        for _ in range(199):
            assert (await whole_answer(reader)).endswith(b"ok")
        await closed(writer)
        await at_rest(run)


@pytest.mark.parametrize("how", ["closes", "resets", "surplus", "whole"])
@on_both_loops
async def test_a_slow_reader_gets_what_there_is_and_then_the_end_that_the_upstream_made(
    tmp_path: Path, how: str
) -> None:
    length = 9_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length

    async def answer(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/x" not in request:
            writer.write(OK)
            return
        writer.write(head + b"q" * (length - 10))
        await writer.drain()
        if how == "closes":
            writer.close()
        elif how == "resets":
            writer.transport.abort()
        else:
            writer.write(b"q" * 10 + (OK if how == "surplus" else b""))

    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(GET.replace(b"/x", b"/warm"))
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, limit=1024)
        writer.write(GET + GET.replace(b"/x", b"/behind"))
        await asyncio.sleep(0.3)
        await reader.readuntil(b"\r\n\r\n")
        if how in ("surplus", "whole"):
            assert await asyncio.wait_for(reader.readexactly(length), 10) == b"q" * length
            assert (await asyncio.wait_for(whole_answer(reader), 5)).endswith(b"ok")
        else:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(length), 10)
        await closed(writer)
        assert (await run.ask(GET.replace(b"/x", b"/warm"))).endswith(b"ok")
        await at_rest(run)
    outcomes = Counter(outcome for _, outcome in booked(run))
    assert outcomes == ({"forwarded": 4} if how in ("surplus", "whole") else {"forwarded": 2, "cut": 1})


@pytest.mark.parametrize("field", ["X-Long: ", "Connection: X-Hop\r\nX-Hop: "], ids=["forwarded", "not forwarded"])
@on_both_loops
async def test_little_is_remembered_of_who_sends_long_headers(tmp_path: Path, field: str) -> None:
    """Twelve thousand connections may idle."""
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        remembered = []
        for request in (GET, GET.replace(b"\r\n\r\n", f"\r\n{field}{'x' * 30_000}\r\n\r\n".encode())):
            for _ in range(2):
                writer.write(request)
                assert (await whole_answer(reader)).endswith(b"ok")
            [connection] = run.gateway._listeners[0].connections
            remembered.append(connection.memory)
        assert isinstance(remembered[0], Plan)
        assert remembered[1] is remembered[0]
        await closed(writer)
