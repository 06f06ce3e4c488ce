"""One exchange with a source: what is reused, what is broken, when a slot is settled; in the clear and over TLS, on
both loops."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme
import uvloop

from gateway.upstream import (
    BrokenAnswerError,
    GuardClosedError,
    Outbound,
    TlsError,
    UnreachableError,
    Upstream,
    UpstreamError,
    UpstreamTarget,
    UpstreamTimeoutError,
    client_context,
)
from policies.model import Slot, Ticket
from tests.conftest import JumpingClock, closed, raw_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ok>"
POST = Outbound(b"POST", b"/x", [(b"Host", b"x"), (b"Content-Length", b"2")], b"ab")


def upstream(url: str, **terms: object) -> Upstream:
    port = int(url.rpartition(":")[2])
    return Upstream(UpstreamTarget("127.0.0.1", port, **terms), JumpingClock())


def slot(guard: Callable[[float], bool] = lambda _now: True) -> Slot:
    return Slot(Ticket(1), frozenset({"onss"}), ("onss",), guard, hold_s=60.0)


async def ask(pool: Upstream, outbound: Outbound = POST, held: Slot | None = None) -> tuple[int, bytes]:
    async with pool.send(outbound, slot=held) as answer:
        return answer.status, b"".join([part async for part in answer.chunks()])


async def test_a_connection_is_kept_and_used_again() -> None:
    async with raw_server(OK) as server:
        pool = upstream(server.url)
        for _ in range(3):
            assert await ask(pool) == (200, b"<ok>")
            assert (pool.statistics().idle, pool.statistics().in_use) == (1, 0)
        await pool.close()
    assert server.requests == [b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"] * 3


async def test_a_connection_is_dropped_when_it_has_been_idle() -> None:
    async with raw_server(OK) as server:
        pool = upstream(server.url, keep_alive=0.03)
        await ask(pool)
        for _ in range(100):
            if not pool.statistics().idle:
                break
            await asyncio.sleep(0.01)
        assert pool.statistics().idle == 0
        assert await ask(pool) == (200, b"<ok>")
        await pool.close()


async def test_a_connection_that_the_server_closed_fails_no_call() -> None:
    async def once(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with raw_server(once) as server:
        pool = upstream(server.url)
        for _ in range(5):
            assert await ask(pool) == (200, b"<ok>")
            await asyncio.sleep(0.01)
        await pool.close()
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nT: 1\r\n\r\n", 200, b"abcd"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, 200, b"<ok>"),
        (b"HTTP/1.1 204 None\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b""),
    ],
)
async def test_answers_of_every_framing_are_read(answer: bytes, status: int, body: bytes) -> None:
    async with raw_server(answer) as server:
        pool = upstream(server.url)
        for _ in range(2):
            assert await ask(pool) == (status, body)
        await pool.close()


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    async def until_close(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        writer.close()

    async with raw_server(until_close) as server:
        pool = upstream(server.url)
        assert await ask(pool) == (200, b"abc")
        await pool.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n<ok>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + OK,
        OK + b"more",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
async def test_an_answer_that_contradicts_itself_is_broken_and_reaches_nobody(answer: bytes) -> None:
    async with raw_server(answer) as server:
        pool = upstream(server.url)
        with pytest.raises(BrokenAnswerError) as raised:
            await ask(pool)
        assert raised.value.bytes_written
        await asyncio.sleep(0)
        assert pool.statistics().idle == 0
        await pool.close()


async def test_surplus_that_comes_later_ends_the_connection() -> None:
    async def twice(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<bad>")

    async with raw_server(twice) as server:
        pool = upstream(server.url)
        assert await ask(pool) == (200, b"<ok>")
        await asyncio.sleep(0.05)
        assert pool.statistics().idle == 0
        assert await ask(pool) == (200, b"<ok>")
        await pool.close()


@pytest.mark.parametrize(
    "whole",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_an_answer_cut_at_any_position_is_broken(whole: bytes) -> None:
    cut = 0

    async def half(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(whole[:cut])
        await writer.drain()
        writer.close()

    async with raw_server(half) as server:
        pool = upstream(server.url)
        for cut in range(len(whole)):  # noqa: B007  # read by the server
            with pytest.raises(BrokenAnswerError):
                await ask(pool)
        await pool.close()


async def test_nobody_there_is_unreachable_and_nothing_was_sent() -> None:
    pool = upstream("http://127.0.0.1:9")
    held = slot()
    with pytest.raises(UnreachableError) as raised:
        await ask(pool, held=held)
    assert not raised.value.bytes_written
    assert held.busy_until is None


async def silent(_writer: asyncio.StreamWriter, _request: bytes) -> None:
    await asyncio.Event().wait()


async def test_more_calls_than_connections_wait_and_are_told() -> None:
    async with raw_server(silent) as server:
        pool = upstream(server.url, connections=1, connect_timeout=0.05, first_byte_timeout=0.3)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(failing(pool))
            await asyncio.sleep(0.02)
            second = await failing(pool)
        assert isinstance(first.result(), UpstreamTimeoutError)
        assert isinstance(second, UnreachableError)
        assert "connections" in second.detail
        await pool.close()


async def failing(pool: Upstream, held: Slot | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await ask(pool, held=held)
    return raised.value


async def test_a_waiter_gets_the_connection_that_comes_free() -> None:
    async with raw_server(OK) as server:
        pool = upstream(server.url, connections=1)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(pool)) for _ in range(20)]
        assert {task.result() for task in asked} == {(200, b"<ok>")}
        await pool.close()


async def test_a_defect_of_ours_is_told_and_not_taken_for_the_upstreams() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    async with raw_server(OK) as server:
        pool = upstream(server.url)
        held, defect = slot(), RuntimeError("a defect")

        def fails() -> None:
            raise defect

        held.when_settled(fails)
        assert await ask(pool, held=held) == (200, b"<ok>")
        assert told == [defect]
        assert await ask(pool) == (200, b"<ok>")
        await pool.close()


# Bulk: the guard, and when a slot is settled.


async def test_a_guard_that_says_no_lets_nothing_out_and_keeps_the_connection() -> None:
    async with raw_server(OK) as server:
        pool = upstream(server.url)
        held = slot(lambda _now: False)
        with pytest.raises(GuardClosedError):
            await ask(pool, held=held)
        assert held.busy_until is None
        assert pool.statistics().idle == 1
        assert server.requests == []
        assert await ask(pool, held=slot()) == (200, b"<ok>")
        await pool.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_guard_that_says_no_midway_stops_the_bytes(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A reader that stands still, and 8 MB: what the kernel took is all that ever leaves."""

    async def scene() -> None:
        taken = asyncio.Event()
        received = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal received
            await taken.wait()
            try:
                while data := await reader.read(1 << 20):
                    received += len(data)
            except ConnectionResetError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(slow, "127.0.0.1", 0, limit=1024)
        pool = upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        asked = 0
        closed_ = False

        def guard(_now: float) -> bool:
            nonlocal asked
            asked += 1
            return not closed_

        held = slot(guard)
        large = Outbound(b"POST", b"/x", [(b"Content-Length", b"8388608")], b"x" * 8388608)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(raised_by(ask(pool, large, held)))
            await asyncio.sleep(0.05)  # until the kernel takes no more
            closed_ = True
            taken.set()
        assert isinstance(call.result(), UpstreamTimeoutError)
        assert call.result().bytes_written
        assert held.busy_until is not None
        await asyncio.sleep(0.05)
        assert received < 8388608
        assert asked > 2
        server.close()
        await pool.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scene())


async def raised_by(call: Awaitable[object]) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await call
    return raised.value


@pytest.mark.parametrize(
    ("answer", "settled"),
    [
        (OK, True),
        (b"HTTP/1.1 500 Fault\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n", False),
    ],
)
async def test_the_answer_settles_the_slot_unless_an_intermediary_gave_up(answer: bytes, settled: bool) -> None:
    async with raw_server(answer) as server:
        pool = upstream(server.url)
        held = slot()
        await ask(pool, held=held)
        assert (held.busy_until is None) is settled
        assert held.started_at is not None
        await pool.close()


async def test_a_reset_and_a_timeout_leave_the_slot_unsettled() -> None:
    async def reset(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.transport.abort()

    for answer, kind in ((reset, BrokenAnswerError), (silent, UpstreamTimeoutError)):
        async with raw_server(answer) as server:
            pool = upstream(server.url, call_timeout=0.05)
            held = slot()
            assert isinstance(await failing(pool, held), kind)
            assert held.busy_until is not None
            await pool.close()


@pytest.mark.parametrize("at_first", [0, 1, 70_000])
async def test_the_answer_to_a_caller_who_left_settles_the_slot_by_itself(at_first: int) -> None:
    go, settled = asyncio.Event(), asyncio.Event()

    async def later(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * at_first)
        await asyncio.sleep(0.05)  # read by itself
        writer.write(b"x" * (1_000_000 - at_first))

    async with raw_server(later) as server:
        pool = upstream(server.url)
        held = slot()
        held.when_settled(settled.set)
        loop = asyncio.get_running_loop()
        call = loop.create_task(ask(pool, held=held))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert held.busy_until is not None
        go.set()
        await asyncio.wait_for(settled.wait(), 5)
        assert held.busy_until is None
        assert pool.statistics().idle == 1
        await pool.close()


async def test_a_large_answer_in_pieces_to_a_caller_who_left_settles_the_slot_too() -> None:
    settled = asyncio.Event()

    async def later(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 1000)
        await asyncio.sleep(0.05)
        writer.write(b"x" * 199_000)

    go = asyncio.Event()
    async with raw_server(later) as server:
        pool = upstream(server.url)
        held = slot()
        held.when_settled(settled.set)
        call = asyncio.get_running_loop().create_task(ask(pool, held=held))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go.set()
        await asyncio.wait_for(settled.wait(), 5)
        assert pool.statistics().idle == 1
        await pool.close()


async def test_a_connection_whose_answer_nobody_took_is_read_on_at_the_next_call() -> None:
    async def large(writer: asyncio.StreamWriter, _request: bytes) -> None:
        if len(server.requests) > 1:
            writer.write(OK)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 200_000)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"x" * 100_000)

    async with raw_server(large) as server:
        pool = upstream(server.url)
        async with pool.send(POST, slot=None) as answer:
            while not answer.complete:
                await asyncio.sleep(0.01)
        assert pool.statistics().idle == 1
        assert await asyncio.wait_for(ask(pool), 5) == (200, b"<ok>")
        await pool.close()


async def test_a_connection_that_is_about_to_end_is_used_by_nobody() -> None:
    """The upstream has closed it, and the loop does not know yet."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pool = upstream(f"http://127.0.0.1:{listening.getsockname()[1]}")
        connection = await pool.connection()
        pool.keep(connection)
        other, _ = listening.accept()
        assert pool.quiet() is connection
        pool.keep(connection)
        other.close()
        assert pool.quiet() is None
        assert pool.kept() is None
        await pool.close()


async def test_a_caller_who_left_is_not_waited_for_longer_than_a_call_may_take() -> None:
    async with raw_server(silent) as server:
        pool = upstream(server.url, call_timeout=0.1)
        held = slot()
        call = asyncio.get_running_loop().create_task(ask(pool, held=held))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(100):
            if not pool.statistics().in_use:
                break
            await asyncio.sleep(0.01)
        assert pool.statistics().in_use == 0
        assert held.busy_until is not None
        await pool.close()


@pytest.mark.parametrize("stays", [True, False], ids=["and stays", "and closes"])
async def test_an_answer_that_comes_before_all_is_sent_is_the_answer(stays: bool) -> None:
    """Refused for its size by something that does not read the rest."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nno!")
        await writer.drain()
        if stays:
            await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(early, "127.0.0.1", 0, limit=1024)
    pool = upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    held = slot()
    large = Outbound(b"POST", b"/x", [(b"Content-Length", b"8388608")], b"x" * 8388608)
    async with asyncio.timeout(5):
        assert await ask(pool, large, held) == (413, b"no!")
    assert held.busy_until is None
    assert pool.statistics().idle == 0
    over.set()
    server.close()
    await pool.close()


async def test_an_end_of_ours_settles_no_slot_even_where_an_answer_ends_with_its_connection() -> None:
    """The gateway stops: what a source was still answering is cut, and the source may be at it still."""

    async def begun(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n<half")
        await asyncio.Event().wait()

    async with raw_server(begun) as server:
        pool = upstream(server.url)
        held = slot()
        reading = asyncio.Event()

        async def call() -> None:
            async with pool.send(POST, slot=held) as answer:
                async for _ in answer.chunks():
                    reading.set()

        task = asyncio.get_running_loop().create_task(call())
        await asyncio.wait_for(reading.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pool.close()
        await asyncio.sleep(0.01)
        assert pool.statistics().in_use == 0
        assert held.busy_until is not None


async def test_a_body_that_breaks_off_raises_its_own_error_and_is_not_sent_whole() -> None:
    class TornError(Exception):
        pass

    async def torn() -> object:
        yield b"begin"
        raise TornError

    async with raw_server(OK) as server:
        pool = upstream(server.url)
        with pytest.raises(TornError):
            await ask(pool, Outbound(b"POST", b"/x", [(b"Content-Length", b"99")], stream=torn()))
        await pool.close()
    assert server.requests == []


# TLS.


def tls_server(folder: Path, *, demand: bool = False, name: str = "localhost") -> tuple[ssl.SSLContext, Path, Path]:
    authority = trustme.CA()
    ca, client = folder / "ca.pem", folder / "client.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(client)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    if demand:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
    return context, ca, client


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_call_goes_over_tls_with_our_certificate(tmp_path: Path, bulk: bool) -> None:
    server_context, ca, client = tls_server(tmp_path, demand=True)
    body = b"x" * 300_000
    outbound = Outbound(b"POST", b"/x", [(b"Content-Length", b"300000")], body)
    async with raw_server(OK, tls=server_context) as server:
        context = client_context(ca=ca, certificate=client)
        pool = upstream(server.url, context=context, server_name="localhost")
        for _ in range(2):
            held = slot() if bulk else None
            assert await ask(pool, outbound, held) == (200, b"<ok>")
            assert held is None or held.busy_until is None
        assert pool.statistics().idle == 1
        await pool.close()
    assert [request[-300_000:] for request in server.requests] == [body, body]


async def test_a_guard_that_closes_when_tls_has_sealed_leaves_no_broken_connection_behind(tmp_path: Path) -> None:
    server_context, ca, _ = tls_server(tmp_path)
    async with raw_server(OK, tls=server_context) as server:
        pool = upstream(server.url, context=client_context(ca=ca), server_name="localhost")
        answers = iter((True, False))
        held = slot(lambda _now: next(answers))
        with pytest.raises(GuardClosedError):
            await ask(pool, held=held)
        assert held.busy_until is None
        assert await ask(pool, held=slot()) == (200, b"<ok>")
        await pool.close()


@pytest.mark.parametrize(
    ("trusted", "server_name", "remedy"),
    [(False, "localhost", "`ca`"), (True, "elsewhere.example", "server_name")],
)
async def test_a_certificate_that_is_not_accepted_says_what_to_do(
    tmp_path: Path, trusted: bool, server_name: str, remedy: str
) -> None:
    server_context, ca, _ = tls_server(tmp_path)
    async with raw_server(OK, tls=server_context) as server:
        context = client_context(ca=ca if trusted else None)
        pool = upstream(server.url, context=context, server_name=server_name)
        held = slot()
        error = await failing(pool, held)
        assert isinstance(error, TlsError)
        assert remedy in error.detail
        assert held.busy_until is None
        await pool.close()
    assert server.requests == []


async def test_a_server_that_refuses_our_certificate_is_said_to(tmp_path: Path) -> None:
    """By a plain OpenSSL server in a thread: asyncio's would close before its alert is sent."""
    server_context, ca, _ = tls_server(tmp_path, demand=True)
    server_context.maximum_version = ssl.TLSVersion.TLSv1_2

    def refuse(listening: socket.socket) -> None:
        taken, _ = listening.accept()
        with taken, pytest.raises(ssl.SSLError):
            server_context.wrap_socket(taken, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://x:{listening.getsockname()[1]}"
        pool = upstream(url, context=client_context(ca=ca), server_name="localhost")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(refuse, listening))
            error = await failing(pool)
        await pool.close()
    assert isinstance(error, TlsError)
    assert "refused our certificate" in error.detail


async def test_a_server_that_speaks_no_tls_is_tls_trouble(tmp_path: Path) -> None:
    _, ca, _ = tls_server(tmp_path)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
        await closed(writer)

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    pool = upstream(f"http://x:{server.sockets[0].getsockname()[1]}", context=client_context(ca=ca), server_name="x")
    assert isinstance(await failing(pool), TlsError)
    server.close()
    await pool.close()


async def test_a_tls_body_that_ends_without_goodbye_is_cut(tmp_path: Path) -> None:
    server_context, ca, _ = tls_server(tmp_path)

    async def abrupt(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async with raw_server(abrupt, tls=server_context) as server:
        pool = upstream(server.url, context=client_context(ca=ca), server_name="localhost")
        assert isinstance(await failing(pool), BrokenAnswerError)
        await pool.close()
