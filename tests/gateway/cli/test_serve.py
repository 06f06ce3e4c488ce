"""What the process does about its memory: a whole collection waits for a quiet moment, and calls leave it nothing."""

import asyncio
import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.cli.serve import LOOK_S, OVERDUE_S, QUIET_CALLS, collect_in_quiet, unforeseen
from gateway.log import EventLog
from gateway.proxy.calls import Call
from policies.model import Slot
from tests.conftest import JumpingClock, closed, envelope, gateway_over, post, raw_server

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\n<ok>"


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 2**31 - 1)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Circle:
    def __init__(self) -> None:
        self.me = self


def old_circle() -> "weakref.ref[Circle]":
    """Leave garbage that only a whole collection finds, after what makes Python think of one."""
    circle = Circle()
    for _ in range(12):
        gc.collect(1)
    return weakref.ref(circle)


@pytest.mark.looptime
@pytest.mark.usefixtures("collector")
async def test_everything_is_looked_through_in_a_quiet_moment_or_when_it_is_overdue() -> None:
    in_flight = 0
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_in_quiet(lambda: in_flight))
        await asyncio.sleep(LOOK_S + 1)
        circle = old_circle()
        in_flight = QUIET_CALLS + 1
        await asyncio.sleep(4 * LOOK_S)
        assert circle() is not None, "not in a crowd"
        in_flight = QUIET_CALLS
        await asyncio.sleep(LOOK_S)
        assert circle() is None
        circle = old_circle()
        in_flight = QUIET_CALLS + 1
        await asyncio.sleep(OVERDUE_S - LOOK_S)
        assert circle() is not None
        await asyncio.sleep(2 * LOOK_S)
        assert circle() is None, "not for ever"
        collecting.cancel()


@pytest.mark.looptime
@pytest.mark.usefixtures("collector")
async def test_nothing_is_looked_through_again_while_little_was_made() -> None:
    looks: list[str] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            looks.append(phase)

    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(collect_in_quiet(lambda: 0))
        gc.callbacks.append(look)
        try:
            await asyncio.sleep(3 * OVERDUE_S)
        finally:
            gc.callbacks.remove(look)
        collecting.cancel()
    assert looks == ["start", "stop"], "once, after the start"


async def test_calls_leave_nothing_for_the_collector(tmp_path: Path) -> None:
    """Answered, refused, malformed, and gone while they waited: whatever a call was, it ends with its last mention."""
    go = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await go.wait()
        writer.write(OK)

    prompt = "bulk: {refusal_delay: 0s}\n"
    broken = post("/bulk/x", b"no gzip", "Content-Encoding: gzip")
    async with (
        raw_server(slowly) as server,
        gateway_over(tmp_path, server.url, extra=prompt) as run,
        AsyncExitStack() as stack,
    ):
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        for path in ("/bulk/x", "/x"):
            for _ in range(10):
                _, writer = await asyncio.open_connection("127.0.0.1", run.port)
                writer.write(post(path, envelope()))
                await writer.drain()
                await asyncio.sleep(0.001)
                await closed(writer)
        go.set()
        for _ in range(10):
            answers = [await run.ask(one) for one in (post("/bulk/x", envelope()), post("/x", envelope()), broken)]
            assert [answer[9:12] for answer in answers] == [b"200", b"200", b"500"]
        gc.set_debug(gc.DEBUG_SAVEALL)
        stack.callback(gc.garbage.clear)
        stack.callback(gc.set_debug, 0)
        gc.collect()
        assert [one for one in gc.garbage if isinstance(one, Call | Slot)] == []


def test_what_the_loop_has_nobody_to_tell_is_a_line_of_the_log_like_others() -> None:
    lines: list[str] = []
    defects: list[BaseException] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(unforeseen(EventLog(JumpingClock(), lines.append), defects.append))
    loop.call_exception_handler({"message": "x", "exception": TimeoutError(110, "Connection timed out")})
    assert [(json.loads(line)["event"], json.loads(line)["why"]) for line in lines] == [
        ("connection lost", "Connection timed out")
    ]
    loop.call_soon(int, "no number")
    loop.call_exception_handler({"message": "a task was destroyed"})
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert [type(one) for one in defects] == [RuntimeError, ValueError]
    assert len(lines) == 1
