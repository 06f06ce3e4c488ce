"""The store's contract: claims, batches, settlement, recovery, rest, decisions. Every engine keeps it."""

from datetime import timedelta

import pytest

from gateway.records import Batch, BatchSighting, Counts, Recovered, RunRecord, Settled, Settlement
from gateway.store.interface import StateError, Store, StoreError
from policies.model import ItemState, RunKind, RunState
from tests.gateway.store.conftest import Kept
from tests.gateway.store.making import (
    READS,
    WRITES,
    again,
    claimed,
    items,
    new_run,
    ready_run,
    result,
    settle_all,
    settlement,
)


async def state_of(store: Store, run: RunRecord) -> RunRecord:
    found = await store.run(run.public_id)
    assert found is not None
    return found


async def sighting_of(store: Store, batch: Batch) -> BatchSighting:
    (found,) = [one for one in await store.batches() if one.batch_id == batch.batch_id]
    return found


async def positions_of(store: Store, batch: Batch) -> list[int]:
    return [one.position for one in await store.fetch(batch)]


# Work and claims.


async def test_work_is_what_is_left_in_lanes_of_ready_and_running_runs(kept: Kept) -> None:
    store = kept.store
    ready, ready_lane = await ready_run(store, 5, priority=7)
    running, running_lane = await ready_run(store, 5, WRITES)
    batch = await claimed(store, running_lane, size=3)
    await store.settle(settlement(returned=[again(batch, 0)]))
    loading = await store.create_run(new_run())
    await store.add_items(loading.id, items(range(3)), received=3)
    paused, _ = await ready_run(store, 3)
    await store.change_state(paused.id, RunState.PAUSED, author="anna", reason="")
    empty = await store.create_run(new_run())
    await store.change_state(empty.id, RunState.READY, author="anna", reason="")
    found = {work.run_id: work for work in await store.work(kept.now())}
    assert found.keys() == {ready.id, running.id}
    one, other = found[ready.id], found[running.id]
    assert (one.lane_id, one.key, one.priority, one.unclaimed, one.due, one.in_batches) == (
        *(ready_lane, READS, 7, 5, 0, 0),
    )
    assert (other.public_id, other.key, other.unclaimed, other.due, other.in_batches) == (
        *(running.public_id, WRITES, 2, 1, 1),
    )


async def test_work_waits_for_its_time(kept: Kept) -> None:
    await ready_run(kept.store, 1, not_before=kept.now() + timedelta(hours=1))
    assert list(await kept.store.work(kept.now())) == []
    assert len(await kept.store.work(kept.now() + timedelta(hours=1, seconds=1))) == 1


async def test_a_lane_that_is_done_is_no_work(kept: Kept) -> None:
    run, lane_id = await ready_run(kept.store, 2)
    await settle_all(kept.store, await claimed(kept.store, lane_id))
    assert list(await kept.store.work(kept.now())) == []
    ((lane, total),) = await kept.store.lanes(run.id)
    assert (lane.unclaimed, lane.due, lane.in_batches, total) == (0, 0, 0, 2)


async def test_claims_go_through_a_lane_without_gap_or_overlap(store: Store) -> None:
    run, lane_id = await ready_run(store, 10)
    batches = [await claimed(store, lane_id, size=4, window=3) for _ in range(3)]
    assert [(batch.lo, batch.hi, batch.armed) for batch in batches] == [(0, 4, 3), (4, 8, 7), (8, 10, 10)]
    assert {(batch.lane_id, batch.run_id, batch.again) for batch in batches} == {(lane_id, run.id, False)}
    assert await store.claim(lane_id, "here", size=4, window=4) is None
    assert [await positions_of(store, batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    fetched = await store.fetch(batches[2])
    assert [(one.lane_id, one.seq, one.sealed, one.attempts) for one in fetched] == [
        (lane_id, 8, b"request 8", 0),
        (lane_id, 9, b"request 9", 0),
    ]


async def test_a_run_runs_from_its_first_claim_on(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    await claimed(store, lane_id, size=1)
    found = await state_of(store, run)
    assert found.state is RunState.RUNNING
    assert found.started_at is not None
    first = found.started_at
    await claimed(store, lane_id, size=1)
    assert (await state_of(store, run)).started_at == first


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLED, RunState.FAILED])
async def test_nothing_is_claimed_of_a_run_that_may_not_go_on(store: Store, state: RunState) -> None:
    run, lane_id = await ready_run(store, 5)
    batch = await claimed(store, lane_id, size=1)
    await store.settle(settlement(returned=[again(batch, 0)], finished=[batch]))
    await store.change_state(run.id, state, author="anna", reason="")
    assert await store.claim(lane_id, "here", size=1, window=1) is None
    assert await store.claim_returned(lane_id, "here", size=1) is None


async def test_returned_items_are_claimed_when_their_time_has_come(kept: Kept) -> None:
    store = kept.store
    run, lane_id = await ready_run(store, 6)
    batch = await claimed(store, lane_id)
    await store.settle(
        settlement(returned=[again(batch, 1, delay_s=60), again(batch, 3, attempts=2), again(batch, 5, delay_s=3600)])
    )
    assert await positions_of(store, batch) == [0, 2, 4]
    first = await store.claim_returned(lane_id, "here", size=10)
    assert first is not None
    assert (first.again, first.armed) == (True, first.hi)
    assert [(one.position, one.attempts, one.seq) for one in await store.fetch(first)] == [(3, 2, 3)]
    assert await store.claim_returned(lane_id, "here", size=10) is None
    await kept.skip(61)
    assert [work.due for work in await store.work(kept.now())] == [1]
    second = await store.claim_returned(lane_id, "here", size=10)
    assert second is not None
    assert await positions_of(store, second) == [1]
    assert (await state_of(store, run)).attempts == 4


async def test_only_so_many_returned_items_are_claimed_oldest_first(kept: Kept) -> None:
    _, lane_id = await ready_run(kept.store, 6)
    batch = await claimed(kept.store, lane_id)
    await kept.store.settle(
        settlement(returned=[again(batch, position, delay_s=6 - position) for position in range(6)])
    )
    await kept.skip(10)
    claims = [await kept.store.claim_returned(lane_id, "here", size=4) for _ in range(2)]
    assert [await positions_of(kept.store, claim) for claim in claims if claim] == [[2, 3, 4, 5], [0, 1]]


async def test_a_ready_run_runs_again_when_returned_items_are_claimed(store: Store) -> None:
    run, lane_id = await ready_run(store, 1)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(returned=[again(batch, 0)], finished=[batch]))
    assert (await store.rest(run.id, may_complete=True)).state is RunState.READY
    assert await store.claim_returned(lane_id, "here", size=1) is not None
    assert (await state_of(store, run)).state is RunState.RUNNING


@pytest.mark.parametrize("step_s", [-3600, 3600])
async def test_a_clock_that_is_stepped_leaves_no_item_stuck(kept: Kept, step_s: float) -> None:
    _, lane_id = await ready_run(kept.store, 1)
    batch = await claimed(kept.store, lane_id)
    await kept.store.settle(settlement(returned=[again(batch, 0, delay_s=60)], finished=[batch]))
    await kept.skip(step_s)
    await kept.skip(61)
    assert [work.due for work in await kept.store.work(kept.now())] == [1]
    assert await kept.store.claim_returned(lane_id, "here", size=1) is not None


# Settlement.


async def test_a_settlement_counts_what_it_stores(store: Store) -> None:
    run, lane_id = await ready_run(store, 8)
    batch = await claimed(store, lane_id, size=5)
    states = [ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT]
    settled = await store.settle(
        settlement(
            results=[result(batch, position, state, attempts=position + 1) for position, state in enumerate(states)],
            returned=[again(batch, 4)],
            finished=[batch],
        )
    )
    assert settled == Settled({run.id: RunState.RUNNING}, frozenset(), 4)
    found = await state_of(store, run)
    assert (found.counts, found.waiting, found.attempts) == (Counts(1, 1, 1, 1), 4, 11)
    assert list(await store.batches()) == []


async def test_the_first_result_of_an_item_stays(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    first = result(batch, 0, ItemState.DONE, sealed=b"first")
    second = result(batch, 0, ItemState.REJECTED, sealed=b"second")
    assert (await store.settle(settlement(results=[first, second]))).stored == 1
    assert (await store.settle(settlement(results=[second]))).stored == 0
    record = await store.item_at(lane_id, 0)
    assert record is not None
    assert (record.state, record.sealed_answer) == (ItemState.DONE, b"first")
    found = await state_of(store, run)
    assert (found.counts, found.attempts) == (Counts(done=1), 1)


async def test_a_result_takes_an_item_off_the_returned(store: Store) -> None:
    run, lane_id = await ready_run(store, 1)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(returned=[again(batch, 0)]))
    await store.settle(settlement(results=[result(batch, 0, attempts=2)]))
    assert await store.claim_returned(lane_id, "here", size=1) is None
    assert (await state_of(store, run)).attempts == 2


async def test_a_late_result_forgets_no_call(store: Store) -> None:
    """Its batch was ended as a dead process's. By then another has called, or may be calling."""
    run, lane_id = await ready_run(store, 3)
    batch = await claimed(store, lane_id)
    await store.recover(await sighting_of(store, batch), delay_s=0)
    other = await store.claim_returned(lane_id, "other", size=2)
    assert other is not None
    await store.settle(Settlement("other", returned=[again(other, 0, attempts=2)]))
    late = [result(batch, position, attempts=1) for position in range(3)]
    assert (await store.settle(settlement(results=late))).stored == 3
    found = [await store.item_at(lane_id, position) for position in range(3)]
    assert [one.attempts for one in found if one is not None] == [2, 2, 1]
    assert (await state_of(store, run)).attempts == 5


async def test_an_item_with_a_result_is_not_returned(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(results=[result(batch, 0)]))
    await store.settle(settlement(returned=[again(batch, 0, attempts=2)]))
    await store.settle(settlement(results=[result(batch, 1)], returned=[again(batch, 1, attempts=2)]))
    assert await store.claim_returned(lane_id, "here", size=5) is None
    assert (await state_of(store, run)).counts == Counts(done=2)


async def test_an_item_that_was_returned_is_returned_again(kept: Kept) -> None:
    run, lane_id = await ready_run(kept.store, 2)
    first = await claimed(kept.store, lane_id)
    await kept.store.settle(settlement(results=[result(first, 1)], returned=[again(first, 0)], finished=[first]))
    second = await kept.store.claim_returned(lane_id, "here", size=5)
    assert second is not None
    await kept.store.settle(settlement(returned=[again(second, 0, attempts=2, delay_s=60)], finished=[second]))
    assert await kept.store.claim_returned(lane_id, "here", size=5) is None
    await kept.skip(61)
    third = await kept.store.claim_returned(lane_id, "here", size=5)
    assert third is not None
    assert [one.attempts for one in await kept.store.fetch(third)] == [2]
    assert (await state_of(kept.store, run)).attempts == 3


async def test_a_settlement_that_is_repeated_changes_nothing(store: Store) -> None:
    """Its answer was lost, and nobody knows whether it happened."""
    run, lane_id = await ready_run(store, 3)
    batch = await claimed(store, lane_id, window=1)
    same = settlement(
        results=[result(batch, 0)], returned=[again(batch, 1), again(batch, 2)], armed={batch.batch_id: 3}
    )
    assert (await store.settle(same)).stored == 1
    before = await state_of(store, run)
    assert (await store.settle(same)).stored == 0
    assert await state_of(store, run) == before
    claim = await store.claim_returned(lane_id, "here", size=5)
    assert claim is not None
    await store.settle(same)
    assert await positions_of(store, claim) == [1, 2]


async def test_what_is_returned_again_twice_is_not_taken_from_who_has_it_now(store: Store) -> None:
    run, lane_id = await ready_run(store, 1)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(returned=[again(batch, 0)], finished=[batch]))
    first = await store.claim_returned(lane_id, "here", size=1)
    assert first is not None
    same = settlement(returned=[again(first, 0, attempts=2)])
    await store.settle(same)
    second = await store.claim_returned(lane_id, "here", size=1)
    assert second is not None
    await store.settle(same)
    assert await positions_of(store, second) == [0]
    assert await positions_of(store, first) == []
    assert (await state_of(store, run)).attempts == 2


async def test_a_batch_with_something_left_does_not_end(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    with pytest.raises(StateError, match="1"):
        await store.settle(settlement(results=[result(batch, 0)], finished=[batch]))
    assert (await state_of(store, run)).counts == Counts()
    assert await positions_of(store, batch) == [0, 1]


async def test_a_result_must_settle(store: Store) -> None:
    _, lane_id = await ready_run(store, 1)
    batch = await claimed(store, lane_id)
    with pytest.raises(StoreError):
        await store.settle(settlement(results=[result(batch, 0, ItemState.WAITING)]))


async def test_only_what_is_in_a_batch_is_returned_from_it(store: Store) -> None:
    _, lane_id = await ready_run(store, 4)
    batch = await claimed(store, lane_id, size=2)
    with pytest.raises(StoreError):
        await store.settle(settlement(returned=[again(batch, 3)]))
    assert await store.claim_returned(lane_id, "here", size=5) is None


async def test_what_nobody_claimed_has_no_result(store: Store) -> None:
    run, lane_id = await ready_run(store, 4)
    batch = await claimed(store, lane_id, size=2)
    assert (await store.settle(settlement(results=[result(batch, 3), result(batch, 9)]))).stored == 0
    assert (await state_of(store, run)).counts == Counts()


async def test_there_is_nothing_to_claim_of_a_lane_that_does_not_exist(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.claim(4711, "here", size=1, window=1)


async def test_a_settlement_tells_the_state_of_its_runs(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    await store.change_state(run.id, RunState.PAUSED, author="anna", reason="wait")
    settled = await store.settle(settlement(results=[result(batch, 0)]))
    assert settled.states == {run.id: RunState.PAUSED}
    assert settled.stored == 1


async def test_what_comes_from_a_lost_batch_counts_if_it_is_the_first(store: Store) -> None:
    """A process was thought dead; another recovered its batch and sent the items again."""
    run, lane_id = await ready_run(store, 3)
    lost = await claimed(store, lane_id, "frozen")
    await store.recover(await sighting_of(store, lost), delay_s=0)
    batch = await store.claim_returned(lane_id, "here", size=5)
    assert batch is not None
    await store.settle(settlement(results=[result(batch, 0, attempts=2, sealed=b"second")]))
    late = settlement(
        results=[result(lost, 0, sealed=b"late"), result(lost, 1, sealed=b"late")],
        returned=[again(lost, 2)],
        armed={lost.batch_id: 3},
        finished=[lost],
        holder="frozen",
    )
    settled = await store.settle(late)
    assert settled == Settled({run.id: RunState.RUNNING}, frozenset({lost.batch_id}), 1)
    assert await positions_of(store, batch) == [2]
    answers = [await store.item_at(lane_id, position) for position in range(2)]
    assert [one.sealed_answer for one in answers if one] == [b"second", b"late"]
    assert (await store.settle(settlement(results=[result(batch, 1, attempts=2)]))).stored == 0
    assert (await state_of(store, run)).counts == Counts(done=2)


async def test_another_process_cannot_return_or_end_a_batch(store: Store) -> None:
    _, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id, "there", window=0)
    settled = await store.settle(
        settlement(returned=[again(batch, 0)], armed={batch.batch_id: 2}, finished=[batch], holder="here")
    )
    assert settled.lost == {batch.batch_id}
    assert await positions_of(store, batch) == [0, 1]
    assert await store.recover(await sighting_of(store, batch), delay_s=60) == Recovered(again=2)
    assert await store.claim_returned(lane_id, "here", size=5) is not None  # not armed: at once


async def test_a_settlement_of_several_runs_tells_them_apart(store: Store) -> None:
    runs = [await ready_run(store, 2) for _ in range(2)]
    batches = [await claimed(store, lane_id) for _, lane_id in runs]
    settled = await store.settle(
        settlement(results=[result(batches[0], 0), result(batches[1], 0, ItemState.REJECTED), result(batches[1], 1)])
    )
    assert settled.states == {run.id: RunState.RUNNING for run, _ in runs}
    assert [(await state_of(store, run)).counts for run, _ in runs] == [Counts(done=1), Counts(done=1, rejected=1)]


# Batches and recovery.


async def test_renewal_raises_the_number_of_a_holders_batches(store: Store) -> None:
    _, lane_id = await ready_run(store, 3)
    mine = [await claimed(store, lane_id, "here", size=1) for _ in range(2)]
    other = await claimed(store, lane_id, "there", size=1)
    before = {one.batch_id: one.renewal for one in await store.batches()}
    await store.renew_batches("here")
    after = {one.batch_id: one.renewal for one in await store.batches()}
    assert all(after[batch.batch_id] == before[batch.batch_id] + 1 for batch in mine)
    assert after[other.batch_id] == before[other.batch_id]
    assert {one.holder for one in await store.batches()} == {"here", "there"}


async def test_repeatable_items_wait_again_after_a_crash(kept: Kept) -> None:
    store = kept.store
    run, lane_id = await ready_run(store, 6, READS)
    batch = await claimed(store, lane_id, window=3)
    await store.settle(settlement(results=[result(batch, 0)]))
    assert await store.recover(await sighting_of(store, batch), delay_s=60) == Recovered(again=5)
    assert list(await store.batches()) == []
    at_once = await store.claim_returned(lane_id, "here", size=10)
    assert at_once is not None
    assert [(one.position, one.attempts) for one in await store.fetch(at_once)] == [(3, 0), (4, 0), (5, 0)]
    await kept.skip(61)
    later = await store.claim_returned(lane_id, "here", size=10)
    assert later is not None
    assert [(one.position, one.attempts) for one in await store.fetch(later)] == [(1, 1), (2, 1)]
    assert (await state_of(store, run)).attempts == 3


async def test_what_may_have_been_sent_and_must_not_be_repeated_is_in_doubt(store: Store) -> None:
    run, lane_id = await ready_run(store, 6, WRITES)
    batch = await claimed(store, lane_id, window=1)
    await store.settle(settlement(results=[result(batch, 0)], armed={batch.batch_id: 4}))
    assert await store.recover(await sighting_of(store, batch), delay_s=60) == Recovered(again=2, in_doubt=3)
    assert (await state_of(store, run)).counts == Counts(done=1, in_doubt=3)
    doubtful = await store.items(run.id, [ItemState.IN_DOUBT])
    assert [(one.position, one.attempts) for one in doubtful] == [(1, 1), (2, 1), (3, 1)]
    claim = await store.claim_returned(lane_id, "here", size=10)
    assert claim is not None
    assert await positions_of(store, claim) == [4, 5]


async def test_returned_items_of_a_dead_process_may_all_have_been_sent(kept: Kept) -> None:
    for lane, expected in ((READS, Recovered(again=2)), (WRITES, Recovered(in_doubt=2))):
        run, lane_id = await ready_run(kept.store, 2, lane)
        batch = await claimed(kept.store, lane_id)
        await kept.store.settle(settlement(returned=[again(batch, 0), again(batch, 1)], finished=[batch]))
        second = await kept.store.claim_returned(lane_id, "here", size=5)
        assert second is not None
        assert await kept.store.recover(await sighting_of(kept.store, second), delay_s=60) == expected
        assert await kept.store.claim_returned(lane_id, "here", size=5) is None
        found = await state_of(kept.store, run)
        assert (found.counts.in_doubt, found.attempts) == (expected.in_doubt, 4)


async def test_a_mark_never_goes_back_nor_beyond_its_batch(store: Store) -> None:
    for marks, in_doubt in (((2, 1), 2), ((99,), 4)):
        _, lane_id = await ready_run(store, 4, WRITES)
        batch = await claimed(store, lane_id, window=0)
        for mark in marks:
            await store.settle(settlement(armed={batch.batch_id: mark}))
        recovered = await store.recover(await sighting_of(store, batch), delay_s=0)
        assert recovered == Recovered(again=4 - in_doubt, in_doubt=in_doubt)


async def test_a_batch_that_stands_otherwise_is_not_recovered(store: Store) -> None:
    _, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    seen = await sighting_of(store, batch)
    await store.renew_batches("here")
    assert await store.recover(seen, delay_s=0) is None
    assert await positions_of(store, batch) == [0, 1]
    assert await store.recover(await sighting_of(store, batch), delay_s=0) == Recovered(again=2)
    assert await store.recover(seen, delay_s=0) is None


async def test_a_lost_batch_has_nothing_to_send(store: Store) -> None:
    _, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id)
    await store.recover(await sighting_of(store, batch), delay_s=0)
    assert await positions_of(store, batch) == []


# Rest.


async def test_a_run_rests_only_when_nobody_has_a_batch_of_it(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    batch = await claimed(store, lane_id, "there", size=1)
    assert (await store.rest(run.id, may_complete=True)).state is RunState.RUNNING
    await settle_all(store, batch, holder="there")
    assert (await store.rest(run.id, may_complete=True)).state is RunState.READY


async def test_a_run_whose_items_are_settled_is_completed_if_it_may(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    await settle_all(store, await claimed(store, lane_id), ItemState.REJECTED)
    assert (await store.rest(run.id, may_complete=False)).state is RunState.READY
    found = await store.rest(run.id, may_complete=True)
    assert (found.state, found.changed_by) == (RunState.COMPLETED, "gateway")
    assert found.ended_at is not None
    assert (await store.rest(run.id, may_complete=True)).state is RunState.COMPLETED


async def test_calls_that_join_an_async_run_do_not_wait_for_a_person_s_word_on_others(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.ASYNC))
    await store.add_items(run.id, items(range(1), WRITES), received=None)
    ((work, _),) = await store.lanes(run.id)
    batch = await claimed(store, work.lane_id)
    await store.recover(await sighting_of(store, batch), delay_s=0)
    assert (await store.rest(run.id, may_complete=False)).state is RunState.READY  # today's: others will join it
    paused = await store.rest(run.id, may_complete=True)
    assert (paused.state, paused.reason) == (RunState.PAUSED, "in doubt")
    await store.add_items(run.id, items(range(1, 2), WRITES), received=None)  # from before midnight
    assert (await state_of(store, run)).state is RunState.READY
    assert (await claimed(store, work.lane_id)).hi == 2


async def test_calls_that_join_an_async_run_that_a_person_paused_wait(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.ASYNC))
    await store.add_items(run.id, items(range(1)), received=None)
    await store.change_state(run.id, RunState.PAUSED, author="anna", reason="in doubt")
    await store.add_items(run.id, items(range(1, 2)), received=None)
    assert (await state_of(store, run)).state is RunState.PAUSED


async def test_a_person_s_pause_takes_the_place_of_the_gateway_s_and_outlasts_doubt(store: Store) -> None:
    run, lane_id = await ready_run(store, 1, WRITES)
    await store.recover(await sighting_of(store, await claimed(store, lane_id)), delay_s=0)
    assert (await store.rest(run.id, may_complete=True)).reason == "in doubt"
    paused = await store.change_state(run.id, RunState.PAUSED, author="anna", reason="wait for me")
    assert (paused.state, paused.changed_by, paused.reason) == (RunState.PAUSED, "anna", "wait for me")
    with pytest.raises(StateError):
        await store.change_state(run.id, RunState.PAUSED, author="gateway", reason="in doubt")
    with pytest.raises(StateError):
        await store.change_state(run.id, RunState.PAUSED, author="bert", reason="me too")
    assert (await store.decide(run.id, 0, "repeat", author="bert", reason="")).state is RunState.PAUSED
    assert [row.author for row in await store.audit() if row.action == "run paused"] == ["gateway", "anna"]


async def test_a_run_with_only_doubt_left_is_paused_until_a_person_has_decided(store: Store) -> None:
    run, lane_id = await ready_run(store, 3, WRITES)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(results=[result(batch, 0)]))
    await store.recover(await sighting_of(store, batch), delay_s=0)
    found = await store.rest(run.id, may_complete=True)
    assert (found.state, found.changed_by, found.reason) == (RunState.PAUSED, "gateway", "in doubt")
    found = await store.decide(run.id, 1, "accept", author="anna", reason="seen in the source's log")
    assert (found.state, found.counts) == (RunState.PAUSED, Counts(done=2, in_doubt=1))
    found = await store.decide(run.id, 2, "fail", author="anna", reason="not there")
    assert (found.state, found.counts) == (RunState.READY, Counts(done=2, failed=1))
    assert (await store.rest(run.id, may_complete=True)).state is RunState.COMPLETED
    decided = [row for row in await store.audit() if row.action.startswith("decide")]
    assert [(row.author, row.detail) for row in decided] == [
        ("anna", "seen in the source's log"),
        ("anna", "not there"),
    ]


async def test_an_item_in_doubt_is_repeated_by_a_persons_word(store: Store) -> None:
    run, lane_id = await ready_run(store, 1, WRITES)
    batch = await claimed(store, lane_id)
    await store.recover(await sighting_of(store, batch), delay_s=3600)
    await store.rest(run.id, may_complete=True)
    found = await store.decide(run.id, 0, "repeat", author="anna", reason="not there")
    assert (found.state, found.counts, found.waiting) == (RunState.READY, Counts(), 1)
    second = await store.claim_returned(lane_id, "here", size=1)
    assert second is not None
    assert [one.attempts for one in await store.fetch(second)] == [1]
    await settle_all(store, second)
    found = await store.rest(run.id, may_complete=True)
    assert (found.state, found.counts, found.attempts) == (RunState.COMPLETED, Counts(done=1), 2)


async def test_a_settlement_that_comes_twice_does_not_undo_a_persons_word(store: Store) -> None:
    run, lane_id = await ready_run(store, 1, WRITES)
    batch = await claimed(store, lane_id)
    first = settlement(results=[result(batch, 0, ItemState.IN_DOUBT)], finished=[batch])
    await store.settle(first)
    await store.decide(run.id, 0, "repeat", author="anna", reason="not there")
    assert (await store.settle(first)).stored == 0  # its answer was lost, so it is said again
    assert (await state_of(store, run)).counts == Counts()
    second = await store.claim_returned(lane_id, "here", size=1)
    assert second is not None
    assert (await store.settle(first)).stored == 0
    await store.settle(settlement(results=[result(second, 0, ItemState.IN_DOUBT, attempts=2)], finished=[second]))
    assert (await state_of(store, run)).counts == Counts(in_doubt=1)


async def test_a_persons_pause_outlasts_the_last_decision(store: Store) -> None:
    run, lane_id = await ready_run(store, 1, WRITES)
    batch = await claimed(store, lane_id)
    await store.recover(await sighting_of(store, batch), delay_s=0)
    await store.change_state(run.id, RunState.PAUSED, author="anna", reason="wait")
    assert (await store.decide(run.id, 0, "accept", author="bert", reason="")).state is RunState.PAUSED


async def test_what_is_not_in_doubt_is_not_decided(store: Store) -> None:
    run, lane_id = await ready_run(store, 2, WRITES)
    batch = await claimed(store, lane_id)
    await store.settle(settlement(results=[result(batch, 0), result(batch, 1, ItemState.IN_DOUBT)]))
    for seq in (0, 7):
        with pytest.raises(StateError):
            await store.decide(run.id, seq, "accept", author="anna", reason="")
    with pytest.raises(StoreError):
        await store.decide(run.id, 1, "guess", author="anna", reason="")
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
    with pytest.raises(StateError):
        await store.decide(run.id, 1, "repeat", author="anna", reason="")
    assert (await store.decide(run.id, 1, "fail", author="anna", reason="")).counts == Counts(done=1, failed=1)


async def test_a_run_without_items_is_completed(store: Store) -> None:
    run = await store.create_run(new_run())
    await store.change_state(run.id, RunState.READY, author="anna", reason="")
    assert (await store.rest(run.id, may_complete=True)).state is RunState.COMPLETED


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLED])
async def test_a_run_that_does_not_go_on_stays_as_it_is(store: Store, state: RunState) -> None:
    run, lane_id = await ready_run(store, 1)
    await settle_all(store, await claimed(store, lane_id))
    await store.change_state(run.id, state, author="anna", reason="wait")
    found = await store.rest(run.id, may_complete=True)
    assert (found.state, found.reason) == (state, "wait")


async def test_a_client_driven_run_ends_by_its_clients_word(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.CLIENT))
    await store.change_state(run.id, RunState.READY, author="anna", reason="")
    assert (await store.rest(run.id, may_complete=True)).state is RunState.READY


async def test_start_and_end_of_a_run_are_in_the_audit_rows_and_its_turns_are_not(store: Store) -> None:
    run, lane_id = await ready_run(store, 2)
    for _ in range(2):
        await settle_all(store, await claimed(store, lane_id, size=1))
        await store.rest(run.id, may_complete=True)
    actions = [row.action for row in await store.audit() if row.author == "gateway"]
    assert actions == ["run running", "run completed"]
