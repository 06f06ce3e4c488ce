"""Bulk through the whole gateway: refused, queued, capped, observed; slots outlive callers; a restart forgets
nothing."""

import asyncio
import gzip
import json
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import pytest
from lxml import etree

from gateway.simulator import Latency, Script, standing_in
from tests.conftest import (
    BRUSSELS,
    JumpingClock,
    Running,
    closed,
    envelope,
    gateway_over,
    post,
    raw_server,
    whole_answer,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\n<ok>"
FAULT = "{urn:bcss-gateway:fault:1}"
BULK = "X-Test-Class: bulk"


def said(answer: bytes) -> dict[str, str]:
    """Return what the detail of a fault says."""
    root = etree.fromstring(answer.partition(b"\r\n\r\n")[2])
    refusal = root.find(f".//{FAULT}refusal")
    assert refusal is not None
    return {etree.QName(one).localname: one.text or "" for one in refusal}


async def metric(run: Running, name: str) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", run.telemetry)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await whole_answer(reader)).decode()
    await closed(writer)
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def test_bulk_is_refused_in_office_hours_and_real_time_passes(tmp_path: Path, morning: JumpingClock) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, clock=morning) as run:
        refused = await run.ask(post("/bulk/x", envelope()))
        passed = await run.ask(post("/x", envelope()))
    assert refused.startswith(b"HTTP/1.1 500 ")
    assert said(refused)["reason"] == "office_hours"
    assert said(refused)["origin"] == "gateway"
    assert said(refused)["opensAt"] == "2026-11-24T17:00:00+01:00"
    assert datetime.fromisoformat(said(refused)["retryAt"]) >= datetime(2026, 11, 24, 17, tzinfo=BRUSSELS)
    retry_after = int(refused.partition(b"Retry-After: ")[2].split(b"\r\n")[0])
    assert 7.5 * 3600 - 60 <= retry_after <= 7.6 * 3600
    assert passed.startswith(b"HTTP/1.1 200 OK")
    assert len(server.requests) == 1


async def test_a_refusal_speaks_the_callers_language(tmp_path: Path, morning: JumpingClock) -> None:
    """SOAP 1.2 gets a 1.2 fault; what is not SOAP gets a problem."""
    soap_12 = envelope().replace(
        b"http://schemas.xmlsoap.org/soap/envelope/", b"http://www.w3.org/2003/05/soap-envelope"
    )
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, clock=morning) as run:
        fault = await run.ask(post("/bulk/x", soap_12))
        problem = await run.ask(b"GET /bulk/x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Type: application/soap+xml" in fault
    assert b"env:Receiver" in fault
    assert problem.startswith(b"HTTP/1.1 503 ")
    assert json.loads(problem.partition(b"\r\n\r\n")[2])["reason"] == "office_hours"
    assert server.requests == []


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (b"x" * 2000, "X: 1", "too_large"),
        (b"no gzip", "Content-Encoding: gzip", "malformed"),
        (gzip.compress(b"x", mtime=0)[:-3], "Content-Encoding: gzip", "malformed"),
        (envelope(), "X-Bulk-Run: 42", "unknown_run"),
    ],
    ids=["large", "no gzip", "cut gzip", "run"],
)
async def test_what_is_the_callers_fault_says_so_and_has_no_time_to_retry(
    tmp_path: Path, body: bytes, field: str, reason: str
) -> None:
    extra = "bulk: {refusal_delay: 0s, body_limit: 1KiB}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        got = await run.ask(post("/bulk/x", body, field))
    assert got.startswith(b"HTTP/1.1 500 ")
    assert said(got)["reason"] == reason
    assert b"soapenv:Client" in got
    assert b"Retry-After" not in got
    assert server.requests == []


async def test_never_more_than_the_cap_as_the_source_saw_it(tmp_path: Path) -> None:
    """40 callers for one source of 4, 20 for one of 2, 6 for both at once; some hang up on the way; real-time
    beside."""
    script = Script(latency=Latency(0.02, 0.05))
    base = envelope("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest")
    onss = envelope("Dolsis2011Service/v1", "findEmployersByWorkerRequest")
    both = envelope("SocialRateInvestigationService/v1", "consultExchangedDataRequest")
    async with standing_in(script) as stand_in, gateway_over(tmp_path, stand_in.url) as run:

        async def impatient(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", run.port)
            writer.write(post("/bulk/x", base, BULK))
            await asyncio.sleep(number * 0.007)
            await closed(writer)

        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(run.ask(post("/bulk/x", body, BULK)))
                for body in [base] * 40 + [onss] * 20 + [both] * 6
            ]
            for number in range(20):
                tasks.create_task(impatient(number))
            real_time = [tasks.create_task(run.ask(post("/x", base, "X-Test-Class: realtime"))) for _ in range(10)]
        answers = [task.result() for task in asked + real_time]
        counts = stand_in.counts
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert counts.highest("onss") == 2
        together = counts.highest("bcss") + counts.highest("national-register")
        assert counts.highest("national-register") == 4
        assert counts.highest("bcss") <= 2, "calls for both sources need a slot of 2 at the other one too"
        assert together <= 6
        assert counts.highest("spf-economie") <= 2
        assert await metric(run, "bcss_gateway_cap_violations_total") == 0
        assert await metric(run, 'bcss_gateway_slots_in_use_peak{pool="base"}') == 4
        assert await metric(run, 'bcss_gateway_slots_in_use{pool="base"}') == 0


async def test_unclassified_bulk_needs_a_slot_wherever_its_route_leads(tmp_path: Path) -> None:
    extra = "routes: [{prefix: /, upstream: bcss, sources: [onss, cin]}]\n"
    unknown = envelope("SomethingElse/v1", "ask")
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        got = await run.ask(post("/bulk/x", unknown))
        assert await metric(run, 'bcss_gateway_unclassified_total{class="bulk"}') == 1
    assert b"source=unclassified; pool=cin+onss+unclassified" in got


async def test_a_caller_who_hangs_up_leaves_the_queue_at_once(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await go.wait()
        writer.write(OK)

    body = envelope("Dolsis2011Service/v1", "findEmployersByWorkerRequest")
    slow = "call_timeout: 60s"
    async with (
        raw_server(slowly) as server,
        gateway_over(tmp_path, server.url, upstream=slow) as run,
        AsyncExitStack() as stack,
    ):
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", run.port)
            stack.push_async_callback(closed, writer)
            writer.write(post("/bulk/x", body, BULK))
        await until(run, 'bcss_gateway_queue_requests{pool="onss"}', 3)
        await stack.aclose()
        await until(run, 'bcss_gateway_queue_requests{pool="onss"}', 0)
        assert await metric(run, 'bcss_gateway_slots_in_use{pool="onss"}') == 2
        go.set()
        await until(run, 'bcss_gateway_slots_in_use{pool="onss"}', 0)
        assert len(server.requests) == 2


async def until(run: Running, name: str, value: float) -> None:
    """Wait, for at most five seconds, until a metric has a value."""
    for _ in range(250):
        if await metric(run, name) == value:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} is {await metric(run, name)}, not {value}")


async def test_a_slot_stays_taken_while_the_source_works_for_a_caller_who_is_gone(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await go.wait()
        writer.write(OK)

    async with raw_server(slowly) as server, gateway_over(tmp_path, server.url, upstream="call_timeout: 20s") as run:
        _, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(post("/bulk/x", envelope()))
        await until(run, 'bcss_gateway_slots_in_use{pool="base"}', 1)
        await closed(writer)
        await until(run, 'bcss_gateway_requests_total{class="bulk",outcome="client_gone",source="bcss"}', 1)
        assert await metric(run, 'bcss_gateway_slots_in_use{pool="base"}') == 1
        go.set()
        await until(run, 'bcss_gateway_slots_in_use{pool="base"}', 0)


async def test_after_our_own_timeout_the_slot_is_held_and_the_caller_told(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def silent(_writer: asyncio.StreamWriter, _request: bytes) -> None:
        await never.wait()

    upstream = "call_timeout: 50ms, hold: 30s"
    async with raw_server(silent) as server, gateway_over(tmp_path, server.url, upstream=upstream) as run:
        got = await run.ask(post("/bulk/x", envelope()))
        assert said(got)["reason"] == "upstream_timeout"
        assert "not an answer of the BCSS" in said(got)["message"] or b"not an answer of the BCSS" in got
        assert await metric(run, 'bcss_gateway_slots_in_use{pool="base"}') == 1
        run.clock.skip(seconds=40)
        never.set()
    left = json.loads((tmp_path / "state" / "busy_until.json").read_text())
    assert left["clean"] is True
    assert [one["sources"] for one in left["busy"]] == [["bcss"]]


async def test_a_restart_counts_what_may_still_run(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def silent(_writer: asyncio.StreamWriter, _request: bytes) -> None:
        await never.wait()

    upstream = "call_timeout: 50ms, hold: 30s"
    async with raw_server(silent) as server:
        async with gateway_over(tmp_path, server.url, upstream=upstream) as run:
            await run.ask(post("/bulk/x", envelope()))
        async with gateway_over(tmp_path, server.url, upstream=upstream, clean=False) as run:
            assert await metric(run, 'bcss_gateway_slots_in_use{pool="base"}') == 1
        never.set()


async def test_a_first_start_lets_bulk_wait_and_real_time_pass(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, clean=False) as run:
        refused = await run.ask(post("/bulk/x", envelope()))
        assert said(refused)["reason"] == "cooling_down"
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
        run.clock.skip(seconds=2)
        assert (await run.ask(post("/bulk/x", envelope()))).startswith(b"HTTP/1.1 200")


async def test_stopping_answers_who_waits_and_lets_end_what_is_in_flight(tmp_path: Path) -> None:
    script = Script(latency=Latency(1.5, 1.5))
    body = envelope("Dolsis2011Service/v1", "findEmployersByWorkerRequest")
    async with standing_in(script) as stand_in:
        async with AsyncExitStack() as stack:
            slow = "call_timeout: 10s, hold: 1s"
            run = await stack.enter_async_context(gateway_over(tmp_path, stand_in.url, upstream=slow))
            asked = [asyncio.get_running_loop().create_task(run.ask(post("/bulk/x", body, BULK))) for _ in range(4)]
            await until(run, 'bcss_gateway_queue_requests{pool="onss"}', 2)
        answers = await asyncio.gather(*asked)
    statuses = sorted(answer.split(b" ")[1] for answer in answers)
    assert statuses == [b"200", b"200", b"500", b"500"]
    refused = [said(answer)["reason"] for answer in answers if answer.split(b" ")[1] == b"500"]
    assert refused == ["shutting_down", "shutting_down"]
    assert json.loads((tmp_path / "state" / "busy_until.json").read_text())["busy"] == []


async def test_mode_observe_forwards_everything_and_says_what_it_would_have_refused(
    tmp_path: Path, morning: JumpingClock
) -> None:
    extra = (
        "mode: observe\nobserve: {owner: someone, until: 2026-12-01}\n"
        "bulk: {refusal_delay: 0s, body_limit: 1KiB, queue_time: 0s}\n"
    )
    large = envelope() + b" " * 4096
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        got = await run.ask(post("/bulk/x", envelope()))
        assert b"mode=observe; would-refuse=office_hours" in got
        got = await run.ask(post("/bulk/x", large))
        assert b"would-refuse=too_large" in got
        assert server.requests[1].endswith(large)
        assert b"would-refuse=unknown_run" in await run.ask(post("/bulk/x", envelope(), "X-Bulk-Run: 1"))
        assert await metric(run, "bcss_gateway_bulk_in_office_hours_total") == 3
        assert await metric(run, "bcss_gateway_cap_violations_total") == 0
        run.clock.skip(days=9)  # past `until`: the caps and windows hold again, without a restart
        assert said(await run.ask(post("/bulk/x", envelope())))["reason"] == "office_hours"


async def test_a_refusal_of_bulk_is_held_back_and_real_time_is_not(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "bulk: {refusal_delay: 300ms, refusal_delay_limit: 1}\n"
    loop = asyncio.get_running_loop()
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        started = loop.time()
        await run.ask(post("/bulk/x", envelope()))
        assert loop.time() - started >= 0.29


async def test_successes_that_are_no_soap_message_interrupt_nothing_and_failures_do(tmp_path: Path) -> None:
    answers = [OK] * 12 + [b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"] * 12

    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(answers.pop(0))

    runs = "runs: {burst_faults: 5, burst_calls: 10}\n"
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url, extra=runs) as run:
        async with asyncio.timeout(10):
            await run.gateway.mass.is_open.wait()
        for _ in range(12):
            assert (await run.ask(post("/bulk/x", envelope()))).startswith(b"HTTP/1.1 200")
        failed = [await run.ask(post("/bulk/x", envelope())) for _ in range(8)]
    assert said(failed[-1])["reason"] == "cooling_down"
