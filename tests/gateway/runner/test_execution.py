"""Runs are executed: within caps and windows, each item once, with what the source answered, octet for octet."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from gateway.simulator import Latency, Rule, Script, standing_in
from policies.model import ItemState, RunState
from tests.conftest import JumpingClock, gateway_over
from tests.gateway.runner.making import (
    BASE,
    FAST,
    ONSS,
    WRITES,
    answer_of,
    items,
    nothing_in_hand,
    opened,
    patient,
    request,
    submit,
    until,
)


async def test_a_run_is_executed_within_the_cap_and_completed(tmp_path: Path) -> None:
    async with (
        standing_in(Script(latency=Latency(0.005, 0.01))) as stand_in,
        patient(tmp_path, stand_in.url) as run,
    ):
        mass = await opened(run)
        record = await submit(mass, 300)
        done = await until(mass, record, RunState.COMPLETED)
        settled = await items(mass, record)
        await nothing_in_hand(mass)
    assert done.counts.done == 300
    assert done.attempts == 300
    assert sorted(settled) == list(range(300))
    assert stand_in.counts.calls.total() == 300
    assert stand_in.counts.highest("national-register") == 4


async def test_an_answer_is_kept_octet_for_octet(tmp_path: Path) -> None:
    async with standing_in(record=True) as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 1)
        await until(mass, record, RunState.COMPLETED)
        (item,) = (await items(mass, record)).values()
        answer = answer_of(mass, record, item)
    (received,) = stand_in.received
    assert received.body == request().body
    assert answer.status == 200
    assert b"DATA_FOUND" in answer.body
    fields = dict(received.headers)
    assert fields[b"Host"].decode() == stand_in.url.removeprefix("http://")
    assert b"Authorization" not in fields


async def test_items_go_out_with_the_upstreams_own_credentials(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("opensesame")
    upstream = "call_timeout: 500ms, hold: 500ms, credentials: {user: gate, password: {file: secret}}"
    async with standing_in(record=True) as stand_in, gateway_over(tmp_path, stand_in.url, upstream=upstream) as run:
        mass = await opened(run)
        record = await submit(mass, 1)
        await until(mass, record, RunState.COMPLETED)
    assert dict(stand_in.received[0].headers)[b"Authorization"] == b"Basic Z2F0ZTpvcGVuc2VzYW1l"
    assert "opensesame" not in (tmp_path / "log.jsonl").read_text()


async def test_nothing_is_sent_in_office_hours_and_all_of_it_after(tmp_path: Path, morning: JumpingClock) -> None:
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, clock=morning) as run:
        mass = await opened(run)
        record = await submit(mass, 20)
        await asyncio.sleep(1.5)
        assert stand_in.counts.calls.total() == 0
        assert list(await mass.store.batches()) == []
        morning.skip(hours=8)
        mass.runner.wake()
        await until(mass, record, RunState.COMPLETED)
    assert stand_in.counts.calls.total() == 20


async def test_runs_of_one_priority_share_and_a_better_one_goes_first(tmp_path: Path) -> None:
    async with (
        standing_in(Script(latency=Latency(0.01, 0.01))) as stand_in,
        patient(tmp_path, stand_in.url) as run,
    ):
        mass = await opened(run)
        first = await submit(mass, 200)
        second = await submit(mass, 200)
        await until(mass, first, lambda one: one.counts.done >= 100)
        other = await mass.store.run(second.public_id)
        urgent = await submit(mass, 50, priority=1)
        await until(mass, urgent, RunState.COMPLETED)
        left = await mass.store.run(first.public_id)
        await until(mass, first, RunState.COMPLETED)
        await until(mass, second, RunState.COMPLETED)
    assert other is not None
    assert 60 <= other.counts.done <= 140
    assert left is not None
    assert left.counts.done < 200
    assert stand_in.counts.highest("national-register") == 4


async def test_lanes_of_other_pools_go_on_beside_each_other(tmp_path: Path) -> None:
    async with (
        standing_in(Script(latency=Latency(0.02, 0.02))) as stand_in,
        patient(tmp_path, stand_in.url) as run,
    ):
        mass = await opened(run)
        base, onss = await submit(mass, 100), await submit(mass, 50, ONSS)
        await until(mass, base, RunState.COMPLETED)
        await until(mass, onss, RunState.COMPLETED)
    assert stand_in.counts.highest("national-register") == 4
    assert stand_in.counts.highest("onss") == 2


async def test_technical_faults_are_tried_again_and_bounded(tmp_path: Path) -> None:
    rules = (Rule("fault", every=10, source="national-register"),)
    async with standing_in(Script(rules)) as stand_in, patient(tmp_path, stand_in.url, extra=FAST) as run:
        mass = await opened(run)
        record = await submit(mass, 100)
        done = await until(mass, record, RunState.COMPLETED)
    assert done.counts.done == 100
    assert done.attempts == stand_in.counts.calls.total() > 100


@pytest.mark.parametrize("kind", ["reset", "truncated", "garbage"])
async def test_a_fate_unknown_is_repeated_only_where_that_does_no_harm(tmp_path: Path, kind: str) -> None:
    rules = (Rule(kind, every=7),)
    extra = "runs: {retry_first: 10ms, retry_longest: 20ms, burst_faults: 1000}\n"
    async with standing_in(Script(rules)) as stand_in, patient(tmp_path, stand_in.url, extra=extra) as run:
        mass = await opened(run)
        reads = await submit(mass, 20)
        assert (await until(mass, reads, RunState.COMPLETED)).counts.done == 20
        calls = stand_in.counts.calls.total()
        writes = await submit(mass, 20, WRITES)
        paused = await until(mass, writes, RunState.PAUSED)
        doubtful = await items(mass, writes, ItemState.IN_DOUBT)
    assert stand_in.counts.calls.total() - calls == 20
    assert paused.counts.in_doubt == len(doubtful) >= 2
    assert paused.counts.in_doubt + paused.counts.done == 20


async def test_rejects_are_kept_and_too_many_hold_the_run(tmp_path: Path) -> None:
    extra = "runs: {reject_ratio: 0.2, reject_minimum: 20}\n"
    rules = (Rule("business", "MSG00012", every=2),)
    async with standing_in(Script(rules)) as stand_in, patient(tmp_path, stand_in.url, extra=extra) as run:
        mass = await opened(run)
        record = await submit(mass, 500)
        await until(mass, record, RunState.PAUSED)
        await nothing_in_hand(mass)
        paused = await until(mass, record, RunState.PAUSED)
        rejects = await items(mass, record, ItemState.REJECTED)
    assert paused.changed_by == "gateway"
    assert "rejects" in paused.reason
    assert 10 <= len(rejects) < 100
    assert {one.code for one in rejects.values()} == {"MSG00012"}
    assert stand_in.counts.calls.total() == paused.counts.settled < 150


async def test_a_run_is_paused_resumed_and_cancelled_by_a_person(tmp_path: Path) -> None:
    async with (
        standing_in(Script(latency=Latency(0.02, 0.02))) as stand_in,
        patient(tmp_path, stand_in.url) as run,
    ):
        mass = await opened(run)
        record = await submit(mass, 400)
        await until(mass, record, lambda one: one.counts.done >= 20)
        await mass.store.change_state(record.id, RunState.PAUSED, author="anna", reason="lunch")
        await asyncio.sleep(1.3)
        calls = stand_in.counts.calls.total()
        await asyncio.sleep(0.3)
        assert stand_in.counts.calls.total() == calls
        assert list(await mass.store.batches()) == []
        await mass.store.change_state(record.id, RunState.READY, author="anna", reason="back")
        mass.runner.wake()
        await until(mass, record, lambda one: one.counts.done >= calls + 20)
        await mass.store.change_state(record.id, RunState.CANCELLED, author="anna", reason="enough")
        await asyncio.sleep(1.3)
        ended = await mass.store.run(record.public_id)
        settled = await items(mass, record)
    assert ended is not None
    assert ended.state is RunState.CANCELLED
    assert stand_in.counts.calls.total() == len(settled) == ended.counts.done < 400


async def test_a_graceful_stop_gives_back_and_the_next_start_goes_on(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with standing_in(Script(latency=Latency(0.02, 0.02))) as stand_in:
        async with patient(tmp_path, stand_in.url, clock=clock) as run:
            mass = await opened(run)
            record = await submit(mass, 150, WRITES)
            await until(mass, record, lambda one: one.counts.done >= 20)
        done = stand_in.counts.calls.total()
        async with patient(tmp_path, stand_in.url, clock=clock, clean=False) as run:
            mass = await opened(run)
            again = await until(mass, record, RunState.COMPLETED)
    assert 20 <= done < 150
    assert again.counts.done == 150
    assert again.counts.in_doubt == 0
    assert stand_in.counts.calls.total() == 150
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "batch recovered" not in events
    assert "defect" not in events


async def test_an_unclassified_item_takes_a_slot_wherever_it_may_lead(tmp_path: Path) -> None:
    unknown = type(BASE)("/", (), True)
    async with (
        standing_in(Script(latency=Latency(0.02, 0.02))) as stand_in,
        patient(tmp_path, stand_in.url) as run,
    ):
        mass = await opened(run)
        record = await submit(mass, 10, unknown)
        await until(mass, record, RunState.COMPLETED)
        peaks = {name: pool.peak for name, pool in run.gateway.slots.statistics().pools.items()}
    assert set(peaks.values()) == {2}


async def test_a_lane_that_is_leaving_takes_no_more_workers(tmp_path: Path) -> None:
    async with standing_in() as stand_in, gateway_over(tmp_path, stand_in.url, extra=FAST) as run:
        mass = await opened(run)
        runs = [await submit(mass, 5) for _ in range(20)]
        over, dice = False, Random(1)

        async def resizes() -> None:  # as the executor may, at any moment
            while not over:
                for lane in mass.runner._executor.lanes.values():
                    lane.resize(lane.workers)
                for _ in range(dice.randrange(1, 8)):
                    await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(resizes())
            for one in runs:
                assert (await until(mass, one, RunState.COMPLETED)).counts.done == 5
            over = True


async def test_a_lane_whose_batches_another_has_ended_claims_anew(tmp_path: Path) -> None:
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, gateway_over(tmp_path, stand_in.url, extra=FAST) as run:
        mass = await opened(run)
        record = await submit(mass, 300)
        for done in (10, 100, 200):
            await until(mass, record, lambda one, done=done: one.counts.done >= done)
            for sighting in await mass.store.batches():  # as one does that has seen nothing of us for long
                await mass.store.recover(sighting, delay_s=0.0)
        assert (await until(mass, record, RunState.COMPLETED)).counts.done == 300
