"""The window as it is now: what the calendar says of the clocks' readings, and how close to closing is too close.

Rules that always hold:
- While the wall clock disagrees with the boot clock, both readings must be open.
- The state is looked up again at each change, and at least every minute, since the wall clock may be set. In between
  it is remembered: a guard asks it before every write, and must cost next to nothing.
- Near the closing nothing starts that is not expected to end in time: the margin is the 99th percentile of what
  calls to the source took (the call timeout until 100 were seen), within bounds.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from policies.model import UNCLASSIFIED, Clock
from policies.windows import Calendar, WallWatch, p99_margin

REFRESH_S = 60.0
"""How often the window is looked at even when no change is due: the wall clock may be set."""
SAMPLES = 1000
"""Durations kept for each source: the 99th percentile of the last thousand calls."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What admission is told by the configuration. Times in seconds."""

    hold_s: float  #: T: call timeout and hold together
    call_timeout: float = 30.0
    closed: Literal["refuse", "park", "queue"] = "refuse"
    park_time: float = 600.0
    park_length: int = 10_000
    queue_time: float = 8.0
    queue_length: int = 1000
    margin_min: float = 1.0
    margin_max: float = 300.0


class Window:
    """Follows the calendar. `on_change` is called at each change of state, from the event loop or from `refresh`."""

    def __init__(self, calendar: Calendar, clock: Clock, terms: Terms, on_change: Callable[[], None]) -> None:
        self._calendar = calendar
        self._clock = clock
        self._terms = terms
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._watch = WallWatch()
        self._durations: dict[str, deque[float]] = {}
        self._margins: dict[str, timedelta] = {}
        self._looked_at = clock.wall()
        self.next_change: datetime | None = None
        self.is_open = self._look()
        self._timer = self._loop.call_later(self._pause(), self._tick)

    def adopt(self, calendar: Calendar, terms: Terms) -> None:
        """Follow another calendar from now on. Says nothing of a change: whoever calls looks at `is_open` itself."""
        self._calendar, self._terms = calendar, terms
        self._margins.clear()
        self.next_change = None
        self.is_open = self._look()
        self._timer.cancel()
        self._timer = self._loop.call_later(self._pause(), self._tick)

    def refresh(self) -> None:
        """Look at the clocks again."""
        was_open, self.is_open = self.is_open, self._look()
        if self.is_open is not was_open:
            self._on_change()

    def may_start(self, sources: Iterable[str], now: float) -> bool:
        """Say whether a call to `sources` may start at boot-clock time `now`."""
        readings = self._watch.readings(self._clock.wall(), now)
        if self.is_open and len(readings) == 1 and self._is_far_from_change(readings[0]):
            return True
        margin = max(map(self._margin, sources or (UNCLASSIFIED,)))
        return all(self._calendar.may_start(reading, margin) for reading in readings)

    def opens_at(self) -> datetime | None:
        """Return when bulk that may not start now may start: the next opening, after the next closing if it is open."""
        wall = self._clock.wall()
        if not self._calendar.is_open(wall):
            return self._calendar.next_opening(wall)
        closing = self._calendar.next_closing(wall)
        return self._calendar.next_opening(closing) if closing is not None else None

    def parks_until(self) -> datetime | None:
        """Return the opening that a call may wait for; None: it is to be refused."""
        opens_at = self.opens_at()
        if self._terms.closed != "park" or opens_at is None:
            return None
        return opens_at if self.seconds_to(opens_at) <= self._terms.park_time else None

    def seconds_to(self, instant: datetime) -> float:
        """Return how far an instant is away by the wall clock."""
        return (instant - self._clock.wall()).total_seconds()

    def is_open_by_wall_clock(self) -> bool:
        """Say what the calendar makes of the wall clock alone, for the count of what went out in office hours."""
        return self._calendar.is_open(self._clock.wall())

    def learn(self, source: str, took_s: float) -> None:
        """Note how long a call to a source took."""
        self._durations.setdefault(source, deque(maxlen=SAMPLES)).append(took_s)
        self._margins.pop(source, None)

    def close(self) -> None:
        """Stop following."""
        self._timer.cancel()

    def _look(self) -> bool:
        wall = self._clock.wall()
        readings = self._watch.readings(wall, self._clock.boot())
        if self.next_change is None or not self._looked_at <= wall < self.next_change:
            self.next_change = self._calendar.next_change(wall)
        self._looked_at = wall
        return all(self._calendar.is_open(reading) for reading in readings)

    def _is_far_from_change(self, reading: datetime) -> bool:
        if reading < self._looked_at:  # set back: what is remembered says nothing
            return False
        return self.next_change is None or (self.next_change - reading).total_seconds() > self._terms.margin_max

    def _margin(self, source: str) -> timedelta:
        margin = self._margins.get(source)
        if margin is None:
            terms = self._terms
            seen = tuple(self._durations.get(source, ()))
            margin = p99_margin(seen, terms.call_timeout, terms.margin_min, terms.margin_max)
            self._margins[source] = margin
        return margin

    def _pause(self) -> float:
        if self.next_change is None:
            return REFRESH_S
        return min(REFRESH_S, max(0.001, self.seconds_to(self.next_change)))

    def _tick(self) -> None:
        self.refresh()
        self._timer = self._loop.call_later(self._pause(), self._tick)
