"""`bcss-gateway serve`: runs the gateway in an event loop, and turns signals into an orderly stop.

The first SIGTERM or SIGINT drains (see `gateway.app`); the second ends the process at once. The file in `data_dir`
then still says "unclean", so that the next start waits until calls of this process cannot be running any more.

The process's memory is looked after here, too. Calls leave nothing for Python's collector of cycles (tested), but what
makes it look through everything is that much was made: a crowd of waiting calls. That took 25 ms for 2,000 of them, in
the middle of their arrival, and again and again (measured: a real-time call's 99th percentile while 5,000 arrive was
124 ms, and is 8 without). So a whole collection waits for a quiet moment.
"""

import asyncio
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import uvloop

from gateway.app import SystemClock, running
from gateway.config import Configuration
from gateway.log import EventLog, LineWriter, event_log
from gateway.occupancy import OccupiedError
from policies.leases import Times
from policies.model import Clock

SPARE_FILES = 1024
"""File descriptors besides those of clients: upstreams, files, the event loop."""
QUIET_CALLS = 50
"""In flight at the most while everything is looked through: it takes 25 ms for 2,000 waiting calls, 0.05 for none
(measured), so well under a millisecond for these."""
LOOK_S = 5.0
"""How often it is asked whether it is quiet, and anything to do."""
OVERDUE_S = 600.0
"""After which everything is looked through even in a crowd, which may take 100 ms for 10,000 calls."""
_YOUNG, _MIDDLE, _NEVER = 700, 10, 2**31 - 1  # Python's own thresholds, but for the last
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def serve(configuration: Configuration, clock: Clock | None = None, times: Callable[[float], Times] = Times) -> int:
    """Run the gateway; return the exit status. Only the demo and the tests hand in a clock, and times of leases."""
    clock = clock or SystemClock()
    _keep_memory()
    _raise_file_limit(configuration.settings.limits.connections)
    writer = LineWriter()
    log = event_log(clock, writer)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(configuration, clock, times, writer))
    except asyncio.CancelledError:
        log.warning("ended at once", remedy="The next start lets bulk wait until calls of this one cannot be running.")
        return 1
    finally:
        writer.close()


async def _serve(configuration: Configuration, clock: Clock, times: Callable[[float], Times], lines: LineWriter) -> int:
    log = event_log(clock, lines)
    for warning in configuration.warnings:
        log.warning("configuration", warning=warning)
    stop = asyncio.Event()
    me = asyncio.current_task()
    assert me is not None

    def signalled() -> None:
        if stop.is_set():
            me.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        async with running(
            configuration,
            clock=clock,
            lines=lines,
            dice=Random(),  # noqa: S311  # jitter, no secret
            environ=os.environ,
            times=times,
        ) as gateway:
            loop.set_exception_handler(unforeseen(log, gateway.defect))
            loop.add_signal_handler(signal.SIGHUP, gateway.ask_reload)
            gc.freeze()  # modules and settings stay: no later collection needs to look through them
            gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
            gc.enable()
            async with asyncio.TaskGroup() as tasks:
                collecting = tasks.create_task(collect_in_quiet(lambda: gateway.proxy.in_flight))
                await stop.wait()
                collecting.cancel()
    except (OccupiedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


Unforeseen = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]


def unforeseen(log: EventLog, defect: Callable[[BaseException], None]) -> Unforeseen:
    """Return what logs trouble that the event loop has nobody to tell: the network's, or a defect of ours."""

    def told(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
            log.warning("connection lost", why=why, remedy="Look at the calls of this moment, and at the network.")
        else:
            defect(error or RuntimeError(context["message"]))

    return told


async def collect_in_quiet(in_flight: Callable[[], int]) -> None:
    """For ever: look through everything for garbage in cycles when Python would, but while few calls are in flight.

    The first time, some seconds after the start, what was loaded behind the listeners is kept out of later looks.
    """
    loop = asyncio.get_running_loop()
    looked_at, is_first = loop.time(), True
    while True:
        await asyncio.sleep(LOOK_S)
        is_due = is_first or gc.get_count()[2] > _MIDDLE
        if is_due and (in_flight() <= QUIET_CALLS or loop.time() - looked_at >= OVERDUE_S):
            gc.collect()
            if is_first:
                gc.freeze()
            looked_at, is_first = loop.time(), False


def _raise_file_limit(connections: int) -> None:
    """Take as many file descriptors as the system lets this process have, and say so where that is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < connections + SPARE_FILES:
        print(
            f"limits.connections: {connections} connections need {connections + SPARE_FILES} file descriptors, and "
            f"this process may have {hard}. Raise it (systemd: LimitNOFILE=, container: --ulimit nofile=, shell: "
            "ulimit -Hn), or lower limits.connections.",
            file=sys.stderr,
        )


def _keep_memory() -> None:
    """Have the C library keep what large bodies used: giving it back and faulting it in again costs a fifth of the CPU
    of a call of 200 kB (measured). At most 64 MiB more stay with the process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc; elsewhere the library's own rules hold
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
