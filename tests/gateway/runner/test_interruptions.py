"""Interruptions: bursts, cool-down, ramp, holds, restarts and store outages, seen at the source."""

import asyncio
import json
from pathlib import Path

from gateway.simulator import Latency, Rule, Script, standing_in
from policies.model import ALL_SOURCES, RunState
from tests.conftest import JumpingClock, Running, envelope, gateway_over, post
from tests.gateway.runner.making import (
    ONSS,
    SERVICES,
    WRITES,
    died,
    items,
    nothing_in_hand,
    opened,
    patient,
    submit,
    until,
)

QUICK = "runs: {retry_first: 10ms, retry_longest: 20ms, cool_down: 5min, ramp_step: 60s}\n"


def logged(run: Running, event: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, run.log.read_text().splitlines()) if line["event"] == event]


async def test_a_burst_of_faults_stops_the_source_and_only_it_and_the_ramp_brings_it_back(tmp_path: Path) -> None:
    clock = JumpingClock()
    script = Script((Rule("fault", source="onss"),), latency=Latency(0.01, 0.01))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url, extra=QUICK, clock=clock) as run:
        mass = await opened(run)
        bad, good = await submit(mass, 60, ONSS), await submit(mass, 60)
        await until(mass, good, RunState.COMPLETED)
        await asyncio.sleep(1.2)
        calls = stand_in.counts.calls["Dolsis2011Service"]
        await asyncio.sleep(0.5)
        assert stand_in.counts.calls["Dolsis2011Service"] == calls <= 10
        assert [one.source for one in (await mass.store.controls()).interruptions] == ["onss"]
        refused = await run.ask(post("/bulk/x", envelope(*SERVICES["onss"])))
        assert b"cooling_down" in refused
        # The source is well again; the cool-down lasts all the same, and the ramp begins with one slot.
        stand_in.script = Script(latency=Latency(0.05, 0.05))
        clock.skip(seconds=290)
        await asyncio.sleep(1.2)
        assert stand_in.counts.calls["Dolsis2011Service"] == calls
        stand_in.counts.peak.clear()
        clock.skip(seconds=11)
        await asyncio.sleep(1.5)
        assert stand_in.counts.calls["Dolsis2011Service"] > calls
        assert stand_in.counts.highest("onss") == 1
        clock.skip(seconds=61)
        await until(mass, bad, RunState.COMPLETED)
        assert stand_in.counts.highest("onss") == 2
        assert list((await mass.store.controls()).interruptions) == []
    assert len(logged(run, "interruption")) == 1
    assert len(logged(run, "interruption over")) == 1


async def test_faults_of_synchronous_calls_count_too(tmp_path: Path) -> None:
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, extra=QUICK) as run:
        mass = await opened(run)
        for _ in range(5):
            run.gateway.mass.noted({"onss"}, technical=True)
        await submit(mass, 10, ONSS)
        good = await submit(mass, 10)
        await until(mass, good, RunState.COMPLETED)
        await asyncio.sleep(1.1)
        assert stand_in.counts.calls["Dolsis2011Service"] == 0
        assert [one.source for one in (await mass.store.controls()).interruptions] == ["onss"]


async def test_a_fault_in_the_ramp_begins_it_again(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, extra=QUICK, clock=clock) as run:
        mass = await opened(run)
        await mass.store.interrupt("national-register", reason="test", cool_s=10)
        await asyncio.sleep(1.2)
        clock.skip(seconds=131)  # two minutes into the ramp: three slots
        await asyncio.sleep(1.2)
        assert mass.runner.interruptions.standing.at_most == {"national-register": 3}
        mass.runner.noted({"national-register"}, technical=True)
        assert mass.runner.interruptions.standing.at_most == {"national-register": 1}
        await asyncio.sleep(1.2)
        (record,) = (await mass.store.controls()).interruptions
    assert record.ramp_s < 10


async def test_a_hold_stops_a_source_until_its_end(tmp_path: Path) -> None:
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 400)
        await until(mass, record, lambda one: one.counts.done >= 20)
        await mass.store.hold("source:national-register", author="anna", reason="they asked")
        await asyncio.sleep(1.3)
        calls = stand_in.counts.calls.total()
        await nothing_in_hand(mass)
        await asyncio.sleep(0.3)
        assert stand_in.counts.calls.total() == calls < 400
        still = await mass.store.run(record.public_id)
        assert still is not None
        assert still.state is RunState.READY
        await mass.store.unhold("source:national-register", author="anna", reason="done")
        await until(mass, record, RunState.COMPLETED)


async def test_an_unclean_restart_cools_down_and_what_may_have_been_sent_is_in_doubt(tmp_path: Path) -> None:
    """The process is gone in the middle of calls: they are neither lost nor repeated where that may do harm."""
    clock = JumpingClock()
    async with standing_in(Script(latency=Latency(0.05, 0.05))) as stand_in:
        async with patient(tmp_path, stand_in.url, clock=clock) as run:
            mass = await opened(run)
            record = await submit(mass, 100, WRITES)
            await until(mass, record, lambda one: one.counts.done >= 10)
            left = await died(run)
        (tmp_path / "state" / "busy_until.json").write_text(left)
        calls = stand_in.counts.calls.total()
        async with patient(tmp_path, stand_in.url, clock=clock, clean=False, extra=QUICK) as run:
            mass = await opened(run)
            await asyncio.sleep(1.2)
            assert stand_in.counts.calls.total() == calls
            assert [one.source for one in (await mass.store.controls()).interruptions] == [ALL_SOURCES]
            clock.skip(seconds=301)
            stand_in.counts.peak.clear()
            await asyncio.sleep(1.5)
            assert stand_in.counts.highest("national-register") == 1
            clock.skip(seconds=200)
            paused = await until(mass, record, RunState.PAUSED)
            settled = await items(mass, record)
    assert len(settled) == 100
    assert 0 < paused.counts.in_doubt <= 16
    assert paused.counts.done + paused.counts.in_doubt == 100
    assert stand_in.counts.calls.total() <= 100


async def test_a_hold_is_heeded_from_the_first_call_after_a_restart_on(tmp_path: Path) -> None:
    """The store is opened behind the listeners: a caller who is quick must not slip by."""
    async with standing_in() as stand_in:
        async with gateway_over(tmp_path, stand_in.url) as run:
            mass = await opened(run)
            await mass.store.hold(ALL_SOURCES, author="anna", reason="a test")
        async with gateway_over(tmp_path, stand_in.url, clean=False) as run:
            assert run.gateway.mass.opened is None, "nothing was proved"
            assert b"held" in await run.ask(post("/bulk/x", envelope()))
        assert stand_in.counts.calls.total() == 0
