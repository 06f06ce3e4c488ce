"""What a connection remembers of heads changes nothing: requests on one connection, cut anywhere, arrive as each does
on a connection of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config.settings import Limits
from gateway.inbound import HIGH_WATER, BrokenBodyError, Inbound
from gateway.inbound.listener import Listener
from gateway.inbound.turns import Turns
from gateway.lending import LARGE, READ_SIZE
from tests.conftest import closed, gateway_over, raw_server, whole_answer

DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
PLAIN = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
OFFER = b"POST /d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n"
LOOK_ALIKES = (PLAIN, SHORT + b"abc", CHUNKED + b"0\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n" + PLAIN)
"""Bodies that look like what is remembered."""


def chunked(*parts: bytes) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def lengthy(body: bytes) -> bytes:
    return b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


REQUESTS = (
    PLAIN,
    SHORT + b"abc",
    SHORT + b"\r\n\r",
    OFFER + b"abc",
    OFFER + b"GET",
    PLAIN.replace(b"GET", b"HEAD"),
    b"\r\n" + PLAIN,
    b"\r\n\r\n" + SHORT + b"abc",
    PLAIN.replace(b"\r\n\r\n", b"\r\nX: 1\r\n\r\n"),
    PLAIN.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
    b"POST /f HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    chunked(),
    *(chunked(body) for body in LOOK_ALIKES),
    *(lengthy(body) for body in LOOK_ALIKES),
    CHUNKED + b"3;x=y\r\nabc\r\n0\r\nHost: y\r\nX-Length: 3\r\n\r\n",
)

Seen = tuple[bytes, bytes, list[tuple[bytes, bytes]], bool, bool, bytes]


@asynccontextmanager
async def listening(seen: list[Seen]) -> AsyncIterator[tuple[Listener, int]]:
    async def note(inbound: Inbound) -> bool:
        try:
            body = b"".join([part async for part in inbound.chunks()])
        except BrokenBodyError:
            inbound.connection.write(REFUSED)
            return False
        seen.append((inbound.method, inbound.target, inbound.headers, inbound.speaks_11, inbound.keeps_alive, body))
        inbound.connection.write(DONE)
        return inbound.keeps_alive

    defects: list[BaseException] = []
    async with asyncio.TaskGroup() as tasks:
        listener = Listener(
            note,
            Limits(),
            tasks,
            turns=Turns(),
            on_malformed=lambda _status, _what: REFUSED,
            on_defect=defects.append,
            on_refused_connection=lambda: None,
        )
        server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
        yield listener, server.sockets[0].getsockname()[1]
        server.close()
        await listener.shutdown()
    assert not defects


async def turns(number: int = 4) -> None:
    """Let the gateway read what was sent, by itself."""
    for _ in range(number):
        await asyncio.sleep(0)


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[start:end] for start, end in pairwise(ends)]


async def arrived(requests: list[bytes], places: list[int], *, waits: bool, own: bool) -> list[Seen]:
    """Send requests, on one connection or each on its `own`, and return how they arrived; `waits`: for each answer."""
    seen: list[Seen] = []
    async with listening(seen) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for octets in requests if waits else [b"".join(requests)]:
            if own:
                await closed(writer)
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in cut(octets, places):
                writer.write(piece)
                await turns()
            if waits:
                assert await asyncio.wait_for(reader.readexactly(len(DONE)), 5) == DONE
        if not waits:
            assert await asyncio.wait_for(reader.readexactly(len(DONE) * len(requests)), 5) == DONE * len(requests)
        await closed(writer)
    return seen


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(REQUESTS), min_size=2, max_size=6), st.lists(st.integers(0, 400), max_size=4))
@example([PLAIN, PLAIN, chunked(PLAIN), PLAIN], [len(CHUNKED) + 4])
def test_requests_on_one_connection_arrive_as_each_on_its_own(requests: list[bytes], places: list[int]) -> None:
    async def compare() -> None:
        alone = await arrived(requests, [], waits=True, own=True)
        assert await arrived(requests, places, waits=True, own=False) == alone
        assert await arrived(requests, places, waits=False, own=False) == alone

    asyncio.run(compare())


@pytest.mark.parametrize("outer", [chunked(PLAIN), lengthy(PLAIN), lengthy(SHORT + b"abc"), OFFER + b"abc"])
@pytest.mark.parametrize("known", [PLAIN, SHORT + b"abc"])
async def test_a_body_that_looks_like_what_is_known_is_a_body_wherever_it_is_cut(known: bytes, outer: bytes) -> None:
    for place in range(1, len(outer)):
        seen: list[Seen] = []
        async with listening(seen) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for octets in ([known], [known], [outer[:place], outer[place:]], [known]):
                for piece in octets:
                    writer.write(piece)
                    await turns()
                assert await asyncio.wait_for(reader.readexactly(len(DONE)), 5) == DONE
            await closed(writer)
        assert seen[0] == seen[1] == seen[3]
        assert [one[0:2] for one in seen[2:3]] == [(b"POST", outer.split(b" ")[1])]
        assert seen[2][5] == (PLAIN if outer in (chunked(PLAIN), lengthy(PLAIN)) else outer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("beginning", [b"X", b"GET", b"GET /a HTTP/1.1\r\n", PLAIN[:-1], PLAIN[:-2], CHUNKED, SHORT])
async def test_what_is_known_is_not_known_in_the_middle_of_another(beginning: bytes) -> None:
    """Compared to the same octets on a connection that has seen nothing yet."""
    ends = []
    for before in ([], [PLAIN, PLAIN]):
        seen: list[Seen] = []
        async with listening(seen) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for octets in before:
                writer.write(octets)
                assert await reader.readexactly(len(DONE)) == DONE
            writer.write(beginning)
            await turns()
            writer.write(PLAIN)
            await turns(20)
            if writer.can_write_eof():
                writer.write_eof()
            got = await asyncio.wait_for(reader.read(), 5)
            await closed(writer)
        ends.append((got, seen[len(before) :]))
    assert ends[0] == ends[1]


SIZES = [edge + off for edge in (LARGE, HIGH_WATER) for off in (-1, 0, 1)] + [2 * READ_SIZE + 1]


def odd(size: int) -> bytes:
    """Octets of which none is where another one could be, nearly."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("waits", [True, False], ids=["alone", "pipelined"])
async def test_a_large_body_arrives_whole_wherever_it_is_cut_and_so_does_what_is_behind(size: int, waits: bool) -> None:
    large = lengthy(odd(size))
    head = len(large) - size
    alone = await arrived([large, PLAIN], [], waits=True, own=True)
    assert alone[0][5] == odd(size)
    for place in (1, head - 1, head, head + 1, head + LARGE, head + size - LARGE, head + size - 1, head + size + 5):
        for places in ([place], [head, place]):
            requests = [PLAIN, large, large, PLAIN, PLAIN]
            came = await arrived(requests, [at + (0 if waits else len(PLAIN)) for at in places], waits=waits, own=False)
            assert came == [alone[1], alone[0], alone[0], alone[1], alone[1]], places


@pytest.mark.parametrize("size", SIZES)
async def test_large_bodies_pass_both_ways_octet_for_octet(tmp_path: Path, size: int) -> None:
    """What is lent out is not written to: each call's octets are others."""
    bodies = [bytes([65 + number]) * size for number in range(4)]

    async def echo(writer: asyncio.StreamWriter, request: bytes) -> None:
        body = request.partition(b"\r\n\r\n")[2]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body[:1000])
        await asyncio.sleep(0.001)
        writer.write(body[1000:])

    async with raw_server(echo) as server, gateway_over(tmp_path, server.url) as run:

        async def client(body: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", run.port, limit=1 << 20)
            for _ in range(4):
                writer.write(lengthy(body))
                assert (await asyncio.wait_for(whole_answer(reader), 10)).partition(b"\r\n\r\n")[2] == body
            await closed(writer)

        async with asyncio.TaskGroup() as tasks:
            for body in bodies:
                tasks.create_task(client(body))
    assert sorted(one.partition(b"\r\n\r\n")[2] for one in server.requests) == sorted(bodies * 4)
