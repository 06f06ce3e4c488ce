"""Clocks and hours: the host's clock stepped an hour either way in mid-run, restarts at 07:59 and 17:01, the opening.
What started when is what the source saw, by the same clock as the gateway's."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

from tests.e2e.world import (
    BRUSSELS,
    CONSULT,
    DECISION,
    at_work,
    check_books,
    check_sqlite,
    configured,
    keys,
    settled_of,
    source_at_work,
    until,
)

DAY = datetime(2026, 11, 24, tzinfo=BRUSSELS)  # a Tuesday


async def test_steps_of_the_hosts_clock_in_mid_run_lose_and_repeat_nothing(tmp_path: Path) -> None:
    items = {**keys("r", 160, CONSULT), **keys("w", 60, DECISION)}
    async with source_at_work() as source:
        replica = configured(tmp_path, source.url, at=DAY.replace(hour=20))
        async with at_work(replica) as api:
            run_id = await api.submit(items)
            await api.reaches(run_id, settled=40)
            replica.clock.step(hours=1)
            await api.reaches(run_id, settled=100)
            replica.clock.step(hours=-2)
            shown = await api.reaches(run_id, "completed")
            assert shown["counts"]["done"] == len(items)
            await check_books(api, source, run_id, items)
            assert not replica.events("interruption")
    check_sqlite(tmp_path)


async def test_while_two_clocks_disagree_bulk_starts_only_where_both_are_open(tmp_path: Path) -> None:
    items = keys("r", 150, CONSULT)
    async with source_at_work(0.03) as source:
        replica = configured(tmp_path, source.url, at=DAY.replace(hour=16, minute=30))
        async with at_work(replica) as api:
            run_id = await api.submit(items)
            replica.clock.step(hours=1)  # it says 17:30; by the boot clock it is 16:30
            await asyncio.sleep(1.5)
            assert source.number == 0, "bulk started while one of two clocks said office hours"
            replica.clock.skip_to(replica.clock.wall() + timedelta(hours=1))
            await api.reaches(run_id, settled=30)
            replica.clock.step(hours=-2)  # it says 16:30 again
            await asyncio.sleep(0.2)  # calls in progress end
            asked = source.number
            assert 30 <= asked < 120
            await asyncio.sleep(1.5)
            assert source.number == asked, "bulk started while one of two clocks said office hours"
            replica.clock.skip_to(DAY.replace(hour=20))
            await api.reaches(run_id, "completed")
            await check_books(api, source, run_id, items)
    check_sqlite(tmp_path)


async def test_a_restart_at_0759_starts_nothing_at_0800_and_one_at_1701_goes_on(tmp_path: Path) -> None:
    items = keys("r", 700, CONSULT)
    loop = asyncio.get_running_loop()
    async with source_at_work(0.05) as source:
        replica = configured(tmp_path, source.url, at=DAY.replace(hour=7, minute=59, second=48))
        clock = replica.clock

        def at(moment: float) -> datetime:
            return clock.wall().astimezone(BRUSSELS) - timedelta(seconds=loop.time() - moment)

        async with at_work(replica) as api:
            run_id = await api.submit(items)
            await api.reaches(run_id, settled=10)
            await replica.stop()
            before = source.number
            clock.skip_to(DAY.replace(hour=7, minute=59, second=55))  # a busy machine takes seconds to start it
            restarted = loop.time()
            await replica.start()
            await until(lambda: clock.wall() >= DAY.replace(hour=8, second=1), 30)
            times = source.since(restarted)
            assert times, "a clean restart goes on at once"
            assert max(map(at, times)) < DAY.replace(hour=8), max(map(at, times))
            shown = await api.run(run_id)
            assert shown["state"] in ("ready", "running")
            assert settled_of(shown) == source.number > before
            # The opening, while it runs.
            clock.skip_to(DAY.replace(hour=16, minute=59, second=58))
            closed = loop.time()
            await until(lambda: source.since(closed), 10)
            assert DAY.replace(hour=17) <= at(source.since(closed)[0]) < DAY.replace(hour=17, second=4)
            await replica.stop()
            clock.skip_to(DAY.replace(hour=17, minute=1))
            restarted = loop.time()
            await replica.start()
            shown = await api.reaches(run_id, "completed")
            assert source.since(restarted)
            assert shown["counts"]["done"] == len(items)
            await check_books(api, source, run_id, items)
            assert not replica.events("interruption")
    check_sqlite(tmp_path)
