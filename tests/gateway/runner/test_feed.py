"""What a lane has in hand: few writes that a crash would put in doubt, and none of those that were never sent."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.log import EventLog
from gateway.packing import StoredRequest
from gateway.records import LaneKey, Settled, StoredItem
from gateway.runner.committer import Committer
from gateway.runner.feed import FIRST, Feed, Open, Room
from gateway.store.sqlite import SqliteStore, open_sqlite
from tests.conftest import JumpingClock
from tests.gateway.store.making import READS, WRITES, again, claimed, ready_run, result, settlement

HERE = "here"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(tmp_path / "store.sqlite", JumpingClock())
    await store.migrate()
    yield store
    await store.close()


async def opened(items: Iterable[StoredItem]) -> list[StoredRequest | None]:
    return [StoredRequest(b"/", (), one.sealed) for one in items]


async def recovered(store: SqliteStore) -> tuple[int, int]:
    """End every batch; return how many items wait again, and how many are in doubt."""
    ends = [await store.recover(sighting, delay_s=0.0) for sighting in await store.batches()]
    return sum(one.again for one in ends if one), sum(one.in_doubt for one in ends if one)


@asynccontextmanager
async def feeding(
    store: SqliteStore, run_id: int, room: Room | None = None, opened: Open = opened
) -> AsyncIterator[Feed]:
    """Yield a feed of a run's only lane that fills itself, and the committer behind it at work."""
    settled: list[Settled] = []
    back: list[float] = []
    clock = JumpingClock()
    committer = Committer(store, HERE, clock, EventLog(clock, lambda _line: None), settled.append, back.append)
    ((work, _),) = await store.lanes(run_id)
    feed = Feed(work, store, HERE, committer, opened, room or Room())
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(committer.run())
        tasks.create_task(feed.fill())
        yield feed
        feed.stop()
        writing.cancel()


@pytest.mark.parametrize("lane", [READS, WRITES])
async def test_what_was_never_sent_waits_again_as_it_was_whatever_mark_is_under_way(
    store: SqliteStore, lane: LaneKey
) -> None:
    run, _ = await ready_run(store, 50, lane)
    async with feeding(store, run.id) as feed:
        taken = [await feed.next() for _ in range(6)]
        for item in reversed(taken):
            assert item is not None
            feed.put_back(item)
        feed.stop()
        await feed.give_back()
    record = await store.run(run.public_id)
    assert record is not None
    assert (record.counts.in_doubt, record.attempts, record.waiting) == (0, 0, 50)
    assert await store.batches() == []


async def test_writes_that_were_claimed_and_not_begun_are_not_in_doubt(store: SqliteStore) -> None:
    run, _ = await ready_run(store, 50, WRITES)
    async with feeding(store, run.id) as feed:
        while feed.in_hand < 50:
            await asyncio.sleep(0.01)
    assert await recovered(store) == (50, 0)  # the process died, or never got the claim's answer


async def test_writes_that_wait_again_and_were_claimed_and_not_begun_are_not_in_doubt(store: SqliteStore) -> None:
    run, lane_id = await ready_run(store, 50, WRITES)
    batch = await claimed(store, lane_id, HERE)
    back = [again(batch, position) for position in range(0, 50, 7)]
    rest = [result(batch, position) for position in range(50) if position % 7]
    await store.settle(settlement(results=rest, returned=back, finished=[batch], holder=HERE))
    async with feeding(store, run.id) as feed:
        while feed.in_hand < 8:
            await asyncio.sleep(0.01)
    assert await recovered(store) == (8, 0)  # the process died, or never got the claim's answer


async def test_of_writes_that_wait_again_few_are_in_hand_at_a_time(store: SqliteStore) -> None:
    run, lane_id = await ready_run(store, 50, WRITES)
    batch = await claimed(store, lane_id, HERE)
    back = [again(batch, position) for position in range(50)]
    await store.settle(settlement(returned=back, finished=[batch], holder=HERE))
    async with feeding(store, run.id) as feed:
        for _ in range(40):
            assert await feed.next() is not None
            await asyncio.sleep(0.005)
    _, left = await recovered(store)
    assert 40 <= left <= 46  # those that were taken, and few more


@pytest.mark.parametrize("lane", [READS, WRITES])
async def test_requests_of_many_lanes_are_in_hand_up_to_a_bound_and_each_lane_goes_on(
    store: SqliteStore, lane: LaneKey
) -> None:
    most, size, lanes = 40 * 100_000, 100_000, 12
    room = Room(most)
    runs = [(await ready_run(store, 100, lane))[0] for _ in range(lanes)]
    highest, taken = 0, 0

    async def large(items: Iterable[StoredItem]) -> list[StoredRequest | None]:
        return [StoredRequest(b"/", (), bytes(size)) for _ in items]

    async with AsyncExitStack() as stack:
        feeds = [await stack.enter_async_context(feeding(store, run.id, room, large)) for run in runs]
        for _ in range(100):
            for feed in feeds:
                taken += await feed.next() is not None  # and never waits for another lane's items to go
                in_hand = sum(len(item.request.body) for one in feeds for item in one._items if item.request)
                highest = max(highest, in_hand)
    assert room.taken == 0
    assert taken == 100 * lanes
    assert size * lanes <= highest <= most + FIRST * lanes * size


async def test_what_is_put_back_given_back_or_lost_makes_room_again(store: SqliteStore) -> None:
    run, _ = await ready_run(store, 50)
    room = Room()
    async with feeding(store, run.id, room) as feed:
        item = await feed.next()
        assert item is not None
        before = room.taken
        feed.put_back(item)
        assert room.taken > before > 0
        item.batch.lost = True
        feed.drop_lost()
        feed.stop()
        while not feed._ended:  # a claim may be under way
            await asyncio.sleep(0.01)
        await feed.give_back()
    assert room.taken == 0


async def test_a_lane_whose_items_are_lost_waits_for_no_room_that_others_take(store: SqliteStore) -> None:
    run, _ = await ready_run(store, 50)
    room = Room()
    room.take(room.left)  # other lanes have it all, and are in no hurry
    async with feeding(store, run.id, room) as feed:
        while feed.in_hand < FIRST:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert feed.in_hand == FIRST  # it has something to send, and waits
        for item in feed._items:
            item.batch.lost = True
        feed.drop_lost()
        found = await feed.next()
    assert found is not None
    assert found.stored.position == FIRST


async def test_answers_of_any_size_are_written_a_few_megabytes_at_a_time(store: SqliteStore) -> None:
    run, lane_id = await ready_run(store, 10)
    batch = await claimed(store, lane_id, HERE)
    stored: list[int] = []
    clock = JumpingClock()
    committer = Committer(
        store,
        HERE,
        clock,
        EventLog(clock, lambda _line: None),
        lambda settled: stored.append(settled.stored),
        lambda _seconds: None,
    )
    for position in range(10):
        committer.add(result(batch, position, sealed=bytes((20 if position == 5 else 6) << 20)))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(committer.run())
        await committer.flushed()
        writing.cancel()
    assert stored == [2, 2, 1, 1, 2, 2]
    record = await store.run(run.public_id)
    assert record is not None
    assert record.counts.done == 10
