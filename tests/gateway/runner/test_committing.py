"""What the store refuses though it works: it is set apart, and nothing else waits for it."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.log import EventLog
from gateway.records import Batch, ItemRecord, Settled, Settlement
from gateway.runner.committer import NOT_STORED, BatchInHand, Committer
from gateway.store.interface import Store
from gateway.store.sqlite import SqliteStore
from gateway.store.sqlite.thread import StoreThread
from policies.model import ItemState
from tests.conftest import JumpingClock
from tests.gateway.store import conftest as stores
from tests.gateway.store.making import again, claimed, ready_run, result, settlement

HERE = "here"
REFUSED = "\udc80"
"""No text: neither engine takes it."""
open_store, kept, store, postgres_url = stores.open_store, stores.kept, stores.store, stores.postgres_url


@dataclass
class Writing:
    """A committer at work, and what it has said."""

    committer: Committer
    lines: list[str] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.lines]

    def in_hand(self, batch: Batch, many: int) -> BatchInHand:
        mine = BatchInHand(batch.batch_id, batch.run_id, batch.hi, batch.armed, batch.armed, many, 0.0)
        self.committer.take_charge(mine)
        return mine


@asynccontextmanager
async def writing(store: Store) -> AsyncIterator[Writing]:
    clock, lines = JumpingClock(), list[str]()
    settled: list[Settled] = []
    log = EventLog(clock, lines.append)
    committer = Committer(store, HERE, clock, log, settled.append, lambda _seconds: None)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(committer.run())
        yield Writing(committer, lines, settled)
        task.cancel()


async def by_number(store: Store, run_id: int) -> dict[int, ItemRecord]:
    return {one.position: one for one in await store.items(run_id)}


@pytest.mark.parametrize(
    "bad", [{0}, {7}, {63}, {3, 4, 40}, set(range(64))], ids=["first", "amid", "last", "some", "all"]
)
async def test_a_result_that_is_refused_is_in_doubt_and_the_others_settle(store: Store, bad: set[int]) -> None:
    run, lane_id = await ready_run(store, 64)
    batch = await claimed(store, lane_id, HERE)
    async with writing(store) as at_work:
        at_work.in_hand(batch, 64)
        for position in range(64):
            code = REFUSED if position in bad else ""
            at_work.committer.add(result(batch, position, code=code, sealed=b"answer"))
        await at_work.committer.flushed()
        assert at_work.committer._bytes == at_work.committer.waiting == 0
        assert at_work.committer.down_since is None
    found = await by_number(store, run.id)
    assert {number for number, one in found.items() if one.state is ItemState.IN_DOUBT} == bad
    assert {one.code for one in found.values()} - {""} == {NOT_STORED}
    assert len(found) == 64
    assert await store.batches() == []  # its last entry finished it all the same
    assert at_work.events() == ["item cannot be stored"] * len(bad)
    counted = await store.run(run.public_id)
    assert counted is not None
    assert (counted.counts.done, counted.counts.in_doubt) == (64 - len(bad), len(bad))


async def test_a_returned_item_that_is_refused_is_in_doubt_and_marks_go_on(store: Store) -> None:
    run, lane_id = await ready_run(store, 10)
    batch = await claimed(store, lane_id, HERE, window=2)
    async with writing(store) as at_work:
        mine = at_work.in_hand(batch, 10)
        at_work.committer.add(again(batch, 0, attempts=1 << 40))  # no engine's smaller number
        at_work.committer.add(again(batch, 1, delay_s=float("nan")))
        at_work.committer.add(result(batch, 2))
        await at_work.committer.armed(mine, 9)
        await at_work.committer.flushed()
    assert mine.armed == 10
    found = await by_number(store, run.id)
    assert found[2].state is ItemState.DONE
    assert found[1].state is ItemState.IN_DOUBT


async def test_a_batch_that_cannot_end_stops_nothing_and_is_left_to_recovery(store: Store) -> None:
    run, lane_id = await ready_run(store, 20)
    first, second = await claimed(store, lane_id, HERE, size=10), await claimed(store, lane_id, HERE, size=10)
    async with writing(store) as at_work:
        at_work.committer.nothing_left(at_work.in_hand(first, 10))  # a defect: ten are left
        await at_work.committer.flushed()
        at_work.in_hand(second, 10)
        for position in range(10, 20):
            at_work.committer.add(result(second, position))
        await at_work.committer.flushed()
        assert at_work.committer.down_since is None
        assert list(at_work.committer.numbers()) == []  # so `Recovery` takes it for a stray
    assert [one.batch_id for one in await store.batches()] == [first.batch_id]
    counted = await store.run(run.public_id)
    assert counted is not None
    assert counted.counts.done == 10
    assert at_work.events() == ["what became of an item is refused"]


REFUSE_FIVE = (
    "create trigger no before insert on result when new.id & 4294967295 = 5 begin select raise(abort, 'no'); end"
)
REFUSE_ALL = "create trigger no before insert on result begin select raise(abort, 'no'); end"


def changed(folder: Path, statement: str) -> None:
    """Change the schema behind the store's back."""
    with closing(sqlite3.connect(folder / "store.sqlite")) as other:
        other.execute(statement)
        other.commit()


async def test_an_item_that_cannot_even_be_in_doubt_stays_leased_and_the_others_settle(tmp_path: Path) -> None:
    async with stores.sqlite(tmp_path) as kept:
        run, lane_id = await ready_run(kept.store, 10)
        batch = await claimed(kept.store, lane_id, HERE)
        changed(tmp_path, REFUSE_FIVE)
        async with writing(kept.store) as at_work:
            at_work.in_hand(batch, 10)
            for position in range(10):
                at_work.committer.add(result(batch, position))
            await at_work.committer.flushed()
            assert at_work.committer._bytes == at_work.committer.waiting == len(at_work.committer.numbers()) == 0
        assert set(await by_number(kept.store, run.id)) == set(range(10)) - {5}
        (sighting,) = await kept.store.batches()
        assert "what became of an item is refused" in at_work.events()
        changed(tmp_path, "drop trigger no")  # whatever it was, a person has mended it
        recovered = await kept.store.recover(sighting, delay_s=0.0)
    assert recovered is not None
    assert (recovered.again, recovered.in_doubt) == (1, 0)


@pytest.mark.parametrize("many", [1, 9, 10, 60])  # the last two end their batch, of which nothing is settled
async def test_while_the_store_refuses_everything_all_is_kept(tmp_path: Path, many: int) -> None:
    async with stores.sqlite(tmp_path) as kept:
        run, lane_id = await ready_run(kept.store, 100)
        size = max(10, many)
        batch, other = (
            await claimed(kept.store, lane_id, HERE, size=size),
            await claimed(kept.store, lane_id, HERE, size=9, window=1),
        )
        changed(tmp_path, REFUSE_ALL)
        async with writing(kept.store) as at_work:
            at_work.in_hand(batch, size)
            for position in range(many):
                at_work.committer.add(result(batch, position))
            sends = asyncio.ensure_future(at_work.committer.armed(at_work.in_hand(other, 9), other.hi - 1))
            while at_work.committer.down_since is None and at_work.committer.waiting:
                await asyncio.sleep(0.01)
            assert (at_work.committer.waiting, sends.done()) == (many, False)  # nor is anything more sent
            changed(tmp_path, "drop trigger no")
            await sends
            await at_work.committer.flushed()
            assert at_work.committer.down_since is None
        found = await by_number(kept.store, run.id)
        assert [one.batch_id for one in await kept.store.batches()] == [batch.batch_id] * (many < 10) + [other.batch_id]
    assert {one.state for one in found.values()} == {ItemState.DONE}
    assert len(found) == many
    assert at_work.events() == ["store down", "store up"]


async def test_a_batch_that_can_end_does_not_say_that_results_can_be_written(tmp_path: Path) -> None:
    async with stores.sqlite(tmp_path) as kept:
        run, lane_id = await ready_run(kept.store, 20)
        empty, batch = await claimed(kept.store, lane_id, size=10), await claimed(kept.store, lane_id, HERE, size=10)
        await kept.store.settle(settlement(results=[result(empty, position) for position in range(10)]))
        changed(tmp_path, REFUSE_ALL)
        async with writing(kept.store) as at_work:
            at_work.in_hand(batch, 10)
            at_work.committer.add(result(batch, 10))
            at_work.committer.nothing_left(at_work.in_hand(empty, 0))
            while at_work.committer.down_since is None and at_work.committer.waiting:
                await asyncio.sleep(0.01)
            assert at_work.committer.waiting == 1
            changed(tmp_path, "drop trigger no")
            await at_work.committer.flushed()
        assert len(await by_number(kept.store, run.id)) == 11


class Counting(SqliteStore):
    """The store, and how often it was asked to settle."""

    asked = 0

    async def settle(self, settlement: Settlement) -> Settled:
        self.asked += 1
        return await super().settle(settlement)


async def test_a_store_that_refuses_everything_is_not_asked_for_each_item(tmp_path: Path) -> None:
    clock = JumpingClock()
    thread = StoreThread(tmp_path / "store.sqlite", clock)
    await thread.start()
    store = Counting(thread)
    try:
        await store.migrate()
        _, lane_id = await ready_run(store, 1000)
        batch = await claimed(store, lane_id, HERE, size=1000)
        changed(tmp_path, REFUSE_ALL)
        async with writing(store) as at_work:
            at_work.in_hand(batch, 1000)
            for position in range(1000):
                at_work.committer.add(result(batch, position))
            while at_work.committer.down_since is None:
                await asyncio.sleep(0.01)
    finally:
        await store.close()
    assert 10 < store.asked < 100
