"""Items of runs wait as long as it takes, beside callers; holds, cool-downs and ramps stand against both."""

import asyncio
from datetime import datetime

import pytest

from gateway.slots import RefusedError, Slots, Terms
from policies.model import ALL_SOURCES, Reason, Standing
from policies.windows import Calendar
from tests.conftest import BRUSSELS
from tests.gateway.slots.test_slots import NEEDS, OFFICE, ONSS, LoopClock, call, made, refused

pytestmark = pytest.mark.looptime
BOTH = frozenset({"onss", "cin"})


async def item(slots: Slots, seconds: float = 1.0, *, sources: frozenset[str] = ONSS) -> float:
    """Send an item of a run; return when its slot was had."""
    clock: LoopClock = slots._clock
    async with slots.slot(sources, "run", stored=True) as slot:
        assert slot.may_start(clock.boot())
        had = clock.boot() - 1000.0
        await asyncio.sleep(seconds)
        slot.settle()
        return had


async def test_an_item_waits_longer_than_a_caller_would_and_is_refused_by_no_queue() -> None:
    slots = made(queue_time=8.0, queue_length=0)
    async with asyncio.TaskGroup() as tasks:
        items = [tasks.create_task(item(slots, 30.0)) for _ in range(6)]
    assert [round(one.result()) for one in items] == [0, 0, 30, 30, 60, 60]
    slots.close()


async def test_callers_wait_until_it_is_known_what_persons_hold_and_items_come_from_who_has_read_it() -> None:
    slots = made(queue_time=8.0, standing_known=False)
    async with asyncio.TaskGroup() as tasks:
        early = tasks.create_task(refused(slots))
        await asyncio.sleep(5)
        late = tasks.create_task(refused(slots))
        await asyncio.sleep(4)
        assert early.done()  # its time was over; the other's is not
        assert not late.done()
        slots.no_store_yet()
        assert round(await item(slots)) == 9  # and no reason to go back
    assert early.result().reason is late.result().reason is Reason.STORE_UNAVAILABLE
    slots.standing_is_known()
    assert round(await call(slots)) == 10
    slots.close()


async def test_items_that_wait_are_no_callers_in_the_statistics() -> None:
    slots = made()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(item(slots))
        await asyncio.sleep(0.5)
        pool = slots.statistics().pools["onss"]
        assert (pool.in_use, pool.waiting, pool.oldest_s) == (2, 0, 0.0)
    slots.close()


async def test_callers_go_before_items_but_one_slot_is_the_items() -> None:
    slots, order = made(queue_time=100.0), []

    async def noted(name: str, work: asyncio.Future[float]) -> None:
        await work
        order.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call(slots))
        tasks.create_task(call(slots))
        await asyncio.sleep(0.1)
        for _ in range(3):
            tasks.create_task(noted("item", item(slots)))
        await asyncio.sleep(0.1)
        for _ in range(3):
            tasks.create_task(noted("caller", call(slots)))
    assert sorted(order[:2]) == ["caller", "item"]
    assert sorted(order[2:4]) == ["caller", "item"]
    slots.close()


async def test_an_item_that_is_cancelled_leaves_the_queue() -> None:
    slots = made(slots={"onss": 1})
    async with slots.slot(ONSS, "a"):
        waiting = asyncio.get_running_loop().create_task(item(slots))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await call(slots)
    assert slots.statistics().pools["onss"].in_use == 0
    slots.close()


async def test_only_stopping_refuses_an_item() -> None:
    slots = made("2026-11-24T09:30")
    waiting = asyncio.get_running_loop().create_task(item(slots))
    await asyncio.sleep(3600)
    assert not waiting.done()
    slots.stop()
    for asked in (waiting, item(slots)):
        with pytest.raises(RefusedError) as raised:
            await asked
        assert raised.value.reason is Reason.SHUTTING_DOWN
    assert slots.obstacle(ONSS) is Reason.SHUTTING_DOWN
    slots.close()


async def test_an_item_waits_for_the_opening_and_for_closing_hours_again() -> None:
    slots = made("2026-11-24T07:50")
    clock: LoopClock = slots._clock
    first = asyncio.get_running_loop().create_task(item(slots, 9 * 60 + 20))
    second = asyncio.get_running_loop().create_task(item(slots, 9 * 60 + 20))
    third = asyncio.get_running_loop().create_task(item(slots))
    await asyncio.sleep(9 * 60 + 50)  # 07:59:50: too late for a call that may take 30 s
    assert first.done()
    assert second.done()
    assert slots.obstacle(ONSS) is Reason.OFFICE_HOURS
    assert await item(slots) == pytest.approx(9 * 3600 + 600, abs=1)  # 17:00, ten minutes and nine hours later
    assert clock.wall() > datetime(2026, 11, 24, 17, tzinfo=BRUSSELS)
    await asyncio.gather(third, return_exceptions=True)
    slots.close()


async def test_a_hold_refuses_callers_at_once_and_items_wait_for_its_end() -> None:
    slots = made(slots={"onss": 1}, queue_time=100.0)
    loop = asyncio.get_running_loop()
    async with slots.slot(ONSS, "a") as slot:
        caller, waiting = loop.create_task(refused(slots)), loop.create_task(item(slots))
        await asyncio.sleep(1)
        slots.adopt_standing(Standing(held=frozenset({"onss"})))
        assert (await caller).reason is Reason.HELD
        assert not slot.may_start(slots._clock.boot()), "begun although it is held"
    assert (await refused(slots)).reason is Reason.HELD
    assert slots.obstacle(ONSS) is Reason.HELD
    assert slots.obstacle(BOTH) is Reason.HELD
    assert slots.obstacle(frozenset({"cin"})) is None
    await asyncio.sleep(500)
    assert not waiting.done()
    slots.adopt_standing(Standing(held=frozenset({ALL_SOURCES})))
    assert slots.obstacle(frozenset({"cin"})) is Reason.HELD
    slots.adopt_standing(Standing())
    assert round(await waiting) == 501
    slots.close()


async def test_a_hold_lets_a_call_go_on_that_has_begun() -> None:
    slots = made()
    async with slots.slot(ONSS, "a") as slot:
        assert slot.may_start(slots._clock.boot())
        slots.adopt_standing(Standing(held=frozenset({"onss"})))
        assert slot.may_start(slots._clock.boot())
        slot.settle()
    slots.close()


async def test_while_a_source_cools_down_callers_are_told_when_to_come_and_items_wait() -> None:
    slots = made()
    slots.adopt_standing(Standing(cooling_until={"onss": 1300.0, "cin": 1010.0}))
    error = await refused(slots)
    assert (error.reason, error.retry_in_s) == (Reason.COOLING_DOWN, pytest.approx(300.0))
    assert slots.obstacle(BOTH) is Reason.COOLING_DOWN
    assert slots.statistics().cooling_s == 0.0, "the cool-down of one source is not everybody's"
    async with asyncio.TaskGroup() as tasks:
        cin = tasks.create_task(item(slots, sources=frozenset({"cin"})))
        both = tasks.create_task(item(slots, sources=BOTH))
    assert (round(cin.result()), round(both.result())) == (10, 300)
    assert slots.obstacle(BOTH) is None
    slots.close()


async def test_a_hold_comes_before_the_window_and_the_window_before_a_cool_down() -> None:
    slots = made("2026-11-24T09:30")
    slots.adopt_standing(Standing(cooling_until={ALL_SOURCES: 1300.0}))
    assert (await refused(slots)).reason is Reason.OFFICE_HOURS
    slots.adopt_standing(Standing(held=frozenset({"onss"}), cooling_until={ALL_SOURCES: 1300.0}))
    assert (await refused(slots)).reason is Reason.HELD
    slots.close()


async def test_a_ramp_lowers_the_cap_at_once_and_raises_it_step_by_step() -> None:
    slots = made(queue_time=100.0)
    slots.adopt_standing(Standing(at_most={"onss": 1}))
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(call(slots, 10.0)) for _ in range(5)]
        await asyncio.sleep(15)
        slots.adopt_standing(Standing(at_most={"onss": 2, ALL_SOURCES: 5}))
    assert [round(one.result()) for one in asked] == [0, 10, 15, 20, 25]
    async with slots.slot(ONSS, "a") as first, slots.slot(ONSS, "a") as second:
        assert second.may_start(slots._clock.boot())
        slots.adopt_standing(Standing(at_most={ALL_SOURCES: 1}))
        assert second.may_start(slots._clock.boot()), "it had begun"
        assert not first.may_start(slots._clock.boot())
        second.settle()
    assert slots.statistics().violations == 0
    slots.close()


async def test_who_waited_when_a_reload_brought_a_longer_t_is_held_for_it() -> None:
    """An item goes out under the configuration in force at its grant: its call may take as long as that says."""
    slots = made(slots={"onss": 1}, queue_time=1000.0)
    clock: LoopClock = slots._clock
    first_until = 0.0

    async def unsettled() -> None:
        nonlocal first_until
        async with slots.slot(ONSS, "run", stored=True) as slot:
            assert slot.may_start(clock.boot())
            first_until = clock.boot() - 1000.0 + 90.0

    async with slots.slot(ONSS, "a") as begun:
        assert begun.may_start(clock.boot())
        waiting = asyncio.get_running_loop().create_task(unsettled())
        await asyncio.sleep(1)
        slots.adopt(slots._layout, Calendar(BRUSSELS, OFFICE), Terms(hold_s=90.0, queue_time=1000.0), shared=False)
        assert begun.hold_s == 60.0
        begun.settle()
    await waiting
    assert await call(slots) == pytest.approx(first_until, abs=0.1)
    slots.close()


async def test_an_item_for_a_pool_without_slots_is_in_nobodys_way() -> None:
    slots = made(slots={"cin": 0})
    waiting = asyncio.get_running_loop().create_task(item(slots, sources=BOTH))
    await asyncio.sleep(1)
    assert slots.obstacle(BOTH) is Reason.QUEUE_FULL
    for _ in range(2):
        await call(slots)
    assert slots.statistics().pools[NEEDS[0]].in_use == 0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    slots.close()
