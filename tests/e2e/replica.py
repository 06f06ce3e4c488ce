"""A gateway process of which the tests hold the clocks: `python -m tests.e2e.replica CONFIG CLOCK [R MARGIN]`.

It is `bcss-gateway serve` in all else: the same configuration, signals and exit statuses. The clocks are the machine's,
moved by what stands in a small file that both processes map, so that a test can step them while the gateway runs.
R and MARGIN, seconds, make leases of shared slots short (design, section 5).
"""

import mmap
import struct
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from gateway.app import SystemClock
from policies.leases import Times

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


def main() -> int:
    """Run a gateway; return the exit status."""
    from gateway.cli.reading import load
    from gateway.cli.serve import serve

    configuration = load(Path(sys.argv[1]))
    if configuration is None:
        return 2
    times: Callable[[float], Times] = Times
    if len(sys.argv) > 3:
        renew_s, margin_s = map(float, sys.argv[3:])
        times = partial(Times, renew_s=renew_s, margin_s=margin_s)
    return serve(configuration, HandClock(Path(sys.argv[2])), times)


if __name__ == "__main__":
    sys.exit(main())
