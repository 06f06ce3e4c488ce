"""The store's contract: life, submission, runs, results, purge, audit. Every engine keeps it."""

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.records import RETENTION_S, Counts, LaneKey, NewItem
from gateway.store.interface import StateError, Store, StoreError
from gateway.store.migrating import migrations
from policies.model import ItemState, RunKind, RunState
from policies.runs import ENDED, RUN_CHANGES
from tests.gateway.store.conftest import Kept, OpenStore
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

# Life.


async def test_what_was_acknowledged_is_there_when_the_store_is_opened_again(
    open_store: OpenStore, tmp_path: Path
) -> None:
    async with open_store(tmp_path) as kept:
        run, lane_id = await ready_run(kept.store, 3)
        batch = await claimed(kept.store, lane_id)
        await kept.store.settle(settlement(results=[result(batch, 0)]))
        await kept.store.hold("all", author="anna", reason="stop")
    async with open_store(tmp_path) as kept:
        found = await kept.store.run(run.public_id)
        assert found is not None
        assert (found.state, found.total, found.counts) == (RunState.RUNNING, 3, Counts(done=1))
        assert [one.batch_id for one in await kept.store.batches()] == [batch.batch_id]
        assert [one.scope for one in (await kept.store.controls()).holds] == ["all"]


async def test_migrating_twice_changes_nothing(store: Store) -> None:
    before, after = await store.migrate()
    assert before == after >= 1


def test_steps_of_the_schema_are_numbered_without_holes() -> None:
    steps = migrations("sqlite")
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.sql.strip() for step in steps)


# Submission.


async def test_a_new_run_is_loading_and_empty(kept: Kept) -> None:
    wanted = new_run(
        name="check",
        route="/persons",
        client="tag",
        priority=3,
        not_before=kept.now() + timedelta(hours=1),
        max_attempts=7,
        options={"reject_ratio": 0.1, "notes": ["a"]},
    )
    run = await kept.store.create_run(wanted)
    assert (run.state, run.total, run.received, run.counts, run.attempts) == (RunState.LOADING, 0, 0, Counts(), 0)
    assert (run.public_id, run.kind, run.name, run.author) == (wanted.public_id, RunKind.FILE, "check", "anna")
    assert (run.route, run.client, run.priority, run.max_attempts) == ("/persons", "tag", 3, 7)
    assert (run.not_before, run.options, run.wrapped_key) == (wanted.not_before, wanted.options, b"wrapped")
    assert (run.dictionary, run.started_at, run.ended_at, run.purge_after) == (None, None, None, None)
    assert run.changed_by == "anna"
    assert abs((run.created_at - kept.now()).total_seconds()) < 30
    assert await kept.store.run(run.public_id) == run
    assert await kept.store.run(secrets.token_hex(16)) is None


async def test_the_same_idempotency_key_of_an_author_is_the_same_run(store: Store) -> None:
    first = await store.create_run(new_run(idempotency_key="night-7"))
    assert (await store.create_run(new_run(idempotency_key="night-7", name="other"))).id == first.id
    assert (await store.create_run(new_run(idempotency_key="night-7", author="bert"))).id != first.id
    assert (await store.create_run(new_run())).id != (await store.create_run(new_run())).id


async def test_a_run_gets_its_dictionary_once(store: Store) -> None:
    run = await store.create_run(new_run())
    assert await store.set_dictionary(run.id, b"first") == b"first"
    assert await store.set_dictionary(run.id, b"second") == b"first"
    found = await store.run(run.public_id)
    assert found is not None
    assert found.dictionary == b"first"


async def test_items_go_behind_those_of_their_lane_without_holes(store: Store) -> None:
    run = await store.create_run(new_run())
    mixed = [replace(item, lane=WRITES if item.seq % 3 == 0 else READS) for item in items(range(10))]
    loaded = await store.add_items(run.id, mixed[:5], received=5, places=True)
    more = await store.add_items(run.id, mixed[5:], received=10, places=True)
    assert (loaded.added, loaded.duplicates, loaded.received, more.received) == (5, 0, 5, 10)
    lanes = {work.key: (work, total) for work, total in await store.lanes(run.id)}
    assert {key: total for key, (_, total) in lanes.items()} == {WRITES: 4, READS: 6}
    assert {key: work.unclaimed for key, (work, _) in lanes.items()} == {WRITES: 4, READS: 6}
    places = {**loaded.places, **more.places}
    for key in (READS, WRITES):
        positions = [places[item.seq] for item in mixed if item.lane == key]
        assert positions == [(lanes[key][0].lane_id, position) for position in range(len(positions))]


async def test_places_are_told_only_where_asked_for(store: Store) -> None:
    run = await store.create_run(new_run())
    assert (await store.add_items(run.id, items(range(2)), received=2)).places == {}


@pytest.mark.parametrize(
    "lane",
    [
        replace(READS, route="/other"),
        replace(READS, sources=()),
        replace(READS, sources=("a", "b")),
        replace(READS, repeatable=False),
        replace(READS, service="Other"),
    ],
)
async def test_items_that_differ_in_anything_of_their_lane_lie_in_lanes_of_their_own(
    store: Store, lane: LaneKey
) -> None:
    run = await store.create_run(new_run())
    await store.add_items(run.id, [*items(range(1)), *items(range(1, 2), lane)], received=2)
    assert {work.key for work, _ in await store.lanes(run.id)} == {READS, lane}


async def test_an_upload_that_is_repeated_adds_nothing_twice(store: Store) -> None:
    """A client that lost the answer begins again where the run says, or from the start."""
    run = await store.create_run(new_run())
    await store.add_items(run.id, items(range(6)), received=6)
    loaded = await store.add_items(run.id, items(range(8)), received=8)
    assert (loaded.added, loaded.duplicates, loaded.received) == (2, 6, 8)
    loaded = await store.add_items(run.id, items(range(4)), received=4)
    assert (loaded.added, loaded.duplicates, loaded.received) == (0, 4, 8)
    found = await store.run(run.public_id)
    assert found is not None
    assert (found.received, found.total) == (8, 8)


async def test_entries_that_gave_no_item_count_as_received(store: Store) -> None:
    run = await store.create_run(new_run())
    loaded = await store.add_items(run.id, items(range(3, 5)), received=10)
    assert (loaded.added, loaded.received) == (2, 10)
    assert (await store.add_items(run.id, [], received=12)).received == 12


async def test_an_item_beyond_what_was_received_is_an_error(store: Store) -> None:
    run = await store.create_run(new_run())
    with pytest.raises(StoreError):
        await store.add_items(run.id, items(range(5)), received=3)
    found = await store.run(run.public_id)
    assert found is not None
    assert (found.total, found.received) == (0, 0)


async def test_a_key_that_the_run_knows_is_not_added_again(store: Store) -> None:
    run = await store.create_run(new_run())
    other = await store.create_run(new_run())
    await store.add_items(run.id, items(range(4), keyed=True), received=4)
    repeated = [replace(item, seq=item.seq + 4) for item in items(range(2, 6), keyed=True)]
    twice = [*repeated, replace(repeated[-1], seq=10)]
    loaded = await store.add_items(run.id, twice, received=11, places=True)
    assert (loaded.added, loaded.duplicates) == (2, 3)
    assert sorted(loaded.places) == [8, 9]
    assert [position for _, position in loaded.places.values()] == [4, 5]
    assert (await store.add_items(other.id, items(range(4), keyed=True), received=4)).added == 4


async def test_items_without_a_key_are_all_added(store: Store) -> None:
    run = await store.create_run(new_run())
    same = [NewItem(seq, READS, b"same") for seq in range(3)]
    assert (await store.add_items(run.id, same, received=3)).added == 3


@pytest.mark.parametrize("state", [RunState.READY, RunState.PAUSED, RunState.CANCELLED])
async def test_a_run_that_is_not_loading_takes_no_items(store: Store, state: RunState) -> None:
    run, _ = await ready_run(store, 1)
    if state is not RunState.READY:
        await store.change_state(run.id, state, author="anna", reason="stop")
    with pytest.raises(StateError, match=state.value):
        await store.add_items(run.id, items(range(1, 2)), received=2)


async def test_a_client_driven_run_takes_no_items(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.CLIENT))
    with pytest.raises(StateError):
        await store.add_items(run.id, items(range(1)), received=1)


async def test_an_async_run_is_ready_at_once_and_what_joins_it_keeps_its_number(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.ASYNC))
    for number in range(3):
        handle = secrets.token_hex(16)
        seq = (number + 1) << 50  # as `packing.new_seq` makes them
        item = NewItem(seq, READS, b"call %d" % number, handle=handle)
        loaded = await store.add_items(run.id, [item], received=None, places=True)
        found = await store.find_handle(handle)
        assert found is not None
        assert (found[0].id, found[0].state) == (run.id, RunState.READY)
        assert found[1:] == loaded.places[seq]
        assert loaded.places[seq][1] == number
        assert loaded.received == number + 1
        batch = await claimed(store, found[1])
        assert [(one.seq, one.sealed) for one in await store.fetch(batch)] == [(seq, item.sealed)]
        await settle_all(store, batch)
        assert (await store.rest(run.id, may_complete=False)).state is RunState.READY
    assert [one.seq for one in await store.items(run.id)] == [1 << 50, 2 << 50, 3 << 50]


async def test_an_async_run_that_ended_does_not_grow(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.ASYNC))
    await store.add_items(run.id, items(range(1)), received=None)
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="enough")
    with pytest.raises(StateError):
        await store.add_items(run.id, items(range(1)), received=None)


async def test_an_unknown_handle_points_nowhere(store: Store) -> None:
    assert await store.find_handle(secrets.token_hex(16)) is None
    assert await store.find_handle("not a handle") is None


async def test_the_async_run_of_a_client_route_and_day_is_found(store: Store) -> None:
    options = {"day": "2026-11-24"}
    wanted = await store.create_run(new_run(kind=RunKind.ASYNC, client="tag", route="/persons", options=options))
    await store.create_run(new_run(kind=RunKind.FILE, client="tag", route="/persons", options=options))
    found = await store.async_run("tag", "/persons", "2026-11-24")
    assert found is not None
    assert found.id == wanted.id
    for other in (("gat", "/persons", "2026-11-24"), ("tag", "/x", "2026-11-24"), ("tag", "/persons", "2026-11-25")):
        assert await store.async_run(*other) is None


# Runs.


async def test_runs_are_listed_oldest_first_by_state_and_page(store: Store) -> None:
    made = [(await store.create_run(new_run())).id for _ in range(5)]
    await store.change_state(made[1], RunState.READY, author="anna", reason="")
    await store.change_state(made[3], RunState.CANCELLED, author="anna", reason="")
    assert [run.id for run in await store.runs()] == made
    assert [run.id for run in await store.runs(after=made[1], limit=2)] == made[2:4]
    assert [run.id for run in await store.runs([RunState.READY, RunState.CANCELLED])] == [made[1], made[3]]


@pytest.mark.parametrize("before", RunState)
@pytest.mark.parametrize("after", RunState)
async def test_a_state_changes_only_by_the_table(store: Store, before: RunState, after: RunState) -> None:
    run = await store.create_run(new_run())
    for state in {
        RunState.RUNNING: [RunState.READY, RunState.RUNNING],
        RunState.PAUSED: [RunState.READY, RunState.PAUSED],
        RunState.COMPLETED: [RunState.READY, RunState.COMPLETED],
        RunState.LOADING: [],
    }.get(before, [before]):
        run = await store.change_state(run.id, state, author="anna", reason="on the way")
    if after in RUN_CHANGES[before]:
        run = await store.change_state(run.id, after, author="bert", reason="because")
        assert (run.state, run.changed_by, run.reason) == (after, "bert", "because")
        assert (run.ended_at is not None) == (after in ENDED)
    else:
        with pytest.raises(StateError, match=before.value):
            await store.change_state(run.id, after, author="bert", reason="because")
        assert await store.run(run.public_id) == run


async def test_a_change_that_expects_another_state_does_not_happen(store: Store) -> None:
    run, _ = await ready_run(store, 1)
    with pytest.raises(StateError, match="ready"):
        await store.change_state(
            run.id, RunState.CANCELLED, author="anna", reason="", expected=[RunState.PAUSED, RunState.RUNNING]
        )
    run = await store.change_state(run.id, RunState.PAUSED, author="anna", reason="", expected=[RunState.READY])
    assert run.state is RunState.PAUSED


async def test_priority_changes_until_the_end(store: Store) -> None:
    run = await store.create_run(new_run())
    assert (await store.set_priority(run.id, 1, author="anna")).priority == 1
    with pytest.raises(StoreError):
        await store.set_priority(run.id, 10, author="anna")
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
    with pytest.raises(StateError):
        await store.set_priority(run.id, 2, author="anna")


async def test_what_does_not_exist_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.change_state(4711, RunState.READY, author="anna", reason="")
    with pytest.raises(StoreError):
        await store.add_items(4711, items(range(1)), received=1)


async def test_a_client_driven_run_is_counted(store: Store) -> None:
    run = await store.create_run(new_run(kind=RunKind.CLIENT))
    await store.count(run.id, done=3, rejected=1, failed=0, attempts=5, by=("here", 1))
    await store.count(run.id, done=1, rejected=0, failed=2, attempts=4, by=("here", 2))
    for known in (("here", 2), ("here", 1)):  # an answer was lost
        run = await store.count(run.id, done=1, rejected=0, failed=2, attempts=4, by=known)
    assert (run.counts, run.total, run.attempts, run.waiting) == (Counts(4, 1, 2, 0), 7, 9, 0)
    with pytest.raises(StoreError):
        await store.count(run.id, done=-1, rejected=0, failed=0, attempts=0, by=("here", 3))
    other = await store.create_run(new_run())
    with pytest.raises(StateError):
        await store.count(other.id, done=1, rejected=0, failed=0, attempts=1, by=("here", 4))
    run = await store.count(run.id, done=1, rejected=0, failed=0, attempts=1, by=("there", 1))  # another gateway
    assert (run.counts, run.attempts) == (Counts(5, 1, 2, 0), 10)
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
    await store.purge(run.id, author="anna")


# Purge.


async def test_purging_drops_key_items_results_and_client_keys_and_keeps_counts_and_audit(store: Store) -> None:
    run = await store.create_run(new_run())
    handle = secrets.token_hex(16)
    entries = [*items(range(5), keyed=True), NewItem(5, READS, b"x", handle=handle)]
    await store.add_items(run.id, entries, received=6)
    await store.set_dictionary(run.id, b"dictionary")
    await store.change_state(run.id, RunState.READY, author="anna", reason="")
    ((lane, _),) = await store.lanes(run.id)
    batch = await claimed(store, lane.lane_id, size=3)
    await store.settle(settlement(results=[result(batch, 0)], returned=[again(batch, 1)]))
    with pytest.raises(StateError):
        await store.purge(run.id, author="bert")
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="wrong file")
    purged = await store.purge(run.id, author="bert")
    assert (purged.wrapped_key, purged.dictionary) == (None, None)
    assert (purged.total, purged.counts, purged.attempts, purged.state) == (6, Counts(done=1), 2, RunState.CANCELLED)
    assert await store.items(run.id) == []
    assert await store.item_at(lane.lane_id, 0) is None
    assert await store.find_handle(handle) is None
    assert list(await store.batches()) == []
    late = await store.settle(settlement(results=[result(batch, 2)]))
    assert (late.stored, late.lost) == (0, frozenset({batch.batch_id}))
    assert (await store.purge(run.id, author="bert")).counts == Counts(done=1)
    rows = [(row.author, row.action) for row in await store.audit() if row.subject == run.public_id]
    assert rows.count(("bert", "purge run")) == 1
    with pytest.raises(StateError):
        await store.set_dictionary(run.id, b"late")


async def test_ended_runs_are_purged_after_their_retention(kept: Kept) -> None:
    store = kept.store
    short, long, purged = [
        await store.create_run(new_run(options=options)) for options in ({"retention_s": 3600}, {}, {"retention_s": 0})
    ]
    await store.create_run(new_run())  # still loading: kept as long as it takes
    for run in (short, long, purged):
        ended = await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        assert ended.ended_at is not None
        assert ended.purge_after is not None
    await store.purge(purged.id, author="gateway")
    assert await store.to_purge(kept.now()) == []
    await kept.skip(3601)
    assert [run.id for run in await store.to_purge(kept.now())] == [short.id]
    await kept.skip(RETENTION_S)
    assert [run.id for run in await store.to_purge(kept.now())] == [short.id, long.id]


# Audit.


async def test_every_change_that_somebody_makes_is_in_the_audit_rows(store: Store) -> None:
    run = await store.create_run(new_run())
    await store.change_state(run.id, RunState.READY, author="bert", reason="go")
    await store.set_priority(run.id, 1, author="carl")
    await store.change_state(run.id, RunState.CANCELLED, author="dora", reason="stop")
    await store.note("emil", "reload", "configuration", "2 changes")
    await store.hold("all", author="fred", reason="stop")
    await store.unhold("all", author="gina", reason="go")
    rows = await store.audit()
    assert [row.author for row in rows] == ["anna", "bert", "carl", "dora", "emil", "fred", "gina"]
    assert {row.subject for row in rows[:4]} == {run.public_id}
    assert (rows[1].detail, rows[3].detail) == ("go", "stop")
    assert (rows[4].action, rows[4].subject, rows[4].detail) == ("reload", "configuration", "2 changes")
    assert [row.id for row in await store.audit(after=rows[1].id, limit=2)] == [rows[2].id, rows[3].id]


async def test_what_is_refused_leaves_no_audit_row(store: Store) -> None:
    run = await store.create_run(new_run())
    before = await store.audit()
    with pytest.raises(StateError):
        await store.change_state(run.id, RunState.PAUSED, author="anna", reason="")
    with pytest.raises(StateError):
        await store.unhold("all", author="anna", reason="")
    assert await store.audit() == before


# Results.


async def test_settled_items_are_listed_in_the_order_of_submission(store: Store) -> None:
    run = await store.create_run(new_run())
    mixed = [replace(item, lane=WRITES if item.seq % 2 else READS) for item in items(range(6), keyed=True)]
    await store.add_items(run.id, mixed, received=6)
    await store.change_state(run.id, RunState.READY, author="anna", reason="")
    states = [ItemState.DONE, ItemState.REJECTED, ItemState.FAILED]
    for work, _ in await store.lanes(run.id):
        batch = await claimed(store, work.lane_id)
        for position in range(3):
            settled = result(batch, position, states[position], code=f"c{position}", sealed=b"a%d" % position)
            await store.settle(settlement(results=[settled]))
    page = await store.items(run.id)
    assert [one.seq for one in page] == list(range(6))
    assert [one.state for one in page] == [states[seq // 2] for seq in range(6)]
    assert {one.service for one in page if one.seq % 2} == {"MutationService"}
    assert (page[0].status, page[0].took_ms, page[0].attempts, page[2].code) == (200, 20, 1, "c1")
    assert {(one.sealed_answer, one.sealed_request) for one in page} == {(b"", b"")}
    assert [one.sealed_key for one in page] == [b"key %d" % seq for seq in range(6)]
    rejects = [ItemState.REJECTED, ItemState.FAILED]
    assert [one.seq for one in await store.items(run.id, rejects)] == [2, 3, 4, 5]
    assert [one.seq for one in await store.items(run.id, rejects, after=2, limit=2)] == [3, 4]
    whole = await store.items(run.id, bodies=True, requests=True, limit=3)
    assert [one.sealed_answer for one in whole] == [b"a0", b"a0", b"a1"]
    assert [one.sealed_request for one in whole] == [b"request %d" % seq for seq in range(3)]
    one = await store.item_at(whole[2].lane_id, whole[2].position)
    assert one is not None
    assert (one.seq, one.sealed_answer) == (2, b"a1")


async def test_an_item_that_is_not_settled_has_no_record(store: Store) -> None:
    run, lane_id = await ready_run(store, 1)
    assert await store.item_at(lane_id, 0) is None
    await claimed(store, lane_id)
    assert await store.item_at(lane_id, 0) is None
    with pytest.raises(StoreError, match="sent"):
        await store.items(run.id, [ItemState.DONE, ItemState.SENT])
