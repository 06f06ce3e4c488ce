"""Several gateways' slots over one real PostgreSQL: one cap, whoever comes, dies, loses the database or disagrees.

Each gateway has a boot clock of its own, which jumps; the database's time is not asked for anything.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from gateway.log import EventLog
from gateway.slots import RefusedError, Slots, Terms
from gateway.store.postgres import PostgresStore, open_postgres
from policies.model import Reason, Standing
from policies.pools import Layout, Reading, layout
from policies.windows import Calendar
from tests.conftest import BRUSSELS, JumpingClock
from tests.gateway.slots.test_slots import SOURCES
from tests.gateway.store.postgres_server import EmbeddedServer, embedded_server, emptied_database, on_server

ONSS = frozenset({"onss"})
BOTH = frozenset({"onss", "cin"})
EVENING = datetime(2026, 11, 24, 20, 0, tzinfo=BRUSSELS)
HOLD_S = 2.0
LEASE_S = HOLD_S + 3 * 5.0 + 1.0


@dataclass
class Source:
    """What the calls of all gateways do at the source."""

    now: int = 0
    peak: int = 0
    done: dict[str, int] = field(default_factory=dict)

    async def work(self, name: str, seconds: float) -> None:
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.now -= 1
        self.done[name] = self.done.get(name, 0) + 1


@dataclass
class Gateway:
    """A gateway's slots, kept by a task."""

    name: str
    slots: Slots
    store: PostgresStore
    clock: JumpingClock
    keeping: "asyncio.Task[None]"
    log: list[str]

    async def call(
        self, source: Source, seconds: float = 0.01, *, sources: frozenset[str] = ONSS, stored: bool = False
    ) -> None:
        async with self.slots.slot(sources, self.name, stored=stored) as slot:
            assert slot.may_start(self.clock.boot())
            await source.work(self.name, seconds)
            slot.settle()

    def skip(self, seconds: float) -> None:
        """Let time pass; what waits for it by the loop's clock is woken."""
        self.clock.skip(seconds=seconds)
        self.slots.adopt_standing(Standing())

    async def dies(self) -> None:
        self.keeping.cancel()
        with suppress(asyncio.CancelledError):
            await self.keeping

    async def stops(self) -> None:
        self.slots.stop()
        await self.dies()
        await self.slots.let_go()


def pools(**slots: int) -> Layout:
    return layout(SOURCES, Reading.DEFAULT, slots=slots)


USUAL = pools()
Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start(postgres_url: str) -> AsyncIterator[Start]:
    """Return what starts a gateway; `url`: on another database."""
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(emptied_database(postgres_url))

        async def begin(name: str, *, url: str = shared, pools: Layout = USUAL, queue_time: float = 30.0) -> Gateway:
            clock = JumpingClock(EVENING)
            lines: list[str] = []
            store = await open_postgres(url, clock, 1.0)
            stack.push_async_callback(store.close)
            terms = Terms(hold_s=HOLD_S, call_timeout=HOLD_S, queue_time=queue_time)
            log = EventLog(clock, lambda line: lines.append(str(line)))
            slots = Slots(pools, Calendar(BRUSSELS, ()), clock, terms, log, leased=True)
            stack.callback(slots.close)
            gateway = Gateway(
                name, slots, store, clock, asyncio.get_running_loop().create_task(slots.keep(store)), lines
            )
            stack.push_async_callback(gateway.dies)
            return gateway

        yield begin


async def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


async def seen_born(*gateways: Gateway) -> None:
    """Let the time pass for which new rows count as occupied."""
    await until(lambda: all(one.slots.statistics().store_up for one in gateways))
    await asyncio.sleep(0.3)
    for one in gateways:
        one.clock.skip(seconds=LEASE_S)


async def reason(gateway: Gateway) -> Reason:
    with pytest.raises(RefusedError) as raised:
        await gateway.call(Source())
    return raised.value.reason


async def test_new_rows_are_occupied_for_the_whole_of_a_lease(start: Start) -> None:
    a = await start("a", queue_time=0.5)
    assert await reason(a) is Reason.QUEUE_TIMEOUT
    a.clock.skip(seconds=LEASE_S - 2)
    assert await reason(a) is Reason.QUEUE_TIMEOUT
    a.clock.skip(seconds=2)
    source = Source()
    await a.call(source)
    assert source.done == {"a": 1}


async def test_two_gateways_share_one_cap_and_both_are_served(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await seen_born(a, b)
    source = Source()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(60):
            tasks.create_task(a.call(source))
        for _ in range(20):
            tasks.create_task(b.call(source))
    assert source.peak == 2
    assert source.done == {"a": 60, "b": 20}
    assert a.slots.statistics().violations + b.slots.statistics().violations == 0


async def test_a_caller_elsewhere_is_served_although_one_gateway_is_never_idle(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await seen_born(a, b)
    source, over = Source(), False

    async def never_idle() -> None:
        while not over:
            await a.call(source, 0.02)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(never_idle())
        await until(lambda: source.done.get("a", 0) > 10)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began = loop.time()
            await b.call(source)
            assert loop.time() - began < 3.0
        over = True
    assert source.peak == 2


async def test_items_of_runs_elsewhere_give_way_and_get_their_turn(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await seen_born(a, b)
    source, over = Source(), False

    async def never_idle(gateway: Gateway, *, stored: bool) -> None:
        while not over:
            await gateway.call(source, 0.02, stored=stored)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(never_idle(a, stored=True))
        await until(lambda: source.done.get("a", 0) > 5)
        for _ in range(4):
            tasks.create_task(never_idle(b, stored=False))
        await until(lambda: source.done.get("b", 0) > 20)
        items = source.done["a"]
        await until(lambda: source.done["a"] > items)
        over = True
    assert source.peak == 2


async def test_calls_for_several_pools_of_several_gateways_do_not_lock_each_other_out(start: Start) -> None:
    a, b = [await start(name, pools=pools(onss=1, cin=1)) for name in ("a", "b")]
    await seen_born(a, b)
    source = Source()
    async with asyncio.TaskGroup() as tasks:
        for gateway in (a, b):
            for sources in (BOTH, BOTH, BOTH, ONSS, frozenset({"cin"})):
                tasks.create_task(gateway.call(source, sources=sources))
    assert source.done == {"a": 5, "b": 5}
    assert source.peak <= 2


async def test_a_gateway_that_stops_leaves_its_slots_at_once(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await seen_born(a, b)
    source = Source()
    await a.call(source)
    await a.stops()
    async with asyncio.timeout(3):
        await asyncio.gather(*[b.call(source) for _ in range(2)])


async def test_the_slots_of_a_gateway_that_died_are_free_after_a_lease_and_no_earlier(start: Start) -> None:
    a, b = await start("a", pools=pools(onss=1)), await start("b", pools=pools(onss=1), queue_time=0.6)
    await seen_born(a, b)
    await a.call(Source())
    await a.dies()
    assert await reason(b) is Reason.QUEUE_TIMEOUT
    b.clock.skip(seconds=LEASE_S - 3)
    assert await reason(b) is Reason.QUEUE_TIMEOUT
    b.clock.skip(seconds=3)
    await b.call(Source())


async def test_a_gateway_that_was_frozen_starts_nothing_when_it_wakes(start: Start) -> None:
    a = await start("a")
    await seen_born(a)
    async with a.slots.slot(ONSS, "a") as slot:
        await a.dies()  # nobody renews
        assert slot.may_start(a.clock.boot())
        a.clock.skip(seconds=LEASE_S - HOLD_S - 1.0 + 0.1)
        assert not slot.may_start(a.clock.boot())
        slot.settle()


async def test_another_layout_gets_no_slot_until_nobody_needs_the_one_before(start: Start) -> None:
    a = await start("a")
    await seen_born(a)
    source = Source()
    async with a.slots.slot(ONSS, "a") as slot:
        assert slot.may_start(a.clock.boot())
        b = await start("b", pools=pools(onss=1), queue_time=0.5)
        await until(lambda: b.slots.statistics().store_up is True)
        b.skip(6)
        await until(lambda: b.slots.statistics().layout_conflict)
        assert await reason(b) is Reason.LAYOUT_CONFLICT
        assert b.slots.obstacle(ONSS) is Reason.LAYOUT_CONFLICT
        await until(lambda: any("layout conflict" in line for line in b.log))
        slot.settle()
    await a.stops()
    b.skip(LEASE_S)  # some rows were never had by anybody since they were born
    await until(lambda: not b.slots.statistics().layout_conflict)
    await b.call(source)
    assert source.done == {"b": 1}
    assert "layout agreed" in b.log[-1]


async def test_a_cap_that_is_lowered_and_raised_under_load_holds(start: Start) -> None:
    a = await start("a", queue_time=60.0)
    await seen_born(a)
    source = Source()
    peaks = []
    async with asyncio.TaskGroup() as tasks:
        for cap, skipped in ((1, 0.0), (2, LEASE_S)):
            for _ in range(10):
                tasks.create_task(a.call(source, 0.03))
            await until(lambda: source.now > 0)
            a.slots.adopt(pools(onss=cap), Calendar(BRUSSELS, ()), Terms(hold_s=HOLD_S, queue_time=60.0), shared=False)
            await until(lambda: source.now == 0)  # what was in progress ends, and what follows obeys
            source.peak = 0
            await asyncio.sleep(0.3)
            a.clock.skip(seconds=skipped)
            await until(lambda: a.slots.statistics().pools["onss"].waiting == 0)
            peaks.append(source.peak)
    assert source.done == {"a": 20}
    assert peaks[0] == 1
    assert peaks[1] <= 2


async def test_a_ramp_uses_the_first_rows_only(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await seen_born(a, b)
    for one in (a, b):
        one.slots.adopt_standing(Standing(at_most={"onss": 1}))
    source = Source()
    async with asyncio.TaskGroup() as tasks:
        for gateway in (a, b):
            for _ in range(5):
                tasks.create_task(gateway.call(source))
    assert source.peak == 1
    assert source.done == {"a": 5, "b": 5}


async def test_a_call_that_was_settled_early_may_outlive_its_pool(start: Start) -> None:
    a = await start("a")
    await seen_born(a)
    async with a.slots.slot(ONSS, "a") as slot:
        assert slot.may_start(a.clock.boot())
        slot.settle()
        terms = Terms(hold_s=HOLD_S, call_timeout=HOLD_S)
        a.slots.adopt(layout(SOURCES, Reading.STRICT), Calendar(BRUSSELS, ()), terms, shared=False)
    assert "onss" not in a.slots.statistics().pools
    assert all(pool.in_use == 0 for pool in a.slots.statistics().pools.values())


async def test_a_ramp_goes_on_after_a_reload(start: Start) -> None:
    a, b = await start("a", queue_time=60.0), await start("b", queue_time=60.0)
    await seen_born(a, b)
    terms, source = Terms(hold_s=HOLD_S, call_timeout=HOLD_S, queue_time=60.0), Source()
    for one in (a, b):
        one.slots.adopt_standing(Standing(at_most={"onss": 1}))
        one.slots.adopt(pools(cin=1), Calendar(BRUSSELS, ()), terms, shared=False)
    async with asyncio.TaskGroup() as tasks:
        for gateway in (a, b):
            for _ in range(5):
                tasks.create_task(gateway.call(source, 0.03))
    assert source.peak == 1
    assert source.done == {"a": 5, "b": 5}


async def test_a_database_that_lacks_a_table_for_a_while_ends_nothing(start: Start) -> None:
    """A schema restored by hand, a right that was taken away: the task that keeps slots is the whole gateway's."""
    a = await start("a")
    await seen_born(a)
    url = a.store._own[0]._url
    await on_server(url, "alter table slot rename to elsewhere")
    await until(lambda: a.slots.statistics().store_up is False)
    await asyncio.sleep(0.2)
    assert not a.keeping.done()
    await on_server(url, "alter table elsewhere rename to slot")
    await until(lambda: a.slots.statistics().store_up is True)
    source = Source()
    await a.call(source)
    assert source.done == {"a": 1}
    await on_server(url, "alter table slot rename to elsewhere")
    await a.stops()  # nothing can be let go; others will see
    await on_server(url, "alter table elsewhere rename to slot")
    assert sum("store down" in line for line in a.log) == 2


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be stopped and started."""
    with embedded_server() as own:
        yield own


async def test_without_its_store_bulk_stops_before_its_leases_end_and_goes_on_after(
    start: Start, server: EmbeddedServer
) -> None:
    setup = await open_postgres(server.url, JumpingClock(), 10.0)
    await setup.migrate()
    await setup.close()
    a = await start("a", url=server.url)
    await seen_born(a)
    source = Source()
    await asyncio.gather(*[a.call(source) for _ in range(2)])
    await asyncio.to_thread(server.kill)
    await until(lambda: a.slots.statistics().store_up is False)
    await a.call(source)  # its rows are good for a while
    a.clock.skip(seconds=LEASE_S - HOLD_S)
    assert await reason(a) is Reason.STORE_UNAVAILABLE
    assert a.slots.obstacle(ONSS) is Reason.STORE_UNAVAILABLE
    await asyncio.to_thread(server.start)
    await until(lambda: a.slots.statistics().store_up is True, 20.0)
    await a.call(source)
    assert source.done == {"a": 4}
    assert [any(what in line for line in a.log) for what in ("store down", "store back")] == [True, True]
