"""People steer under load, and two processes want one directory. Counted at the source."""

import asyncio
import json
from pathlib import Path

from tests.e2e.world import (
    CONSULT,
    DECISION,
    EMPLOYERS,
    Api,
    Replica,
    Source,
    at_work,
    check_books,
    check_sqlite,
    configured,
    keys,
    source_at_work,
)

AT_ONCE_S = 1.2
"""A pause holds from the next commit or second on."""


async def test_pauses_holds_and_a_cancel_under_load_stop_what_they_should_and_lose_nothing(tmp_path: Path) -> None:
    first = {**keys("r", 400, CONSULT), **keys("w", 60, DECISION)}
    second = keys("e", 120, EMPLOYERS)
    async with source_at_work(0.03) as source:
        replica = configured(tmp_path, source.url)
        async with at_work(replica) as api, asyncio.TaskGroup() as tasks:
            run_id, other_id = await api.submit(first), await api.submit(second)
            callers = [tasks.create_task(calling(replica, f"c{one}-", 30)) for one in range(3)]  # beside them
            for settled in (30, 120):  # and again, so that what was given back in a pause goes out once
                await api.reaches(run_id, settled=settled)
                await api.pause(run_id)
                await asyncio.sleep(AT_ONCE_S)
                calls = source.calls()
                await asyncio.sleep(0.4)
                now = source.calls()
                assert [now[key] for key in first] == [calls[key] for key in first], "a paused run went on"
                await check_books(api, source, run_id, first)
                await api.resume(run_id)
            for task in callers:
                assert {answer[:12] for answer in await task} == {b"HTTP/1.1 200"}
            await held(api, source)
            shown = await api.reaches(run_id, "completed")
            assert shown["counts"]["done"] == len(first), shown
            await api.reaches(other_id, "completed")
            await check_books(api, source, run_id, first)
            await check_books(api, source, other_id, second)
            third = keys("x", 200, CONSULT)
            cancelled = await api.submit(third)
            await api.reaches(cancelled, settled=20)
            await api.said("POST", f"/runs/{cancelled}/cancel", {"reason": "a test"})
            await asyncio.sleep(AT_ONCE_S)
            shown = await check_books(api, source, cancelled, third)
            assert shown["state"] == "cancelled"
            assert sum(source.calls()[key] for key in third) == shown["counts"]["done"] < 200
    check_sqlite(tmp_path)


async def calling(replica: Replica, prefix: str, number: int) -> list[bytes]:
    """Make synchronous bulk calls, one after the other."""
    return [await replica.bulk(f"{prefix}{one}") for one in range(number)]


async def held(api: Api, source: Source) -> None:
    """Hold everything for a while: nobody's call starts until it is released."""
    await api.said("PUT", "/holds/all", {"reason": "a test"})
    await asyncio.sleep(AT_ONCE_S)
    asked = source.number
    await asyncio.sleep(0.4)
    assert source.number == asked, "something started in spite of a hold"
    await api.said("DELETE", "/holds/all", params={"reason": "a test"})


async def test_a_hold_and_a_pause_are_remembered_over_a_kill(tmp_path: Path) -> None:
    items = keys("r", 80, CONSULT)
    async with source_at_work() as source:
        replica = configured(tmp_path, source.url)
        async with at_work(replica) as api:
            await api.said("PUT", "/holds/source:national-register", {"reason": "a test"})
            run_id = await api.submit(items)
            paused = await api.submit(keys("e", 120, EMPLOYERS))
            await api.pause(paused)
            await replica.kill()
            await asyncio.sleep(0.1)  # what it had sent arrives
            asked = source.number
            await replica.start()
            await asyncio.sleep(3.0)  # longer than the cool-down
            assert source.number == asked < 120
            assert not any(source.calls()[key] for key in items), "a hold did not hold"
            assert b">held<" in await replica.bulk("caller")
            said = await api.said("GET", "/holds")
            assert [hold["reason"] for hold in said["holds"]] == ["a test"], json.dumps(said)
            await api.said("DELETE", "/holds/source:national-register", params={"reason": "a test"})
            await api.reaches(run_id, "completed")
            await check_books(api, source, run_id, items)
            assert (await api.run(paused))["state"] == "paused"
    check_sqlite(tmp_path)


async def test_a_second_process_on_the_same_directory_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    items = keys("r", 100, CONSULT)
    async with source_at_work() as source:
        replica = configured(tmp_path, source.url)
        async with at_work(replica) as api:
            run_id = await api.submit(items)
            await api.reaches(run_id, settled=5)
            second = await replica.spawned(tmp_path / "second")
            status = await asyncio.wait_for(second.wait(), 20)
            assert status == 1
            said = (tmp_path / "second").read_text()
            assert "another gateway runs with this data_dir" in said
            assert "stop the other one" in said
            assert "Traceback" not in said
            await api.reaches(run_id, "completed")
            await check_books(api, source, run_id, items)
    check_sqlite(tmp_path)
