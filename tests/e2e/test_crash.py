"""kill -9 in the middle of runs, and what comes after it; counted at the source."""

import asyncio
from pathlib import Path

from tests.e2e.world import (
    CONSULT,
    DECISION,
    EMPLOYERS,
    Api,
    Json,
    at_work,
    check_books,
    check_sqlite,
    configured,
    keys,
    source_at_work,
)

COOL_DOWN_S = 3.0  # longer than T, so that it is what is waited for


async def test_a_kill_in_mid_run_loses_nothing_repeats_reads_and_doubts_writes(tmp_path: Path) -> None:
    reads = {**keys("r", 300, CONSULT), **keys("e", 100, EMPLOYERS)}
    writes = keys("w", 100, DECISION)
    async with source_at_work(0.03) as source:
        replica = configured(tmp_path, source.url, cool_down=COOL_DOWN_S)
        async with at_work(replica) as api:
            run_id = await api.submit({**reads, **writes})
            await api.reaches(run_id, settled=60)
            await replica.kill()
            killed = asyncio.get_running_loop().time()
            await asyncio.sleep(0.1)  # what it had sent arrives
            assert source.number > 60
            quiet_from = asyncio.get_running_loop().time()
            await replica.start()
            shown = await api.reaches(run_id, "completed", "paused")
            first = min(source.since(quiet_from))
            # From the restart, so from the kill at the least: T and the cool-down, whichever is longer.
            assert first - killed >= COOL_DOWN_S
            assert first - quiet_from <= COOL_DOWN_S + 4
            most = {**dict.fromkeys(reads, 2), **dict.fromkeys(writes, 1)}
            await check_books(api, source, run_id, most, most_calls=most)
            doubts = await api.page(run_id, "doubts")
            assert shown["state"] == ("paused" if doubts else "completed"), shown
            assert {row["key"][0] for row in doubts} <= {"w"}
            assert shown["counts"]["done"] == 500 - len(doubts)
            await decide(api, run_id, doubts)
            shown = await api.reaches(run_id, "completed")
            assert shown["counts"]["inDoubt"] == 0
            decided = {row["key"] for row in doubts}
            await check_books(api, source, run_id, most, most_calls=dict.fromkeys(most, 2), decided=decided)
            assert any(source.calls()[key] == 2 for key in reads), "nothing was repeated: the kill hit nothing"
    check_sqlite(tmp_path)


async def decide(api: Api, run_id: str, doubts: list[Json]) -> None:
    """Decide each doubt, in every way."""
    for number, row in enumerate(doubts):
        decision = ("repeat", "accept", "fail")[number % 3]
        await api.said("POST", f"/runs/{run_id}/doubts/{row['seq']}", {"decision": decision, "reason": "a test"})
