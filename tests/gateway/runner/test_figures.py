"""What Prometheus is told of runs: bounded, by the store's counts, with an end that knows the windows."""

import asyncio
from datetime import timedelta
from pathlib import Path

from gateway.records import GATEWAY, ONLY_DOUBT
from gateway.runner.figures import MOST_SHOWN, PAUSED_FOR, Pace
from gateway.simulator import Latency, Script, standing_in
from policies.model import RunState
from tests.conftest import EVENING, JumpingClock, Running, closed, whole_answer
from tests.gateway.runner.making import opened, patient, submit, until


async def scraped(run: Running) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", run.telemetry)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await whole_answer(reader)).decode()
    await closed(writer)
    lines = [line for line in text.splitlines() if line.startswith("bcss_gateway_")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_runs_and_their_items_are_shown(tmp_path: Path) -> None:
    script = Script(latency=Latency(0.05, 0.05))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 1000)
        waits = await submit(mass, 0, ready=False)
        await until(mass, record, lambda one: one.counts.done >= 100)
        async with asyncio.timeout(15):
            while f'bcss_gateway_run_eta_timestamp_seconds{{run="{record.public_id}"}}' not in await scraped(run):
                await asyncio.sleep(0.2)
        shown = await scraped(run)
    assert shown["bcss_gateway_store_up"] == 1
    assert shown['bcss_gateway_runs{state="running"}'] == 1
    assert shown['bcss_gateway_runs{state="loading"}'] == 1
    by = [shown[f'bcss_gateway_run_items{{run="{record.public_id}",state="{state}"}}'] for state in ("waiting", "done")]
    assert sum(by) == 1000
    assert f'bcss_gateway_run_items{{run="{waits.public_id}",state="done"}}' in shown
    end = shown[f'bcss_gateway_run_eta_timestamp_seconds{{run="{record.public_id}"}}']
    assert 0 < end - EVENING.timestamp() < 60
    assert shown['bcss_gateway_business_status_total{kind="ok",source="national-register"}'] >= 100
    assert shown['bcss_gateway_requests_total{class="bulk",outcome="forwarded",source="national-register"}'] >= 100


async def test_no_more_runs_are_shown_than_is_bounded(tmp_path: Path) -> None:
    async with patient(tmp_path, "http://127.0.0.1:9") as run:
        mass = await opened(run)
        for _ in range(MOST_SHOWN + 10):
            await submit(mass, 0, ready=False)
        async with asyncio.timeout(10):
            while (shown := await scraped(run))['bcss_gateway_runs{state="loading"}'] < MOST_SHOWN + 10:
                await asyncio.sleep(0.2)
    items = [name for name in shown if name.startswith("bcss_gateway_run_items")]
    assert len({name.partition('run="')[2][:32] for name in items}) == MOST_SHOWN


async def test_a_run_that_waits_for_the_evening_ends_after_it_has_begun(tmp_path: Path) -> None:
    clock = JumpingClock()
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        figures = mass.runner.figures
        record = await submit(mass, 2000)
        async with asyncio.timeout(15):
            while not figures.per_second(record.id):
                await asyncio.sleep(0.1)
        clock.skip(hours=12)  # Wednesday 08:00
        async with asyncio.timeout(10):
            while (waits := await mass.store.run(record.public_id)) is None or waits.state is not RunState.READY:
                await asyncio.sleep(0.1)
        end = figures.end_of(waits)
    assert end is not None
    assert end > EVENING + timedelta(hours=21)


def test_a_pace_is_measured_while_the_run_goes_and_kept_while_it_rests() -> None:
    pace = Pace()
    for second in range(30):
        pace.note(second, second * 50, running=True)
    assert pace.per_second == 50
    pace.note(100, 1450, running=False)
    assert pace.per_second == 50
    for second in range(30):
        pace.note(1000 + second, 1450 + second * 10, running=True)
    assert pace.per_second == 10


async def test_what_stops_runs_and_sources_is_shown(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        await mass.store.hold("all", author="anna", reason="they asked")
        await mass.store.interrupt("onss", reason="test", cool_s=100)
        due = await submit(mass, 3)
        later = await submit(mass, 3, not_before=EVENING + timedelta(days=2))
        for author, reason in (("anna", "because"), (GATEWAY, "too many rejects"), (GATEWAY, ONLY_DOUBT)):
            paused = await submit(mass, 3)
            await mass.store.change_state(paused.id, RunState.PAUSED, author=author, reason=reason)
        shown = await until_shown(run, 'bcss_gateway_runs{state="paused"}', 3)
        assert [shown[f'bcss_gateway_runs_paused{{cause="{one}"}}'] for one in PAUSED_FOR] == [1, 1, 1]
        assert shown['bcss_gateway_items{state="waiting"}'] == 15
        assert shown['bcss_gateway_items{state="in_doubt"}'] == 0
        dues = {one.public_id: shown[f'bcss_gateway_run_due{{run="{one.public_id}"}}'] for one in (due, later, paused)}
        assert list(dues.values()) == [1, 0, 0]
        assert shown['bcss_gateway_held{source="all"}'] == 1
        assert shown['bcss_gateway_held{source="onss"}'] == 0
        assert shown['bcss_gateway_interruptions{phase="cooling",source="onss"}'] == 1
        assert shown['bcss_gateway_interruptions{phase="ramp",source="onss"}'] == 0
        assert shown['bcss_gateway_interruptions{phase="cooling",source="all"}'] == 0
        assert shown['bcss_gateway_slot_rows{pool="base"}'] == 0
        assert shown["bcss_gateway_layout_conflict"] == 0
        clock.skip(seconds=101)
        await mass.store.unhold("all", author="anna", reason="done")
        shown = await until_shown(run, 'bcss_gateway_interruptions{phase="ramp",source="onss"}', 1)
        assert shown['bcss_gateway_interruptions{phase="cooling",source="onss"}'] == 0
        await until_shown(run, 'bcss_gateway_held{source="all"}', 0)


async def until_shown(run: Running, name: str, value: float) -> dict[str, float]:
    async with asyncio.timeout(15):
        while (shown := await scraped(run)).get(name) != value:
            await asyncio.sleep(0.2)
    return shown
