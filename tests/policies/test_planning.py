"""When a run ends: only open hours count, in their true length."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from policies.planning import ends_at
from policies.windows import Calendar, ClosedHours

BRUSSELS = ZoneInfo("Europe/Brussels")
OFFICE = ClosedHours(frozenset(range(5)), time(8), time(17))
CALENDAR = Calendar(BRUSSELS, (OFFICE,))
ALWAYS = Calendar(BRUSSELS, ())
NEVER = Calendar(BRUSSELS, (ClosedHours(frozenset(range(7)), time(), time(23, 59, 59, 999999)),))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BRUSSELS)


def test_in_an_open_window_it_goes_on_at_once() -> None:
    assert ends_at(CALENDAR, at("2026-11-24T20:00"), 3600, 1.0) == at("2026-11-24T21:00")


def test_in_office_hours_it_begins_at_five() -> None:
    assert ends_at(CALENDAR, at("2026-11-24T10:00"), 3600, 1.0) == at("2026-11-24T18:00")


def test_what_does_not_fit_into_a_night_goes_on_in_the_next() -> None:
    assert ends_at(CALENDAR, at("2026-11-24T17:00"), 16 * 3600, 1.0) == at("2026-11-25T18:00")


def test_the_night_in_which_clocks_go_back_is_an_hour_longer() -> None:
    whole = 63 * 3600  # Friday 17:00 to Monday 08:00
    assert ends_at(CALENDAR, at("2026-11-20T17:00"), whole, 1.0) == at("2026-11-23T08:00")
    assert ends_at(CALENDAR, at("2026-10-23T17:00"), whole, 1.0) == at("2026-10-26T07:00")
    assert ends_at(CALENDAR, at("2026-03-27T17:00"), whole, 1.0) == at("2026-03-30T18:00")


def test_without_closed_hours_only_the_pace_counts() -> None:
    assert ends_at(ALWAYS, at("2026-11-24T10:00"), 10_000_000, 100.0) == at("2026-11-24T10:00") + timedelta(
        seconds=100_000
    )


def test_never_is_said_as_none() -> None:
    assert ends_at(CALENDAR, at("2026-11-24T10:00"), 1, 0.0) is None
    assert ends_at(NEVER, at("2026-11-24T10:00"), 10_000_000, 1.0) is None
    closed = Calendar(
        BRUSSELS, (), closed_dates=frozenset(at("2026-01-01T00:00").date() + timedelta(n) for n in range(900))
    )
    assert ends_at(closed, at("2026-11-24T10:00"), 1, 1.0) is None
    assert ends_at(CALENDAR, at("2026-11-24T10:00"), 10**12, 1.0) is None
    assert ends_at(CALENDAR, at("2026-11-24T10:00"), 399 * 86400, 1.0) is None
    assert ends_at(ALWAYS, at("2026-11-24T10:00"), 10**12, 1.0) is None
    assert ends_at(ALWAYS, at("2026-11-24T10:00"), 399 * 86400, 1.0) is not None
    assert ends_at(CALENDAR, at("2027-11-24T10:00"), 10**400, 1e-300) is None


def test_what_is_done_ends_now() -> None:
    assert ends_at(CALENDAR, at("2026-11-24T10:00"), 0, 0.0) == at("2026-11-24T10:00")


def test_an_end_past_the_horizon_is_not_foreseen_though_its_window_opens_before() -> None:
    opening = at("2027-12-20T00:00")  # 391 days ahead, the first in this calendar, and open for ever after
    late = Calendar(
        BRUSSELS, (), closed_dates=frozenset(at("2026-01-01T00:00").date() + timedelta(n) for n in range(718))
    )
    assert ends_at(late, at("2026-11-24T10:00"), 3600, 1.0) == opening.replace(hour=1)
    assert ends_at(late, at("2026-11-24T10:00"), 20 * 86400, 1.0) is None


@given(st.integers(0, 5_000_000), st.floats(0.5, 50), st.integers(0, 60 * 24 * 20))
def test_as_many_open_seconds_lie_before_the_end_as_are_needed(left: int, pace: float, minutes: int) -> None:
    now = at("2026-10-20T00:00") + timedelta(minutes=minutes)
    end = ends_at(CALENDAR, now, left, pace)
    assert end is not None
    counted, here = timedelta(), now.astimezone(UTC)
    while here < end.astimezone(UTC):
        change = CALENDAR.next_change(here)
        assert change is not None
        until = min(change.astimezone(UTC), end.astimezone(UTC))
        counted += (until - here) if CALENDAR.is_open(here) else timedelta()
        here = until
    assert abs(counted.total_seconds() - left / pace) < 0.001
