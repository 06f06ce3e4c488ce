"""Two gateways on one PostgreSQL, and what goes wrong there; counted at the source, and looked up in the books. Short
forms of `make drill`."""

import asyncio
from collections.abc import Coroutine, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.e2e.sharing import LEASE_S, LIVE, Load, World, world
from tests.e2e.world import CONSULT, EMPLOYERS, keys, until
from tests.gateway.store.postgres_server import EmbeddedServer, database_url, embedded_server, on_server

PAIR = ("a", "b")
READS = {CONSULT: 40, EMPLOYERS: 10}
HOLDERS = "select distinct holder from slot where pool = 'base' and holder <> '' and holder not like 'nobody-%'"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server that is killed now and then. What it wrote outlives that without waiting for the disk, as the kernel
    does; a slow disk would be an outage that no test expects."""
    with embedded_server() as running:
        yield running


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> str:
    """A database for one test after the other."""
    asyncio.run(on_server(server.url, "create database drill"))
    return database_url(server.url, "drill")


async def test_a_kill_in_mid_call_and_freezes_longer_than_the_lease(
    tmp_path: Path, server: EmbeddedServer, url: str
) -> None:
    dice = Random(3)
    async with world(tmp_path, server, *PAIR, url=url) as here:
        load = Load(here)
        async with load.going_on():
            await at_full_work(here)
            await here.kill(here.gateways[0], away_s=0.5)
            for gateway in (*here.gateways, here.gateways[0]):
                await asyncio.sleep(dice.uniform(0.1, 0.6))
                await here.freeze(
                    gateway,
                    seconds=LEASE_S + dice.uniform(0.8, 1.2),
                    meanwhile=partial(the_source_hears, here, here.bulk_calls + 5),
                )
        assert load.tally()["items"] >= 140
        assert load.said["answered"]
        assert load.real_time > 50


async def test_the_database_is_killed_and_then_swallows_everything(
    tmp_path: Path, server: EmbeddedServer, url: str
) -> None:
    async with world(tmp_path, server, *PAIR, url=url) as here:
        load = Load(here)
        async with load.going_on():
            await at_full_work(here)
            await outage(here, load, here.kill_database(away_s=LEASE_S + 2.5))
            await goes_on(here)
            await outage(here, load, here.swallow(seconds=LEASE_S + 2.5))
            await goes_on(here)
        for gateway in here.gateways:
            assert gateway.events("store up"), "nobody noticed"


async def test_clocks_step_people_pause_and_resume_and_an_orderly_stop_hands_over_at_once(
    tmp_path: Path, server: EmbeddedServer, url: str
) -> None:
    async with world(tmp_path, server, *PAIR, url=url) as here:
        load = Load(here)
        one, other = here.gateways
        here.source.does(latency=0.02)  # a call that its source may still work on leaves its slot to be observed
        async with load.going_on(bulk=6):
            await at_full_work(here)
            await until(lambda: load.runs, 10)
            for hours in (1, 0, -1, 0):
                await here.step_clock(hours=hours)
                run_id = list(load.runs)[-1]
                status, _ = await here.api(one).ask("POST", f"/runs/{run_id}/pause", {"reason": "a test"})
                other.clock.step(hours=hours or -1)
                await asyncio.sleep(0.5)
                if status == 200:
                    await here.api(other).ask("POST", f"/runs/{run_id}/resume", {"reason": "a test"})
                before = here.bulk_calls
                await until(lambda before=before: here.bulk_calls > before + 10, 10)
            await both_hold_slots(here)
            await here.stack.enter_async_context(here.ailing(other))
            assert await other.stop() == 0
            stopped = asyncio.get_running_loop().time()
            assert len(await here.rows(HOLDERS)) <= 1, "slots of one that has left"
            assert len(await here.rows("select distinct holder from batch")) <= 1, "batches of one that has left"
            await asyncio.sleep(LEASE_S)
            times = [stopped, *here.bulk_since(stopped)]
            # Who has to wait for a lease waits for L, less the R at most since its last renewal: 3.2 s at least.
            assert max(later - earlier for earlier, later in pairwise(times)) < LEASE_S - 1, (
                "somebody waited for a lease"
            )


async def test_another_layout_waits_until_the_first_is_gone(tmp_path: Path, server: EmbeddedServer, url: str) -> None:
    async with world(tmp_path, server, "a", url=url) as here:
        first = here.gateways[0]
        (other,) = await here.add("b", bulk=", reading: strict")
        here.source.does(latency=0.15)
        run_id = await here.api(first).submit(keys("r", 50, CONSULT))
        await until(lambda: here.source.number > 20, 15)
        await until(lambda: other.events("layout conflict"), 10, other.log)
        assert b"layout_conflict" in await other.bulk("refused")
        assert (await other.real_time("live", LIVE)).startswith(b"HTTP/1.1 200")
        assert here.source.calls()["refused"] == 0
        assert await first.stop() == 0
        async with asyncio.timeout(LEASE_S + 3):  # pools that are new count as taken for L
            while not (await other.bulk("granted")).startswith(b"HTTP/1.1 200"):
                await asyncio.sleep(0.1)
        await here.api(other).reaches(run_id, "completed")


async def test_pools_change_under_load(tmp_path: Path, server: EmbeddedServer, url: str) -> None:
    """A cap is lowered and raised, and a pool gets another name, in one gateway after the other."""
    async with world(tmp_path, server, *PAIR, url=url) as here:
        load = Load(here, size=READS)
        async with load.going_on():
            await at_full_work(here)
            await configure(here, "margin_max: 1s", "margin_max: 1s, pools: {base: {slots: 2}}")
            await asyncio.sleep(1.5)  # what was begun before is over
            here.source.stand_in.counts.peak = here.source.stand_in.counts.current.copy()
            await goes_on(here)
            assert peak_of(here) == 2
            await configure(here, ", pools: {base: {slots: 2}}", ", reading: split")
            await until(lambda: peak_of(here) > 2, 4 * LEASE_S)
            await goes_on(here)
            assert peak_of(here) <= 4
        assert not any(gateway.events("reload failed") for gateway in here.gateways)


def peak_of(here: World) -> int:
    """Return the most calls at once at the National Register."""
    return here.source.stand_in.counts.highest("national-register", "unknown")


async def configure(here: World, before: str, after: str) -> None:
    """Change the configuration of each gateway, one after the other."""
    for gateway in here.gateways:
        number = len(gateway.events("reloaded"))
        gateway.configure(before, after)
        await until(lambda gateway=gateway, number=number: len(gateway.events("reloaded")) > number, 5, gateway.log)
        await asyncio.sleep(0.5)


async def at_full_work(here: World) -> None:
    """Wait until all slots of the National Register are in use."""
    await until(lambda: peak_of(here) == 4, 20)


async def both_hold_slots(here: World) -> None:
    """Wait until each gateway has a slot."""
    async with asyncio.timeout(15):
        while len(await here.rows(HOLDERS)) < 2:
            await asyncio.sleep(0.05)


async def goes_on(here: World) -> None:
    """Wait until calls of items and callers begin again."""
    before = here.bulk_calls
    await until(lambda: here.bulk_calls > before + 30, 30, here.gateways[0].log)


async def the_source_hears(here: World, number: int) -> None:
    """Wait until there were more bulk calls than so many in all."""
    await until(lambda: here.bulk_calls > number, 10)


async def outage(here: World, load: Load, deed: Coroutine[None, None, None]) -> None:
    """See that real-time does not notice an outage of the database, and that bulk stops before its leases end."""

    async def bulk_stops() -> None:
        await asyncio.sleep(LEASE_S + 0.2)
        before = here.bulk_calls
        await asyncio.sleep(1.2)
        assert here.bulk_calls == before

    served = load.real_time
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deed)
        tasks.create_task(bulk_stops())
    assert load.real_time > served + 20
