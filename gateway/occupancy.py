"""What a restart must not forget: `data_dir` holds a lock, and which calls may still be running.

A source goes on working when the process that asked it is gone. So the file says "unclean" while a gateway runs;
only an orderly stop replaces that by the list of calls that may still be running, each until a time of the boot
clock. Whoever starts and finds no such list, or one of another boot, knows nothing, and lets bulk wait until nothing
can be running any more.

Rules that always hold:
- One process at a time: the lock is the kernel's (flock) and ends with the process, however it ends.
- A file is written whole or not at all, and is on disk before anybody relies on it (fsync of file and directory).
- What cannot be read counts as unknown, never as "nothing is running".

The file holds names of sources and times, nothing of any message. It must lie on a local file system: network file
systems may grant a lock twice.
"""

import fcntl
import json
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Entry = tuple[frozenset[str], float]
"""Sources that may still be working on one call, and until when, by the boot clock, seconds."""


class OccupiedError(Exception):
    """Another process has this `data_dir`."""


@dataclass(frozen=True, slots=True)
class StartState:
    """What the process before this one left behind."""

    cooling_until: float | None  #: boot clock; until then no bulk call may start; None: it is known what is running
    occupied: tuple[Entry, ...] = ()
    why: str = ""  #: why bulk has to wait, for the log
    unclean: bool = False  #: an earlier process did not stop in order: an interruption, after which bulk is ramped


def boot_id() -> str:
    """Return what changes with each boot of the machine: times of the boot clock mean nothing beyond it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux, or hidden: no two starts then count as of one boot, and bulk waits T at each
        return ""


class Occupancy:
    """The lock and the file of one `data_dir`."""

    def __init__(self, data_dir: Path, boot: str) -> None:
        self._dir = data_dir
        self._file = data_dir / "busy_until.json"
        self._boot = boot
        self._lock: int | None = None
        self._writing = threading.Lock()  # a reload writes in a thread of its own, which a stop does not wait for
        self._is_over = False  # the last word was written
        self._hold_s = 0.0  # what the file says
        self._unknown_until = 0.0  # until when calls may be running of which nothing is known, boot clock

    def acquire(self) -> None:
        """Take the lock; make the directory when it is missing.

        Raises:
            OccupiedError: another process has it.
            OSError: the directory cannot be made or written.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OccupiedError(
                f"{self._dir}: another gateway runs with this data_dir. One process keeps the caps: stop the "
                "other one, or give this one a data_dir of its own and divide the caps with `share:`."
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Give the lock back. Harmless when it was not taken."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_and_mark(self, hold_s: float, now: float, cool_down_s: float = 0.0) -> StartState:
        """Read what was left behind, and mark the file unclean until `write_clean`.

        Args:
            hold_s: the T in force from now on.
            now: the boot clock.
            cool_down_s: what an interruption asks for; an unclean stop is one.
        """
        state = self._state(hold_s, now)
        self._unknown_until = state.cooling_until or 0.0
        # A crash before the wait is over must not shorten what the process before this one left: its T stays in force.
        longest = max([hold_s, (state.cooling_until or now) - now, *(until - now for _, until in state.occupied)])
        if state.unclean and state.cooling_until is not None:
            state = replace(state, cooling_until=max(state.cooling_until, now + cool_down_s))
        self._hold_s = longest
        self._write({"boot": self._boot, "hold_s": longest, "clean": False})
        return state

    def raise_hold(self, hold_s: float) -> None:
        """Note a longer T, before it is in force: a crash from then on leaves calls that may run for so long."""
        with self._writing:
            if hold_s > self._hold_s and not self._is_over:
                self._hold_s = hold_s
                self._write({"boot": self._boot, "hold_s": hold_s, "clean": False})

    def write_clean(self, entries: Iterable[Entry], hold_s: float) -> None:
        """Say what may still be running, after an orderly stop: of this process, and of an unclean one before it."""
        busy = [{"sources": sorted(sources), "until": until} for sources, until in entries]
        unknown = {"unknown_until": self._unknown_until}
        with self._writing:
            self._is_over = True
            self._write({"boot": self._boot, "hold_s": hold_s, "clean": True, "busy": busy, **unknown})

    def _state(self, hold_s: float, now: float) -> StartState:
        try:
            left = json.loads(self._file.read_text())
            if not isinstance(left, dict):
                raise TypeError
            old_hold_s = float(left["hold_s"])
            if not 0 <= old_hold_s < math.inf:
                raise ValueError
        except FileNotFoundError:
            return StartState(now + hold_s, why="nothing is known of an earlier process")
        except (OSError, ValueError, KeyError, TypeError):
            return StartState(now + hold_s, why="what an earlier process left cannot be read", unclean=True)
        until = now + max(hold_s, old_hold_s)
        if left.get("clean") is not True:
            return StartState(until, why="the earlier process did not stop in order", unclean=True)
        if not self._boot or left.get("boot") != self._boot:
            return StartState(until, why="the earlier process ran before the machine was started")
        try:
            return _left_in_order(left, now)
        except (ValueError, KeyError, TypeError):
            return StartState(until, why="what an earlier process left cannot be read")

    def _write(self, content: dict[str, Any]) -> None:
        fresh = self._file.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)
        directory = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _left_in_order(left: dict[str, Any], now: float) -> StartState:
    busy, unknown_until = tuple(_entries(left["busy"], now)), float(left.get("unknown_until", 0.0))
    if not math.isfinite(unknown_until):
        raise ValueError
    if unknown_until > now:  # a stop in order soon after one that was not
        return StartState(unknown_until, busy, why="a process before the last one did not stop in order")
    return StartState(None, busy)


def _entries(busy: Iterable[dict[str, Any]], now: float) -> Iterable[Entry]:
    for one in busy:
        until = float(one["until"])
        if not math.isfinite(until):
            raise ValueError
        if until > now:
            yield frozenset(map(str, one["sources"])), until
