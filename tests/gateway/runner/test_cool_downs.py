"""Cool-downs and ramps as one process follows them: by the boot clock, whatever steps the clocks make."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.log import EventLog
from gateway.runner.interruptions import Interruptions, Terms
from gateway.store.interface import Store
from gateway.store.sqlite import SqliteStore, open_sqlite
from policies.model import ALL_SOURCES, UNCLASSIFIED, Standing
from tests.conftest import JumpingClock
from tests.gateway.store import conftest as stores
from tests.gateway.store.postgres_server import emptied_database

postgres_url = stores.postgres_url
TERMS = Terms(cool_down=300.0, ramp_step=60.0, burst_faults=5, burst_calls=20, burst_time=60.0)


class SteppingClock(JumpingClock):
    """A clock whose wall can be set, the boot clock going on."""

    def step(self, **much: float) -> None:
        self._wall_shift += timedelta(**much)


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
async def store(tmp_path: Path, clock: SteppingClock) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(tmp_path / "store.sqlite", clock)
    await store.migrate()
    yield store
    await store.close()


class Followed:
    """One process that follows interruptions."""

    def __init__(self, store: Store, clock: SteppingClock) -> None:
        self.standing = Standing()
        self.lines: list[str] = []
        log = EventLog(clock, self.lines.append)
        self.room = Interruptions(store, clock, log, TERMS, lambda _source: 4, self._adopt)

    def _adopt(self, standing: Standing) -> None:
        self.standing = standing


async def test_a_cool_down_lasts_as_long_whatever_the_clocks_are_set_to(
    store: SqliteStore, clock: SteppingClock
) -> None:
    one = Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    await one.room.look()
    for hours in (1, -2, 1):
        clock.step(hours=hours)
        await one.room.look()
        assert 295 < one.room.cooling["onss"] <= 300
    clock.skip(seconds=301)
    clock.step(hours=-1)
    await one.room.look()
    assert one.room.cooling == {}
    assert one.standing.at_most == {"onss": 1}


async def test_who_starts_after_the_database_s_clock_jumped_does_not_end_a_cool_down(
    tmp_path: Path, postgres_url: str
) -> None:
    clock = SteppingClock(datetime.now(UTC))
    async with emptied_database(postgres_url) as url, stores.postgres(url, tmp_path) as kept:
        one = Followed(kept.store, clock)
        one.room.interrupt("onss", "test", 300.0)
        await one.room.look()
        clock.skip(seconds=100)
        await kept.skip(100)
        await kept.skip(3700)  # of which 3600 nobody has lived
        jumped = Followed(kept.store, clock)
        await jumped.room.look()
        assert jumped.room.cooling["onss"] == pytest.approx(200, abs=2)
        clock.skip(seconds=203)
        await jumped.room.look()
        assert jumped.room.cooling == {}
        assert jumped.standing.at_most == {"onss": 1}  # and the ramp begins at its begin
        clock.skip(seconds=125)
        again = Followed(kept.store, clock)
        await again.room.look()
        assert again.standing.at_most["onss"] == 3


async def test_who_starts_long_after_a_cool_down_does_not_begin_it_anew(tmp_path: Path, postgres_url: str) -> None:
    clock = SteppingClock(datetime.now(UTC))
    async with emptied_database(postgres_url) as url, stores.postgres(url, tmp_path) as kept:
        one = Followed(kept.store, clock)
        one.room.interrupt("onss", "test", 300.0)
        await one.room.look()
        clock.skip(seconds=330)
        await kept.skip(330)
        later = Followed(kept.store, clock)
        await later.room.look()
        assert later.room.cooling == {}
        assert later.standing.at_most == {"onss": 1}


async def test_another_process_follows_and_both_ramp_alike(store: SqliteStore, clock: SteppingClock) -> None:
    one, other = Followed(store, clock), Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    await one.room.look()
    clock.skip(seconds=100)
    await other.room.look()
    assert other.room.cooling["onss"] == pytest.approx(200, abs=1)
    clock.skip(seconds=201 + 125)
    await one.room.look()
    await other.room.look()
    assert one.standing.at_most == other.standing.at_most == {"onss": 3}
    other.room.noted(["onss"], technical=True)
    await other.room.look()
    await one.room.look()
    assert one.standing.at_most == other.standing.at_most == {"onss": 1}
    clock.skip(seconds=181)
    await one.room.look()
    await other.room.look()
    assert one.standing == other.standing == Standing()
    assert list((await store.controls()).interruptions) == []


async def test_a_person_ends_a_cool_down_early_and_the_ramp_follows(store: SqliteStore, clock: SteppingClock) -> None:
    one = Followed(store, clock)
    one.room.interrupt(ALL_SOURCES, "test", 300.0)
    await one.room.look()
    await store.end_interruption(ALL_SOURCES, author="anna", reason="they said so", skip=True)
    await one.room.look()
    assert one.room.cooling == {}
    assert one.standing.at_most == {ALL_SOURCES: 1}


async def test_a_burst_is_five_faults_and_half_of_the_last_calls(store: SqliteStore, clock: SteppingClock) -> None:
    one = Followed(store, clock)
    for number in range(14):
        one.room.noted(["onss"], technical=number % 3 == 2)
    assert one.room.cooling == {}
    for _ in range(6):
        one.room.noted(["onss", "cin"], technical=True)
    assert set(one.room.cooling) == {"onss", "cin"}
    before = len(one.lines)
    one.room.noted(["onss"], technical=True)
    assert len(one.lines) == before


async def test_of_what_is_not_classified_no_source_is_blamed(store: SqliteStore, clock: SteppingClock) -> None:
    one = Followed(store, clock)
    for _ in range(5):
        one.room.noted({"onss", "cin", UNCLASSIFIED}, technical=True)
    assert set(one.room.cooling) == {UNCLASSIFIED}


async def test_a_hold_is_told_and_ends_with_the_person_s_word(store: SqliteStore, clock: SteppingClock) -> None:
    one = Followed(store, clock)
    await store.hold("source:onss", author="anna", reason="they asked")
    await store.hold(ALL_SOURCES, author="bert", reason="a move")
    await one.room.look()
    assert one.standing.held == {"onss", ALL_SOURCES}
    await store.unhold(ALL_SOURCES, author="bert", reason="moved")
    await one.room.look()
    assert one.standing.held == {"onss"}


async def test_what_the_store_could_not_be_told_stands_and_is_told_when_it_is_back(
    store: SqliteStore, clock: SteppingClock, tmp_path: Path
) -> None:
    one = Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    assert 299 < one.room.cooling["onss"] <= 300  # the store knows nothing yet
    clock.skip(seconds=100)
    await one.room.look()
    (record,) = (await store.controls()).interruptions
    assert record.cool_s == pytest.approx(200, abs=1)


async def test_a_cool_down_that_was_over_before_the_store_was_back_is_followed_by_its_ramp(
    store: SqliteStore, clock: SteppingClock
) -> None:
    one, other = Followed(store, clock), Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    clock.skip(seconds=310)
    await one.room.look()
    await other.room.look()
    assert one.standing.at_most == other.standing.at_most == {"onss": 1}
    one.room.interrupt("cin", "test", 300.0)
    clock.skip(seconds=3600)
    await one.room.look()
    assert one.standing == Standing()


async def test_what_begins_while_the_store_is_read_is_not_taken_for_what_was_before(
    store: SqliteStore, clock: SteppingClock
) -> None:
    one = Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    await one.room.look()
    await store.end_interruption("onss", author="anna", reason="they said so", skip=True)
    await one.room.look()
    clock.skip(seconds=10)
    await store.restart_ramp("onss")
    looking = asyncio.create_task(one.room.look())
    await asyncio.sleep(0)
    one.room.interrupt("onss", "a burst", 300.0)
    await looking
    assert one.room.cooling["onss"] == pytest.approx(300, abs=1)
    await one.room.look()
    assert one.room.cooling["onss"] == pytest.approx(300, abs=1)


async def test_what_another_process_saw_begin_is_not_forgotten_with_what_is_over(
    store: SqliteStore, clock: SteppingClock
) -> None:
    one = Followed(store, clock)
    one.room.interrupt("onss", "test", 300.0)
    await one.room.look()
    clock.skip(seconds=300 + 181)
    looking = asyncio.create_task(one.room.look())
    await asyncio.sleep(0)
    await store.interrupt("onss", reason="a burst", cool_s=300.0)
    await looking
    assert one.room.cooling["onss"] == pytest.approx(300, abs=1)
    assert [record.reason for record in (await store.controls()).interruptions] == ["a burst"]
