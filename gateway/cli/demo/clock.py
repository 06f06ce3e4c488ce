"""Clocks that a hand moves, of a gateway in another process too: the demo's and the tests' alone.

The machine's clocks, moved by what stands in a small file that both processes map, so that they can be moved while the
gateway runs, and stay moved over its restarts.
"""

import mmap
import struct
from datetime import datetime, timedelta
from pathlib import Path

from gateway.app import SystemClock

_SHIFTS = struct.Struct("dd")


class HandClock:
    """Clocks moved by hand: the wall clock alone (`step`, as a person or a bad time server does), or both, as if time
    had passed (`skip_to`). Whoever opens the same file has the same clocks, over restarts too."""

    def __init__(self, file: Path) -> None:
        self._real = SystemClock()
        if not file.exists():
            file.write_bytes(_SHIFTS.pack(0.0, 0.0))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _SHIFTS.size)

    def boot(self) -> float:
        """Return the boot clock, with the time that was skipped."""
        return self._real.boot() + self._shifts()[1]

    def wall(self) -> datetime:
        """Return the wall clock, with its steps and with the time that was skipped."""
        return self._real.wall() + timedelta(seconds=sum(self._shifts()))

    def step(self, **much: float) -> None:
        """Set the wall clock forward or back; the boot clock does not notice."""
        shift, passed = self._shifts()
        self._set(shift + timedelta(**much).total_seconds(), passed)

    def set(self, wall: datetime) -> None:
        """Set the wall clock to an instant."""
        self.step(seconds=(wall - self.wall()).total_seconds())

    def skip_to(self, wall: datetime) -> None:
        """Let the time until an instant pass, on both clocks."""
        shift, passed = self._shifts()
        self._set(shift, passed + (wall - self.wall()).total_seconds())

    def _shifts(self) -> tuple[float, float]:
        shift, passed = _SHIFTS.unpack(self._map[:])
        return shift, passed

    def _set(self, shift: float, passed: float) -> None:
        self._map[:] = _SHIFTS.pack(shift, passed)
