"""When bulk may start: a pure function of the instant.

The BCSS's second recommendation: mass calls not in working hours, Monday to Friday, 08:00 to 17:00. A calendar knows
the closed hours of the week in local time, days that are an exception, and time-boxed exceptions with an owner and a
reason.

Rules that always hold:
- Intervals are half-open: closed from 08:00:00 included to 17:00:00 excluded.
- `next_change` is exact, and the state is constant until then, through both nights when clocks change.
- Local times become instants one by one and are compared in UTC: subtracting local times would be an hour wrong over
  a change of season.

Never asks what time it is, and never consults the host's zone files: both come in.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo

HORIZON_DAYS = 400
"""How far ahead a change is looked for: more than a year, so that a calendar that never opens is found out."""
JUMP_S = 5.0
"""A wall clock that moves by more than this against the boot clock has jumped (design section 2, promise 4)."""
SAMPLES_FOR_P99 = 100
"""With fewer observed calls a 99th percentile says nothing."""


@dataclass(frozen=True, slots=True)
class ClosedHours:
    """Hours of the week in which bulk may not start: `weekdays` (Monday is 0), local time, half-open."""

    weekdays: frozenset[int]
    start: time
    end: time


@dataclass(frozen=True, slots=True)
class OpenException:
    """A written leave to start bulk in closed hours, half-open, between two aware instants."""

    start: datetime
    end: datetime
    owner: str
    reason: str

    def covers(self, at: datetime) -> bool:
        """Say whether the exception is in force."""
        return self.start <= at < self.end


@dataclass(frozen=True)
class Calendar:
    """The windows of one institution. `open_dates` opens a weekday, `closed_dates` closes a whole day, and outranks
    it."""

    zone: tzinfo
    closed: tuple[ClosedHours, ...]
    open_dates: frozenset[date] = frozenset()
    closed_dates: frozenset[date] = frozenset()
    exceptions: tuple[OpenException, ...] = field(default=())

    def is_open(self, at: datetime) -> bool:
        """Say whether bulk may start at an aware instant."""
        if self.exception_at(at) is not None:
            return True
        local = at.astimezone(self.zone)
        day = local.date()
        if day in self.closed_dates:
            return False
        return not any(start <= at.astimezone(UTC) < end for start, end in self._closed_intervals(day))

    def exception_at(self, at: datetime) -> OpenException | None:
        """Return the exception in force, if there is one."""
        return next((exception for exception in self.exceptions if exception.covers(at)), None)

    def next_change(self, at: datetime) -> datetime | None:
        """Return the next instant, later than `at`, at which the state differs from the one at `at`; None: not in
        400 days."""
        state = self.is_open(at)
        for instant in self._boundaries(at):
            if self.is_open(instant) is not state:
                return instant.astimezone(self.zone)
        return None

    def next_opening(self, at: datetime) -> datetime | None:
        """Return when bulk may start next: `at` itself while it may; None: not in 400 days."""
        return at.astimezone(self.zone) if self.is_open(at) else self.next_change(at)

    def next_closing(self, at: datetime) -> datetime | None:
        """Return when bulk may start no more: `at` itself while it may not; None: not in 400 days."""
        return self.next_change(at) if self.is_open(at) else at.astimezone(self.zone)

    def may_start(self, at: datetime, margin: timedelta) -> bool:
        """Say whether a call that takes up to `margin` may start: the window is open, and stays so for that long."""
        if not self.is_open(at):
            return False
        closing = self.next_closing(at)
        return closing is None or closing.astimezone(UTC) - at.astimezone(UTC) > margin

    def _boundaries(self, at: datetime) -> Iterator[datetime]:
        """Yield, in order, every instant after `at` at which the state might change."""
        own = sorted(edge for e in self.exceptions for edge in (e.start.astimezone(UTC), e.end.astimezone(UTC)))
        first = at.astimezone(self.zone).date()
        now = at.astimezone(UTC)
        for offset in range(HORIZON_DAYS):
            day = first + timedelta(days=offset)
            midnight, next_midnight = self._instant(day, time()), self._instant(day + timedelta(days=1), time())
            edges = {midnight, *(edge for interval in self._closed_intervals(day) for edge in interval)}
            edges.update(own[bisect_left(own, midnight) : bisect_left(own, next_midnight)])
            yield from (edge for edge in sorted(edges) if edge > now)

    def _closed_intervals(self, day: date) -> list[tuple[datetime, datetime]]:
        if day in self.open_dates:
            return []
        return [
            (self._instant(day, hours.start), self._instant(day, hours.end))
            for hours in self.closed
            if day.weekday() in hours.weekdays
        ]

    def _instant(self, day: date, at: time) -> datetime:
        return datetime.combine(day, at, self.zone).astimezone(UTC)


class WallWatch:
    """Tells how far the wall clock is to be believed.

    Between two readings both clocks should have advanced alike. Drift (a disciplined clock is slewed) is followed.
    After a jump of more than 5 s nobody knows which is right, the wall clock or what the boot clock makes of its
    earlier reading: both count, until they agree again or somebody `accept`s the wall clock.
    """

    def __init__(self) -> None:
        self._offset: timedelta | None = None

    def readings(self, wall: datetime, boot_s: float) -> tuple[datetime, ...]:
        """Return the instants that may be now: one, or two after a jump. All must be open for bulk to start."""
        offset = wall.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC) - timedelta(seconds=boot_s)
        if self._offset is None or abs((offset - self._offset).total_seconds()) <= JUMP_S:
            self._offset = offset
            return (wall,)
        return wall, wall - (offset - self._offset)

    @property
    def has_reference(self) -> bool:
        """Whether the clocks have been read before."""
        return self._offset is not None

    def accept(self) -> None:
        """Believe the wall clock from its next reading on."""
        self._offset = None


def p99_margin(durations: Sequence[float], fallback_s: float, lowest_s: float, highest_s: float) -> timedelta:
    """Return how long before closing the last call may start, so that it is expected to end in time.

    The 99th percentile of the observed durations (seconds) once 100 of them exist, before that `fallback_s`; bounded.
    """
    expected = fallback_s
    if len(durations) >= SAMPLES_FOR_P99:
        expected = sorted(durations)[min(len(durations) - 1, len(durations) * 99 // 100)]
    return timedelta(seconds=min(max(expected, lowest_s), highest_s))
