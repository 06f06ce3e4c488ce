"""Runs that clients drive by themselves: let through, counted, held."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.log import EventLog
from gateway.mass import Opened
from gateway.records import RunRecord
from gateway.runner.client_runs import ClientRuns
from policies.model import ItemState, Reason, RunKind, RunState
from policies.recovery import Disposition
from policies.statuses import Kind
from tests.conftest import JumpingClock, gateway_over
from tests.gateway.runner.making import opened, submit

DONE = Disposition(ItemState.DONE, "MSG00000", "", Kind.OK)
REJECTED = Disposition(ItemState.REJECTED, "MSG00012", "", Kind.REJECT)
AGAIN = Disposition(ItemState.WAITING, "HTTP 503", "", Kind.TECHNICAL, technical=True)
STOPPED = Disposition(ItemState.WAITING, "HTTP 403", "not allowed", Kind.STOP, holds_run=True, counts=False)
NOWHERE = "http://127.0.0.1:9"


async def driven(mass: Opened, **changes: Any) -> RunRecord:
    """Make a client-driven run of the client `mutuality`, ready."""
    record = await submit(mass, 0, ready=False, kind=RunKind.CLIENT, client="mutuality", **changes)
    return await mass.store.change_state(record.id, RunState.READY, author="anna", reason="")


async def test_a_call_goes_on_only_in_a_run_of_its_own_client_that_goes_on(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with gateway_over(tmp_path, NOWHERE, clock=clock) as run:
        mass = await opened(run)
        runs = mass.runner.client_runs
        record, stored = await driven(mass), await submit(mass, 0, ready=False)
        assert await runs.begin(record.public_id, "mutuality") is None
        assert await runs.begin(record.public_id, "another") is Reason.UNKNOWN_RUN
        assert await runs.begin(stored.public_id, "mutuality") is Reason.UNKNOWN_RUN
        assert await runs.begin("f" * 32, "mutuality") is Reason.UNKNOWN_RUN
        await mass.store.change_state(record.id, RunState.PAUSED, author="anna", reason="lunch")
        clock.skip(seconds=3)
        assert await runs.begin(record.public_id, "mutuality") is Reason.RUN_PAUSED
        await mass.store.change_state(record.id, RunState.CANCELLED, author="anna", reason="enough")
        clock.skip(seconds=3)
        assert await runs.begin(record.public_id, "mutuality") is Reason.UNKNOWN_RUN


async def test_calls_are_counted_once_what_will_be_repeated_is_not_settled(tmp_path: Path) -> None:
    async with gateway_over(tmp_path, NOWHERE) as run:
        mass = await opened(run)
        runs = mass.runner.client_runs
        record = await driven(mass)
        assert await runs.begin(record.public_id, "mutuality") is None
        for how in (DONE, DONE, REJECTED, AGAIN, None):
            runs.ended(record.public_id, how)
        await runs.write()
        await runs.write()
        counted = await mass.store.run(record.public_id)
    assert counted is not None
    assert (counted.counts.done, counted.counts.rejected, counted.counts.failed) == (2, 1, 0)
    assert counted.attempts == 5
    assert counted.total == 3


async def test_calls_are_counted_once_though_the_answer_to_their_counting_was_lost(tmp_path: Path) -> None:
    async with gateway_over(tmp_path, NOWHERE) as run:
        mass = await opened(run)
        runs = ClientRuns(mass.store, run.clock, EventLog(run.clock, lambda _line: None), mass.runner._reject_terms)
        record = await driven(mass)
        assert await runs.begin(record.public_id, "mutuality") is None
        for number in range(3):
            runs.ended(record.public_id, DONE)
            lost = asyncio.create_task(runs.write())
            await asyncio.sleep(0)  # the store has been asked, and carries it out
            lost.cancel()
            await asyncio.wait([lost])
            runs.ended(record.public_id, REJECTED)
            if number:
                await runs.write()
        counted = await mass.store.run(record.public_id)
    assert counted is not None
    assert (counted.counts.done, counted.counts.rejected, counted.attempts, counted.total) == (3, 3, 6, 6)


@pytest.mark.parametrize("how", [(STOPPED,), (REJECTED,) * 3 + (DONE,) * 7], ids=["not allowed", "rejects"])
async def test_a_run_that_must_be_held_is_paused_and_its_client_refused_at_once(
    tmp_path: Path, how: tuple[Disposition, ...]
) -> None:
    async with gateway_over(tmp_path, NOWHERE) as run:
        mass = await opened(run)
        runs = mass.runner.client_runs
        record = await driven(mass, options={"reject_ratio": 0.25, "reject_minimum": 10})
        assert await runs.begin(record.public_id, "mutuality") is None
        for one in how:
            runs.ended(record.public_id, one)
        assert await runs.begin(record.public_id, "mutuality") is Reason.RUN_PAUSED
        await runs.write()
        held = await mass.store.run(record.public_id)
        assert held is not None
        assert held.state is RunState.PAUSED
        assert held.changed_by == "gateway"
        assert held.reason
        assert await runs.begin(record.public_id, "mutuality") is Reason.RUN_PAUSED


async def test_counts_that_were_not_written_yet_are_written_at_the_end(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with gateway_over(tmp_path, NOWHERE, clock=clock) as run:
        mass = await opened(run)
        record = await driven(mass)
        await mass.runner.client_runs.begin(record.public_id, "mutuality")
        mass.runner.client_runs.ended(record.public_id, DONE)
    async with gateway_over(tmp_path, NOWHERE, clock=clock, clean=False) as run:
        mass = await opened(run)
        counted = await mass.store.run(record.public_id)
    assert counted is not None
    assert counted.counts.done == 1
