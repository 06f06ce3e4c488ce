"""Sources in trouble: what is repeated, what stops bulk and how it comes back, what waits for a person. Counted at the
source."""

import asyncio
from collections import Counter
from pathlib import Path

from gateway.simulator import Latency, Rule
from tests.e2e.world import (
    CONSULT,
    DECISION,
    EMPLOYERS,
    HEALTH,
    at_work,
    check_books,
    check_sqlite,
    configured,
    keys,
    source_at_work,
    until,
)

ATTEMPTS = 10
HANGS = Latency(1.5, 1.5)
"""Longer than the call timeout (1 s), shorter than T (2 s): the source works on when nobody waits any more."""
HANGS_SHORTER = Latency(0.8, 0.8)
"""The same where T is 1 s."""
HERE_AND_THERE = (
    Rule(latency=HANGS_SHORTER, every=61),
    Rule("reset", every=13),
    Rule("truncated", every=17),
    Rule("garbage", every=23),
    Rule("fault", every=19),
    Rule("status", "503", every=29),
    Rule("business", "INCOMPLETE_DATA/", source="national-register", every=21),
    Rule("business", "MSG00002", source="national-register", every=22),
    Rule("business", "NOK/", source="spp-is", every=11),
    Rule("business", "10000/MSG00002", service=HEALTH[0], every=7),
)


async def test_faults_here_and_there_are_repeated_and_writes_are_not(tmp_path: Path) -> None:
    reads = {**keys("r", 90, CONSULT), **keys("h", 30, HEALTH)}
    writes = keys("w", 30, DECISION)
    async with source_at_work(0.01) as source:
        source.does(*HERE_AND_THERE, latency=0.01)
        # What breaks off keeps its slot for T, so T is short here; and nothing here is a burst.
        upstreams = f"upstreams: {{a: {{url: '{source.url}', call_timeout: 600ms, hold: 400ms}}}}"
        replica = configured(
            tmp_path, source.url, extra=f"{RUNS.format('burst_faults: 20, max_attempts: 10')}\n{upstreams}"
        )
        async with at_work(replica) as api:
            run_id = await api.submit({**reads, **writes})
            shown = await api.reaches(run_id, "paused", "completed", within=40)
            assert (shown["state"], shown["reason"]) == ("paused", "in doubt"), shown
            most = {**dict.fromkeys(reads, ATTEMPTS), **dict.fromkeys(writes, 1)}
            shown = await check_books(api, source, run_id, most, most_calls=most)
            assert shown["counts"]["failed"] == shown["counts"]["rejected"] == 0, await api.page(run_id, "rejects")
            assert {row["key"][0] for row in await api.page(run_id, "doubts")} == {"w"}
            calls = source.calls()
            assert sum(calls[key] - 1 for key in reads) > 15, "hardly anything was repeated"
            assert not (await api.said("GET", "/interruptions"))["interruptions"]
            assert shown["attempts"] >= sum(calls.values()) - shown["counts"]["inDoubt"]
    check_sqlite(tmp_path)


RUNS = "runs: {{cool_down: 2s, ramp_step: 1s, retry_first: 200ms, retry_longest: 1s, burst_time: 10s, {}}}"


async def test_a_burst_stops_its_source_alone_which_cools_down_and_comes_back_by_a_ramp(tmp_path: Path) -> None:
    consults, employers = keys("r", 40, CONSULT), keys("e", 120, EMPLOYERS)
    loop = asyncio.get_running_loop()
    async with source_at_work() as source:
        slower = Rule(source="onss", latency=Latency(0.08, 0.08))
        source.does(
            Rule(source="national-register", traffic="unknown", latency=HANGS, every=3),
            Rule("business", "NOK/", source="national-register", traffic="unknown"),
            slower,
        )
        replica = configured(tmp_path, source.url, extra=RUNS.format("max_attempts: 20"))
        async with at_work(replica) as api:
            run_id = await api.submit({**consults, **employers})
            await until(lambda: replica.events("interruption"), 15, replica.log)
            tripped = loop.time()
            source.does(slower)  # it is well again
            [line] = replica.events("interruption")
            assert (line["source"], line["cool_s"]) == ("national-register", 2.0)
            # In the cool-down: nothing at that source, others go on, callers are told, real-time passes.
            refused = await replica.bulk("caller")
            assert b"<f:reason>cooling_down<" in refused or b"cooling_down" in refused
            assert b"200 OK" in await replica.real_time("person")
            await asyncio.sleep(1.0)
            times = source.times()
            assert not [one for key in consults for one in times[key] if one > tripped + 0.2]
            assert [one for key in employers for one in times[key] if one > tripped + 0.2]
            # After it, one at a time at first.
            source.stand_in.counts.peak.clear()
            await until(lambda: any(max(source.times()[key], default=0) > tripped + 0.5 for key in consults), 10)
            came_back = loop.time()
            assert came_back - tripped >= 1.8
            await asyncio.sleep(0.6)
            assert source.stand_in.counts.highest("national-register", "unknown") == 1
            shown = await api.reaches(run_id, "completed")
            assert shown["counts"]["done"] == len(consults) + len(employers)
            await check_books(api, source, run_id, [*consults, *employers], most_calls=20)
    check_sqlite(tmp_path)


async def test_rejects_hold_a_run_until_a_person_resumes_it_and_are_made_a_run_of_their_own(tmp_path: Path) -> None:
    items = keys("r", 150, CONSULT)
    async with source_at_work(0.02) as source:
        source.does(Rule("business", "MSG00012"), latency=0.02)
        replica = configured(tmp_path, source.url, extra=RUNS.format("reject_minimum: 20"))
        async with at_work(replica) as api:
            run_id = await api.submit(items)
            shown = await api.reaches(run_id, "paused")
            assert "too many rejects" in shown["reason"], shown
            assert shown["changedBy"] == "gateway"
            asked = source.number
            await asyncio.sleep(1.5)  # nothing resumes it by itself
            assert source.number == asked < 60
            shown = await check_books(api, source, run_id, items)
            rejects = await api.page(run_id, "rejects")
            assert {(row["code"], row["state"]) for row in rejects} == {("MSG00012", "rejected")}
            assert all("inscribe first" in row["meaning"] for row in rejects)
            source.does(Rule("business", "10000", service=HEALTH[0]), latency=0.02)
            await api.resume(run_id)
            shown = await api.reaches(run_id, "completed")
            assert shown["counts"]["rejected"] == len(rejects)
            await check_books(api, source, run_id, items)
            again = await api.said("POST", f"/runs/{run_id}/retry", {"name": "again"})
            assert again["total"] == len(rejects)
            shown = await api.reaches(again["id"], "completed")
            assert shown["counts"]["done"] == len(rejects)
            # What SSDN calls an error, without a reason, is a reject; what is not authorised holds the run at once.
            classic = await api.submit(keys("h", 10, HEALTH))
            shown = await api.reaches(classic, "completed")
            assert Counter(row["code"] for row in await api.page(classic, "rejects")) == {"10000": 10}
            source.does(Rule("business", "MSG00013"), latency=0.02)
            barred = keys("b", 100, EMPLOYERS)
            barred_id = await api.submit(barred)
            shown = await api.reaches(barred_id, "paused")
            assert "MSG00013" in shown["reason"]
            assert (shown["counts"]["waiting"], shown["counts"]["rejected"]) == (100, 0)
            assert source.calls()["b0"] <= 2
            assert sum(source.calls()[key] for key in barred) <= 8
            source.does(latency=0.01)
            await api.resume(barred_id)
            await api.reaches(barred_id, "completed")
            await check_books(api, source, barred_id, barred, most_calls=2)
    check_sqlite(tmp_path)
