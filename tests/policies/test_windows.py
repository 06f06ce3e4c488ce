"""When bulk may start: boundaries, both nights when clocks change, exceptions, jumps of the wall clock."""

from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.windows import Calendar, ClosedHours, OpenException, WallWatch, p99_margin

with (files("tzdata") / "zoneinfo" / "Europe" / "Brussels").open("rb") as octets:
    ZONE = ZoneInfo.from_file(octets, key="Europe/Brussels")
OFFICE = (ClosedHours(frozenset(range(5)), time(8), time(17)),)
PLAIN = Calendar(ZONE, OFFICE)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZONE)


@pytest.mark.parametrize(
    ("instant", "is_open"),
    [
        ("2026-11-24T07:59:59.999999", True),
        ("2026-11-24T08:00", False),
        ("2026-11-24T16:59:59.999999", False),
        ("2026-11-24T17:00", True),
        ("2026-11-28T12:00", True),  # Saturday
        ("2026-11-29T12:00", True),  # Sunday
        ("2026-11-30T08:00", False),  # Monday
    ],
)
def test_office_hours_are_half_open(instant: str, is_open: bool) -> None:
    assert PLAIN.is_open(at(instant)) is is_open
    assert PLAIN.is_open(at(instant).astimezone(UTC)) is is_open


@pytest.mark.parametrize(
    ("instant", "opens", "closes"),
    [
        ("2026-11-24T09:30", "2026-11-24T17:00", "2026-11-24T09:30"),
        ("2026-11-27T17:00", "2026-11-27T17:00", "2026-11-30T08:00"),
        ("2026-03-27T18:00", "2026-03-27T18:00", "2026-03-30T08:00"),  # over the night in March
        ("2026-10-23T18:00", "2026-10-23T18:00", "2026-10-26T08:00"),  # and the one in October
    ],
)
def test_the_next_opening_and_closing_are_exact(instant: str, opens: str, closes: str) -> None:
    assert PLAIN.next_opening(at(instant)) == at(opens)
    assert PLAIN.next_closing(at(instant)) == at(closes)


def test_a_weekend_over_a_change_of_season_is_an_hour_shorter_or_longer() -> None:
    """Differences are taken in UTC: local times subtract to 63 hours in each case."""
    lengths = []
    for friday, monday in (("2026-03-27T17:00", "2026-03-30T08:00"), ("2026-10-23T17:00", "2026-10-26T08:00")):
        closing = PLAIN.next_closing(at(friday))
        assert closing == at(monday)
        lengths.append((closing.astimezone(UTC) - at(friday).astimezone(UTC)) / timedelta(hours=1))
        assert PLAIN.may_start(at(friday), timedelta(hours=61))
        assert PLAIN.may_start(at(friday), timedelta(hours=62, minutes=30)) is (lengths[-1] > 62.5)
    assert lengths == [62, 64]


@given(
    instant=st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),
    share=st.floats(0, 0.999),
    opened=st.sets(st.dates(date(2026, 1, 1), date(2026, 12, 31)), max_size=3),
    closed=st.sets(st.dates(date(2026, 1, 1), date(2026, 12, 31)), max_size=3),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 1), timezones=st.just(UTC)),
)
def test_the_state_is_constant_until_the_next_change_and_differs_there(
    instant: datetime, share: float, opened: set[date], closed: set[date], start: datetime
) -> None:
    leave = OpenException(start, start + timedelta(hours=30), "someone", "because")
    calendar = Calendar(ZONE, OFFICE, frozenset(opened), frozenset(closed), (leave,))
    change = calendar.next_change(instant)
    assert change is not None
    assert change > instant
    between = instant + (change.astimezone(UTC) - instant) * share
    assert calendar.is_open(between) is calendar.is_open(instant)
    assert calendar.is_open(change) is not calendar.is_open(instant)


def test_dates_may_be_opened_and_closed() -> None:
    calendar = Calendar(ZONE, OFFICE, frozenset({date(2026, 12, 25)}), frozenset({date(2026, 12, 26)}))
    assert calendar.is_open(at("2026-12-25T10:00"))
    assert not calendar.is_open(at("2026-12-26T03:00"))
    assert calendar.next_closing(at("2026-12-25T10:00")) == at("2026-12-26T00:00")
    assert calendar.next_opening(at("2026-12-26T10:00")) == at("2026-12-27T00:00")


def test_an_exception_opens_its_span_and_says_whose_it_is() -> None:
    leave = OpenException(at("2026-11-24T09:00"), at("2026-11-24T10:00"), "someone", "agreed")
    calendar = Calendar(ZONE, OFFICE, closed_dates=frozenset({date(2026, 11, 24)}), exceptions=(leave,))
    assert calendar.exception_at(at("2026-11-24T09:59")) is leave
    assert calendar.is_open(at("2026-11-24T09:00"))
    assert not calendar.is_open(at("2026-11-24T10:00"))
    assert calendar.exception_at(at("2026-11-24T10:00")) is None


def test_a_calendar_that_never_changes_says_so() -> None:
    always = Calendar(ZONE, ())
    assert always.next_change(at("2026-11-24T09:00")) is None
    assert always.may_start(at("2026-11-24T09:00"), timedelta(days=1000))
    never = Calendar(ZONE, (ClosedHours(frozenset(range(7)), time(0), time(23, 59, 59, 999999)),))
    assert not never.may_start(at("2026-11-24T09:00"), timedelta())


def test_nothing_starts_that_is_not_expected_to_end_before_closing() -> None:
    assert PLAIN.may_start(at("2026-11-24T07:59:29"), timedelta(seconds=30))
    assert not PLAIN.may_start(at("2026-11-24T07:59:30"), timedelta(seconds=30))


def test_after_a_jump_of_the_wall_clock_both_readings_count() -> None:
    watch = WallWatch()
    wall = at("2026-11-24T07:00")
    assert watch.readings(wall, 100.0) == (wall,)
    drifted = wall + timedelta(seconds=64)
    assert watch.readings(drifted, 160.0) == (drifted,)
    jumped = wall + timedelta(hours=10)
    first, second = watch.readings(jumped, 220.0)
    assert first == jumped
    assert second == wall + timedelta(seconds=124)
    back = wall + timedelta(seconds=184)
    assert watch.readings(back, 280.0) == (back,)


def test_a_person_may_accept_the_wall_clock() -> None:
    watch = WallWatch()
    assert not watch.has_reference
    watch.readings(at("2026-11-24T07:00"), 0.0)
    assert watch.has_reference
    watch.accept()
    assert len(watch.readings(at("2026-11-24T20:00"), 1.0)) == 1


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], 30.0),
        ([9.0] * 99, 30.0),
        ([1.0] * 99 + [50.0], 50.0),
        ([2.0] * 99 + [7.0] * 101, 7.0),
        ([0.001] * 100, 1.0),
        ([9999.0] * 100, 300.0),
    ],
)
def test_the_margin_is_the_99th_percentile_within_bounds(durations: list[float], expected: float) -> None:
    assert p99_margin(durations, 30.0, 1.0, 300.0) == timedelta(seconds=expected)
