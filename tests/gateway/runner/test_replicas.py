"""Two gateways on one PostgreSQL: one cap, no item twice, and what a dead one had in hand is taken over."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

import gateway.mass as mass_room
from gateway.mass import Opened
from gateway.simulator import Latency, Script, standing_in
from policies.model import RunState
from tests.conftest import JumpingClock, Running, gateway_over
from tests.gateway.runner.making import WRITES, died, items, nothing_in_hand, opened, submit, until
from tests.gateway.store.postgres_server import EmbeddedServer, embedded_server, fresh_database

LEASE_S = 20.0
"""More than L: T is 1 s here."""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with embedded_server() as running:
        yield running


@asynccontextmanager
async def replica(
    folder: Path, source: str, database: str, clock: JumpingClock, *, left: str = ""
) -> AsyncIterator[tuple[Running, Opened]]:
    """Run one of the gateways that share a database. `left`: what a process of its own that died has left."""
    folder.mkdir(exist_ok=True)
    (folder / "url").write_text(database)
    (folder / "key").write_text(base64.b64encode(b"k" * 32).decode())
    extra = "store: {url: {file: url}, key: {file: key}}\nruns: {retry_first: 10ms, retry_longest: 20ms}\n"
    if left:
        (folder / "state" / "busy_until.json").write_text(left)
    async with gateway_over(folder, source, extra=extra, clock=clock, clean=not left) as run:
        yield run, await opened(run)


async def slots_are_there(clock: JumpingClock, *runs: Running) -> None:
    """Let the time pass for which new slots count as taken by somebody unknown."""
    await asyncio.sleep(0.5)
    async with asyncio.timeout(30):
        while any(run.gateway.slots.obstacle(frozenset({"national-register"})) for run in runs):
            await asyncio.sleep(0.1)
    clock.skip(seconds=LEASE_S)


async def test_two_gateways_keep_one_cap_and_share_a_run(tmp_path: Path, server: EmbeddedServer) -> None:
    clock = JumpingClock()
    async with (
        standing_in(Script(latency=Latency(0.02, 0.03))) as stand_in,
        fresh_database(server.url) as database,
        replica(tmp_path / "a", stand_in.url, database, clock) as (one, mass),
        replica(tmp_path / "b", stand_in.url, database, clock) as (other, _),
    ):
        await slots_are_there(clock, one, other)
        record = await submit(mass, 600, WRITES)
        done = await until(mass, record, RunState.COMPLETED, timeout=60)
        settled = await items(mass, record)
    assert done.counts.done == 600 == len(settled)
    assert stand_in.counts.calls.total() == 600
    assert stand_in.counts.highest("national-register") <= 4


async def test_what_a_dead_gateway_had_in_hand_is_taken_over(tmp_path: Path, server: EmbeddedServer) -> None:
    clock = JumpingClock()
    async with (
        standing_in(Script(latency=Latency(0.03, 0.03))) as stand_in,
        fresh_database(server.url) as database,
        replica(tmp_path / "b", stand_in.url, database, clock) as (_, mass),
    ):
        async with replica(tmp_path / "a", stand_in.url, database, clock) as (dies, first):
            await slots_are_there(clock, dies)
            record = await submit(first, 500, WRITES)
            await until(first, record, lambda one: one.counts.done >= 100, timeout=60)
            await died(dies)
            left = {one.holder for one in await mass.store.batches()}
        assert first.runner.holder in left
        for _ in range(3):
            clock.skip(seconds=LEASE_S)
            await asyncio.sleep(5.5)
        ended = await until(mass, record, lambda one: one.counts.settled == 500, timeout=60)
        assert first.runner.holder not in {one.holder for one in await mass.store.batches()}
        paused = await until(mass, record, RunState.PAUSED, timeout=10)
    assert ended.counts.done + ended.counts.in_doubt == 500
    assert 0 < paused.counts.in_doubt <= 16
    assert stand_in.counts.calls.total() <= 500
    assert stand_in.counts.highest("national-register") <= 4


async def test_nothing_is_sent_before_the_store_has_said_what_a_person_holds(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    clock = JumpingClock()
    async with standing_in(Script()) as stand_in, fresh_database(server.url) as database:
        async with replica(tmp_path / "a", stand_in.url, database, clock) as (one, mass):
            await slots_are_there(clock, one)
            await mass.store.hold("all", author="anna", reason="they asked")
            mass.runner.steered()
            while not mass.runner.interruptions.standing.held:
                await asyncio.sleep(0.01)
            record = await submit(mass, 20)
        reader = await asyncpg.connect(database, timeout=10)
        await reader.execute("begin")
        await reader.execute("lock table hold in access exclusive mode")  # so that holds cannot be read for a while
        async with replica(tmp_path / "b", stand_in.url, database, clock) as (other, mass):
            await slots_are_there(clock, other)
            await asyncio.sleep(2.5)
            assert stand_in.counts.calls.total() == 0
            await reader.close()
            while not mass.runner.interruptions.standing.held:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            assert stand_in.counts.calls.total() == 0
            await mass.store.unhold("all", author="anna", reason="done")
            done = await until(mass, record, RunState.COMPLETED)
    assert done.counts.done == 20


async def test_what_others_ended_while_a_gateway_was_frozen_is_not_sent_by_it_when_it_wakes(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    """It is in doubt, and a person may have decided already that it is repeated, or that it was done."""
    clock = JumpingClock()
    async with (
        standing_in(Script(latency=Latency(0.15, 0.15))) as stand_in,
        fresh_database(server.url) as database,
        replica(tmp_path / "a", stand_in.url, database, clock) as (run, mass),
    ):
        await slots_are_there(clock, run)
        record = await submit(mass, 60, WRITES)
        await until(mass, record, lambda one: one.counts.done >= 8)
        clock.skip(seconds=LEASE_S)  # nobody hears of it for so long
        for sighting in await mass.store.batches():
            await mass.store.recover(sighting, delay_s=0.0)
        begun = stand_in.counts.calls.total()
        before = await mass.store.run(record.public_id)
        assert before is not None
        ended = await until(mass, record, lambda one: one.counts.settled == 60, timeout=60)
        await nothing_in_hand(mass)
    assert ended.counts.in_doubt > before.counts.in_doubt - 4 > 0
    assert stand_in.counts.calls.total() == begun + 60 - before.counts.settled


async def test_a_run_that_the_database_will_not_put_to_rest_does_not_end_the_others(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    clock = JumpingClock()
    async with (
        standing_in(Script()) as stand_in,
        fresh_database(server.url) as database,
        replica(tmp_path / "a", stand_in.url, database, clock) as (run, mass),
    ):
        await slots_are_there(clock, run)
        connection = await asyncpg.connect(database, timeout=10)
        await connection.execute("create function no() returns trigger language plpgsql as 'begin raise ''no''; end'")
        await connection.execute(
            "create trigger no before update on run for each row when (new.state = 'completed') execute function no()"
        )
        runs = []
        for _ in range(2):
            runs.append(await submit(mass, 20))
            await until(mass, runs[-1], lambda one: one.counts.done == 20)
            await nothing_in_hand(mass)
        await connection.execute("drop trigger no on run")
        await connection.close()
        await mass.runner._put_to_rest()
        for record in runs:
            await until(mass, record, RunState.COMPLETED)


async def started_again(
    folder: Path, source: str, database: str, clock: JumpingClock, *, left: str, skipping: float
) -> list[str]:
    """Start a gateway anew where a process of its own has died; return the sources that are interrupted then."""
    async with replica(folder, source, database, clock, left=left) as (_, mass):
        async with asyncio.timeout(10):
            while not mass.runner.interruptions.is_known:
                clock.skip(seconds=skipping)
                await asyncio.sleep(0.1)
        return [one.source for one in (await mass.store.controls()).interruptions]


async def test_an_unclean_restart_interrupts_bulk_unless_others_go_on(
    tmp_path: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mass_room, "RENEWALS_SEEN", 0.4)  # 2 s
    clock = JumpingClock()
    async with standing_in(Script(latency=Latency(0.03, 0.03))) as stand_in, fresh_database(server.url) as database:
        async with replica(tmp_path / "a", stand_in.url, database, clock) as (alone, mass):
            await slots_are_there(clock, alone)
            left = await died(alone)
        assert await started_again(tmp_path / "a", stand_in.url, database, clock, left=left, skipping=0) == ["all"]
        async with replica(tmp_path / "b", stand_in.url, database, clock) as (other, mass):
            await mass.store.end_interruption("all", author="anna", reason="a test", skip=True)
            clock.skip(seconds=LEASE_S + 600)
            await submit(mass, 2000)
            async with asyncio.timeout(30):
                while not any(pool.rows for pool in other.gateway.slots.statistics().pools.values()):
                    clock.skip(seconds=1)
                    await asyncio.sleep(0.1)
            again = await started_again(tmp_path / "a", stand_in.url, database, clock, left=left, skipping=1.0)
    assert again == []


async def test_a_restart_on_a_damaged_database_counts_as_an_interruption_and_ends_nothing(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    clock = JumpingClock()
    async with standing_in() as stand_in, fresh_database(server.url) as database:
        async with replica(tmp_path / "a", stand_in.url, database, clock) as (dies, _):
            left = await died(dies)
        damaging = await asyncpg.connect(database, timeout=10)
        await damaging.execute("drop table slot")
        await damaging.close()
        assert await started_again(tmp_path / "a", stand_in.url, database, clock, left=left, skipping=0) == ["all"]
