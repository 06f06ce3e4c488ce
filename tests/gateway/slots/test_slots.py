"""Cancellation, timeouts, the window and the pace: no slot is lost, none is given twice, everybody gets an answer."""

import asyncio
import random
from datetime import datetime, time, timedelta

import pytest

from gateway.log import EventLog
from gateway.slots import RefusedError, Slots, Terms
from policies.model import Reason, Slot, Source
from policies.pools import Reading, layout
from policies.windows import Calendar, ClosedHours
from tests.conftest import BRUSSELS

SOURCES = [Source("bcss", base=True), Source("onss"), Source("cin")]
OFFICE = (ClosedHours(frozenset(range(5)), time(8), time(17)),)
ONSS, NEEDS = frozenset({"onss"}), ("onss",)

pytestmark = pytest.mark.looptime


class LoopClock:
    """Both clocks go with the event loop, whose time jumps; the wall clock may be set apart."""

    def __init__(self, start: str) -> None:
        self.start = datetime.fromisoformat(start).replace(tzinfo=BRUSSELS)
        self.set_by = timedelta()
        self._loop = asyncio.get_running_loop()
        self._zero = self._loop.time()

    def boot(self) -> float:
        return 1000.0 + self._loop.time() - self._zero

    def wall(self) -> datetime:
        return self.start + timedelta(seconds=self._loop.time() - self._zero) + self.set_by


def made(start: str = "2026-11-24T20:00", *, clock: LoopClock | None = None, **given: object) -> Slots:
    pools = layout(SOURCES, Reading.DEFAULT, rates=given.pop("rates", {}), slots=given.pop("slots", {}))
    occupied, cooling = given.pop("occupied", ()), given.pop("cooling_until", None)
    known = given.pop("standing_known", True)
    terms = Terms(hold_s=60.0, **given)
    clock = clock or LoopClock(start)
    log = EventLog(clock, lambda _line: None)
    calendar = Calendar(BRUSSELS, OFFICE)
    return Slots(pools, calendar, clock, terms, log, cooling_until=cooling, occupied=occupied, standing_known=known)


async def call(slots: Slots, seconds: float = 1.0, *, owner: str = "a") -> float:
    """Make a call that takes some time; return when its slot was had."""
    clock: LoopClock = slots._clock
    async with slots.slot(ONSS, owner) as slot:
        assert slot.may_start(clock.boot())
        had = clock.boot() - 1000.0
        await asyncio.sleep(seconds)
        slot.settle()
        return had


async def refused(slots: Slots, *, owner: str = "a") -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        await call(slots, owner=owner)
    return raised.value


@pytest.mark.parametrize("seed", range(20))
async def test_no_slot_is_lost_whatever_becomes_of_the_calls(seed: int) -> None:
    dice = random.Random(seed)
    slots = made(queue_time=0.5, queue_length=50)
    running = peak = 0

    async def one() -> None:
        nonlocal running, peak
        async with slots.slot(ONSS, dice.choice("abc")):
            running += 1
            peak = max(peak, running)
            try:
                await asyncio.sleep(dice.random() / 5)
                if dice.random() < 0.2:
                    raise ConnectionResetError
            finally:
                running -= 1

    tasks = []
    for _ in range(80):
        tasks.append(asyncio.get_running_loop().create_task(one()))
        await asyncio.sleep(0)
        if dice.random() < 0.4:
            dice.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        r is None or isinstance(r, RefusedError | ConnectionResetError | asyncio.CancelledError) for r in results
    )
    assert (running, peak) == (0, 2)
    state = slots.statistics().pools["onss"]
    assert (state.in_use, state.waiting, slots.statistics().violations) == (0, 0, 0)
    slots.close()


async def test_a_waiter_cancelled_in_the_instant_of_its_grant_passes_the_slot_on() -> None:
    slots, served = made(slots={"onss": 1}), []

    async def one(name: str) -> None:
        async with slots.slot(ONSS, "a"):
            served.append(name)

    loop = asyncio.get_running_loop()
    async with slots.slot(ONSS, "a"):
        b, c = loop.create_task(one("b")), loop.create_task(one("c"))
        await asyncio.sleep(0.01)
    b.cancel()  # granted by the exit above, not yet woken
    await asyncio.wait({b, c})
    assert b.cancelled()
    assert served == ["c"]
    slots.close()


async def test_a_slot_outlives_its_block_until_it_is_settled_or_t_has_passed() -> None:
    slots, kept = made(), []
    clock: LoopClock = slots._clock
    for _ in range(2):
        async with slots.slot(ONSS, "a") as slot:
            assert slot.may_start(clock.boot())
            kept.append(slot)
    assert slots.statistics().pools["onss"].in_use == 2
    assert {until for _, until in slots.held()} == {kept[0].busy_until}
    kept[0].settle()
    assert slots.statistics().pools["onss"].in_use == 1
    await asyncio.sleep(59)
    assert slots.statistics().pools["onss"].in_use == 1
    await asyncio.sleep(2)
    assert slots.statistics().pools["onss"].in_use == 0
    kept[1].settle()
    assert slots.held() == ()
    slots.close()


async def test_a_block_that_lasts_and_lasts_keeps_its_slot_no_longer_than_t() -> None:
    """Its client stands still in the middle of an answer that was given up: that is no use of the source."""
    slots = made(slots={"onss": 1}, queue_time=100.0)
    clock: LoopClock = slots._clock
    async with slots.slot(ONSS, "a") as slot:
        assert slot.may_start(clock.boot())
        await asyncio.sleep(30)
        assert slot.may_start(clock.boot()), "more is written"
        assert await call(slots) == pytest.approx(90.0, abs=0.1)
        assert not slot.may_start(clock.boot()), "it is another's"
    assert slots.statistics().pools["onss"].in_use == 0
    assert slots.statistics().violations == 0
    slots.close()


async def test_what_an_earlier_process_left_running_counts_until_its_time() -> None:
    slots = made(occupied=[(ONSS, 1030.0), (frozenset({"gone"}), 1010.0)], queue_time=100.0)
    assert slots.statistics().pools["onss"].in_use == 1
    assert slots.statistics().pools["unclassified"].in_use == 1
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(call(slots, 50.0)) for _ in range(2)]
    assert [round(task.result()) for task in asked] == [0, 30]
    assert loop.time() > 0
    slots.close()


async def test_after_an_unclean_start_bulk_waits() -> None:
    slots = made(cooling_until=1060.0)
    error = await refused(slots)
    assert error.reason is Reason.COOLING_DOWN
    assert error.retry_in_s is not None
    assert round(error.retry_in_s) == 60
    assert slots.would_refuse(ONSS) is Reason.COOLING_DOWN
    await asyncio.sleep(61)
    await call(slots)
    slots.close()


async def test_in_office_hours_bulk_is_refused_with_the_opening() -> None:
    slots = made("2026-11-24T09:30")
    error = await refused(slots)
    assert error.reason is Reason.OFFICE_HOURS
    assert error.opens_at == datetime(2026, 11, 24, 17, tzinfo=BRUSSELS)
    assert slots.would_refuse(ONSS) is Reason.OFFICE_HOURS
    slots.close()


async def test_bulk_may_park_before_an_opening_that_is_near() -> None:
    slots = made("2026-11-24T16:55", closed="park", park_time=600.0)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(call(slots, 20.0)) for _ in range(6)]
    assert [round(task.result()) for task in asked] == [300, 300, 320, 320, 340, 340]
    slots.close()
    too_early = made("2026-11-24T16:45", closed="park", park_time=600.0)
    assert (await refused(too_early)).reason is Reason.OFFICE_HOURS
    too_early.close()


async def test_who_waits_at_closing_is_told_and_nothing_starts_that_cannot_end_in_time() -> None:
    slots = made("2026-11-24T07:59", queue_time=600.0)
    clock: LoopClock = slots._clock
    held: list[Slot] = []
    for _ in range(2):
        async with slots.slot(ONSS, "a") as slot:
            assert slot.may_start(clock.boot())
            held.append(slot)
    error = await refused(slots)
    assert error.reason is Reason.OFFICE_HOURS
    assert clock.wall().time() >= time(8)
    assert not held[0].may_start(clock.boot())
    slots.close()
    late = made("2026-11-24T07:59:45")  # 15 s left, and a call may take 30 s
    error = await refused(late)
    assert error.reason is Reason.OFFICE_HOURS
    assert error.opens_at == datetime(2026, 11, 24, 17, tzinfo=BRUSSELS)
    late.close()


async def test_calls_that_are_known_to_be_quick_may_start_later() -> None:
    slots = made("2026-11-24T07:57")
    for _ in range(100):
        await call(slots, 0.1)
    await asyncio.sleep(165 - 10)
    await call(slots, 0.1)
    slots.close()


async def test_when_the_wall_clock_jumps_both_readings_must_be_open() -> None:
    slots = made("2026-11-24T09:30")
    clock: LoopClock = slots._clock
    clock.set_by = timedelta(hours=10)  # says 19:30; the boot clock says it is still 09:30
    assert (await refused(slots)).reason is Reason.OFFICE_HOURS
    await asyncio.sleep(8 * 3600)  # now it is 17:30 by one and 03:30 by the other
    await call(slots)
    slots.close()


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    slots = made(queue_time=8.0)
    await call(slots, 10.0)
    async with asyncio.TaskGroup() as tasks:
        busy = [tasks.create_task(call(slots, 10.0)) for _ in range(2)]
        await asyncio.sleep(0.01)
        asked_at = asyncio.get_running_loop().time()
        first = asyncio.get_running_loop().create_task(refused(slots))  # waits in vain, but not at once
        await asyncio.sleep(0.01)
        error = await refused(slots)
        assert asyncio.get_running_loop().time() - asked_at < 0.1
        assert error.reason is Reason.QUEUE_TIMEOUT
        assert error.pool == "onss"
        assert (await first).reason is Reason.QUEUE_TIMEOUT
        assert asyncio.get_running_loop().time() - asked_at > 7.9
    assert len(busy) == 2
    slots.close()


async def test_a_wait_ends_with_the_queue_time() -> None:
    slots = made(queue_time=8.0)
    async with slots.slot(ONSS, "a"), slots.slot(ONSS, "a"):
        before = asyncio.get_running_loop().time()
        error = await refused(slots)
        assert error.reason is Reason.QUEUE_TIMEOUT
        assert round(asyncio.get_running_loop().time() - before) == 8
        assert slots.would_refuse(ONSS) is Reason.QUEUE_TIMEOUT
    slots.close()


async def test_a_call_whose_guard_said_no_goes_before_all_who_wait_and_keeps_its_deadline() -> None:
    slots = made(queue_time=8.0, queue_length=1)
    loop = asyncio.get_running_loop()
    order: list[str] = []

    async def waits(owner: str, again: Slot | None = None) -> None:
        async with slots.slot(ONSS, owner, again=again):
            order.append(owner)

    asked_at = loop.time()
    async with slots.slot(ONSS, "a") as had:
        pass
    async with asyncio.TaskGroup() as tasks, slots.slot(ONSS, "a"), slots.slot(ONSS, "a"):
        tasks.create_task(waits("newcomer"))
        await asyncio.sleep(3)
        assert (await refused(slots)).reason is Reason.QUEUE_FULL
        again = tasks.create_task(waits("again", had))  # however full the queue is
        await asyncio.sleep(1)
        assert not again.done()
    assert order == ["again", "newcomer"]
    async with slots.slot(ONSS, "a"), slots.slot(ONSS, "a"):
        with pytest.raises(RefusedError) as late:
            await waits("late", had)
        assert late.value.reason is Reason.QUEUE_TIMEOUT
        assert round(loop.time() - asked_at) == 8
    slots.close()


async def test_a_parked_call_whose_guard_said_no_has_the_time_that_parking_gives() -> None:
    slots = made("2026-11-24T16:59", closed="park", park_time=600.0, queue_time=8.0)
    async with asyncio.TaskGroup() as tasks:
        async with slots.slot(ONSS, "a") as had:
            assert slots._clock.boot() >= 1060.0, "it waited for the opening, for longer than the queue time"
        async with slots.slot(ONSS, "b"), slots.slot(ONSS, "b"):
            again = tasks.create_task(anyway(slots, had))
            await asyncio.sleep(60)
            assert not again.done()
    assert again.result() == ("onss",)
    slots.close()


async def anyway(slots: Slots, had: Slot) -> tuple[str, ...]:
    async with slots.slot(ONSS, "a", again=had) as slot:
        return slot.pools


async def test_a_full_queue_and_a_pool_without_slots_refuse_at_once() -> None:
    slots = made(queue_length=0, slots={"cin": 0})
    async with slots.slot(ONSS, "a"), slots.slot(ONSS, "a"):
        assert (await refused(slots)).reason is Reason.QUEUE_FULL
    with pytest.raises(RefusedError) as raised:
        async with slots.slot(frozenset({"cin"}), "a"):
            pytest.fail("a slot of a pool that has none")
    assert (raised.value.reason, raised.value.pool) == (Reason.QUEUE_FULL, "cin")
    slots.close()


async def test_stopping_answers_everybody() -> None:
    slots = made(queue_time=100.0)
    async with slots.slot(ONSS, "a"), slots.slot(ONSS, "a"):
        waiting = asyncio.get_running_loop().create_task(refused(slots))
        await asyncio.sleep(1)
        assert slots.statistics().pools["onss"].oldest_s == pytest.approx(1)
        slots.stop()
        assert (await waiting).reason is Reason.SHUTTING_DOWN
        assert (await refused(slots)).reason is Reason.SHUTTING_DOWN
    slots.close()


async def test_a_rate_paces_the_starts() -> None:
    slots = made(rates={"onss": 2.0}, queue_time=100.0)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(call(slots, 0.01)) for _ in range(8)]
    starts = sorted(task.result() for task in asked)
    assert starts[-1] - starts[0] >= 2.9, starts
    slots.close()


async def test_a_raised_share_is_taken_for_the_longer_t() -> None:
    """Where one reload shortens T too, calls of the gateway that gives the slots up began under the longer one."""
    slots = made(slots={"onss": 1})
    raised = layout(SOURCES, Reading.DEFAULT)
    slots.adopt(raised, Calendar(BRUSSELS, OFFICE), Terms(hold_s=10.0), shared=True)
    for seconds, in_use in ((59.0, 1), (2.0, 0)):
        await asyncio.sleep(seconds)
        assert slots.statistics().pools["onss"].in_use == in_use
    slots.close()


async def test_observing_refuses_nobody_and_counts_what_starts_in_office_hours() -> None:
    slots = made("2026-11-24T09:30")
    clock: LoopClock = slots._clock

    async def observed() -> None:
        async with slots.slot(ONSS, "a", observe=True) as slot:
            assert slot.may_start(clock.boot())
            assert slot.may_start(clock.boot())
            await asyncio.sleep(1)
            slot.settle()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(observed())
    statistics = slots.statistics()
    assert (statistics.office_hours_starts, statistics.violations) == (5, 0)
    assert (statistics.pools["onss"].peak, statistics.pools["onss"].in_use) == (5, 0)
    slots.close()
