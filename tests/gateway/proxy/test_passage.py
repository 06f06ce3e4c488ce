"""A real-time call that passes as callbacks: whatever comes between, it is answered once or cut, stands in the books
once, and neither connection carries an octet of it on."""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path

import pytest
import trustme
import uvloop

from tests.conftest import JumpingClock, Running, closed, envelope, gateway_over, post, raw_server, whole_answer
from tests.gateway.proxy.test_suspicion import loop
from tests.gateway.test_reload import reloaded, rewrite

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


def on_both_loops(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test on asyncio's loop and on uvloop's: they tell of ends and full buffers at other moments."""

    @wraps(test)
    def run(make_loop: Callable[[], asyncio.AbstractEventLoop], **given: object) -> None:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(test(**given))

    asked = signature(test)
    loop = Parameter("make_loop", Parameter.KEYWORD_ONLY)
    run.__signature__ = asked.replace(parameters=[*asked.parameters.values(), loop])  # type: ignore[attr-defined]  # what pytest reads
    del run.__wrapped__  # type: ignore[attr-defined]  # else pytest-asyncio takes it for a coroutine
    both = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("make_loop", both, ids=["asyncio", "uvloop"])(run)


def booked(run: Running) -> list[tuple[int, str]]:
    """Return the status and outcome of each call in the books."""
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [(line["status"], line["outcome"]) for line in lines if line["event"] == "call"]


async def at_rest(run: Running) -> None:
    """Wait until no call is in flight, and no connection to the upstream in use."""
    for _ in range(200):
        if not run.gateway.proxy.in_flight and not run.gateway.upstreams["bcss"].statistics().in_use:
            return
        await asyncio.sleep(0.01)
    raise AssertionError((run.gateway.proxy.in_flight, run.gateway.upstreams["bcss"].statistics()))


@on_both_loops
async def test_a_suspect_made_bulk_costs_no_connection_to_the_upstream(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "suspicion: {action: bulk, calm: 2min}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        answers = await loop(run, 70)
        assert b"<reason>office_hours</reason>" in answers[-1]
        assert run.gateway.upstreams["bcss"].statistics().in_use == 0


@on_both_loops
async def test_surplus_behind_an_answer_in_pieces_ends_the_upstreams_connection_and_not_the_call(
    tmp_path: Path,
) -> None:
    async def in_pieces(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/warm" in request:
            writer.write(OK)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"67890" + OK)

    async with raw_server(in_pieces) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(post("/warm", b""))
        assert (await run.ask(GET, timeout=3)).endswith(b"\r\n\r\n1234567890")
        assert (await run.ask(post("/warm", b""))).endswith(b"ok")
        await at_rest(run)
    assert len(booked(run)) == 3


@on_both_loops
async def test_a_body_behind_an_answer_to_head_reaches_nobody(tmp_path: Path) -> None:
    """It would be taken for the next answer."""
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(GET)
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(GET.replace(b"GET", b"HEAD"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 2\r\n" in head
        writer.write(GET)
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        await closed(writer)


@on_both_loops
async def test_a_client_that_waits_for_an_invitation_gets_one(tmp_path: Path) -> None:
    body = envelope()
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        whole = post("/x", body, "Expect: 100-continue")
        writer.write(whole[: -len(body)])
        await asyncio.sleep(0.2)  # longer than a body is waited for as callbacks
        writer.write(body)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        await closed(writer)


LARGE_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"y" * 300_000
UNENDING = b"HTTP/1.1 200 OK\r\n\r\n" + b"z" * 100_000
CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"9c40\r\n%s\r\n" % (b"c" * 40_000) * 4 + b"0\r\n\r\n"
)
KINDS = {
    b"/small": OK,
    b"/large": LARGE_ANSWER,
    b"/unending": UNENDING,
    b"/chunks": CHUNKS,
    b"/none": b"HTTP/1.1 204 None\r\n\r\n",
    b"/same": b"HTTP/1.1 304 Same\r\nContent-Length: 300000\r\n\r\n",
    b"/hints": b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + LARGE_ANSWER,
    b"/closes": LARGE_ANSWER.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@on_both_loops
async def test_pipelined_calls_of_every_framing_are_answered_in_order_and_whole(tmp_path: Path, pieces: int) -> None:
    async def answer(writer: asyncio.StreamWriter, request: bytes) -> None:
        path = request.split(b" ")[1]
        octets = KINDS[path]
        step = len(octets) // pieces + 1
        for start in range(0, len(octets), step):
            writer.write(octets[start : start + step])
            await writer.drain()
            await asyncio.sleep(0.002 if pieces > 1 else 0)
        if path in (b"/unending", b"/closes"):
            writer.close()

    bodies = {path: octets.rpartition(b"\r\n\r\n")[2] for path, octets in KINDS.items()}
    bodies[b"/chunks"] = b"c" * 160_000
    bodies[b"/same"] = b""
    order = [*KINDS, *reversed(KINDS), b"/large", b"/large", b"/closes", b"/closes", b"/small"]
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(GET.replace(b"/x", b"/small"))
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, limit=1 << 20)
        for path in order:
            writer.write(GET.replace(b"/x", path))
        for path in order:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                if path in (b"/none", b"/same"):
                    assert head.startswith(KINDS[path][:12])
                    continue
                got = b""
                if b"Transfer-Encoding: chunked" in head:
                    while size := int(await reader.readuntil(b"\r\n"), 16):
                        got += (await reader.readexactly(size + 2))[:-2]
                    await reader.readexactly(2)
                else:
                    got = await reader.readexactly(len(bodies[path]))
                assert got == bodies[path], path
        await closed(writer)
        await at_rest(run)
    assert {outcome for _, outcome in booked(run)} == {"forwarded"}
    assert len(booked(run)) == len(order) + 1


@pytest.mark.parametrize("cut", [50, 1000, 66_000, 299_000])
@on_both_loops
async def test_an_upstream_that_ends_in_the_middle_of_a_large_answer_cuts_the_client_too(
    tmp_path: Path, cut: int
) -> None:
    async def answer(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/x" in request:
            writer.write(LARGE_ANSWER[:cut])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.close()
        else:
            writer.write(OK)

    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:
        for _ in range(3):
            await run.ask(GET.replace(b"/x", b"/warm"))
            reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
            writer.write(GET + GET)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.readexactly(2 * len(LARGE_ANSWER)), 5)
            await closed(writer)
        await at_rest(run)
    assert Counter(booked(run)) == {(200, "cut"): 3, (200, "forwarded"): 3}


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
@on_both_loops
async def test_hang_ups_by_the_hundred_in_every_phase_are_booked_once_and_leak_nothing(
    tmp_path: Path, reset: bool
) -> None:
    """Gathering, sent, in the header, in half an answer, while slow, with more calls behind; and in between."""
    large = LARGE_ANSWER.replace(b"300000", b"3000000") + b"y" * 2_700_000

    async def answer(writer: asyncio.StreamWriter, request: bytes) -> None:
        octets = large if b"/large" in request else OK
        await asyncio.sleep(0.005)
        for piece in (octets[:10], octets[10 : len(octets) // 2], octets[len(octets) // 2 :]):
            if not writer.is_closing():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.005)

    small = post("/x", envelope())
    requests = [small, post("/large", b"b" * 100_000), GET.replace(b"/x", b"/large"), small * 3]
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url) as run:

        async def hang_up(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", run.port, limit=1024)
            request = requests[number % 4]
            writer.write(request[: len(request) - (0, 0, 1, 50)[number // 4 % 4]])
            await asyncio.sleep(0.001 * (number * 7 % 90))
            if reset:
                writer.transport.abort()
            await closed(writer)

        async with asyncio.TaskGroup() as tasks:
            for number in range(240):
                tasks.create_task(hang_up(number))
        await at_rest(run)
        assert (await run.ask(small)).endswith(b"ok")
    identifiers = [
        json.loads(line)["request_id"] for line in run.log.read_text().splitlines() if '"event":"call"' in line
    ]
    assert len(identifiers) == len(set(identifiers)) > 150
    assert '"event":"defect"' not in run.log.read_text()


@on_both_loops
async def test_a_kept_connection_follows_a_reload(tmp_path: Path) -> None:
    """What is remembered on a client's connection is of the configuration before."""
    async with (
        raw_server(OK) as server,
        raw_server(OK.replace(b"ok", b"no")) as other,
        gateway_over(tmp_path, server.url) as run,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        for _ in range(3):
            writer.write(GET)
            assert (await whole_answer(reader)).endswith(b"ok")
        rewrite(run, server.url, other.url)
        assert await reloaded(run) == ()
        writer.write(GET)
        assert (await whole_answer(reader)).endswith(b"no")
        rewrite(run, "{prefix: /,", "{prefix: /y,")
        assert await reloaded(run) == ()
        writer.write(GET)
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 404 ")
        await closed(writer)
    assert (len(server.requests), len(other.requests)) == (3, 1)


@on_both_loops
async def test_a_call_that_passes_while_the_gateway_stops_gets_its_answer(tmp_path: Path) -> None:
    async def slowly(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/x" in request:
            await asyncio.sleep(0.2)
        writer.write(OK[:-1])
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(OK[-1:])

    async with raw_server(slowly) as server:
        async with gateway_over(tmp_path, server.url) as run:
            await run.ask(GET.replace(b"/x", b"/warm"))
            reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
            writer.write(GET)
            while len(server.requests) < 2:
                await asyncio.sleep(0.01)
        got = await asyncio.wait_for(reader.read(), 5)
        assert got.endswith(b"ok")
        assert b"\r\nConnection: close\r\n" in got
        await closed(writer)
    assert booked(run) == [(200, "forwarded")] * 2


@pytest.mark.parametrize("tag", ["", "/bulk"])
@on_both_loops
async def test_answers_in_pieces_reach_a_client_that_speaks_tls(tmp_path: Path, tag: str) -> None:
    """Small ones, and ones that it does not read for a while."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    extra = "listeners: [{address: 127.0.0.1, port: 0, tls: {certificate: server.pem}}]\n"
    length = 12_000_000

    async def in_pieces(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/large" in request:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b"z" * length)
            return
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n1", b"2", b"3"):
            writer.write(piece)
            await asyncio.sleep(0.01)

    terms = "call_timeout: 10s, hold: 10s"
    async with raw_server(in_pieces) as server, gateway_over(tmp_path, server.url, extra=extra, upstream=terms) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, ssl=context)
        for _ in range(3):
            writer.write(post(f"{tag}/x", envelope()))
            assert (await asyncio.wait_for(whole_answer(reader), 5)).endswith(b"\r\n\r\n123")
        for _ in range(2):
            writer.write(post(f"{tag}/large", envelope()) + post("/x", envelope()))
            await asyncio.sleep(0.3)
            assert len(await asyncio.wait_for(whole_answer(reader), 10)) > length
            assert (await asyncio.wait_for(whole_answer(reader), 5)).endswith(b"\r\n\r\n123")
        await closed(writer)
