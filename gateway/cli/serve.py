"""`bcss-gateway serve`: runs the gateway in an event loop, and turns signals into an orderly stop.

The first SIGTERM or SIGINT drains (see `gateway.app`); the second ends the process at once. The file in `data_dir`
then still says "unclean", so that the next start waits until calls of this process cannot be running any more.
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

import uvloop

from gateway.app import SystemClock, running
from gateway.config import Configuration
from gateway.log import LineWriter, event_log
from gateway.occupancy import OccupiedError
from policies.leases import Times
from policies.model import Clock

SPARE_FILES = 1024
"""File descriptors besides those of clients: upstreams, files, the event loop."""
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
            loop.add_signal_handler(signal.SIGHUP, gateway.ask_reload)
            gc.freeze()  # modules and settings stay: no later collection needs to look through them
            gc.enable()
            await stop.wait()
    except (OccupiedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


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
