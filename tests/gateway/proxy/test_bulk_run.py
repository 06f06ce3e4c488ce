"""Calls that join a run of their client's own, and what every bulk call's end is good for; with the real runner."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.mass import Opened
from gateway.records import NewRun, RunRecord
from policies.model import RunKind, RunState
from tests.conftest import JumpingClock, Running, closed, envelope, gateway_over, post, raw_server
from tests.gateway.proxy.storing import get, head_of, lines_of, told
from tests.gateway.proxy.test_bulk import metric, said

PREFER = "Prefer: respond-async"


def answering(code: str = "", *, value: str = "OK", status: int = 200, body: bytes | None = None) -> bytes:
    """Write an answer of the new style."""
    if body is None:
        said_ = f"<status><value>{value}</value>{f'<code>{code}</code>' if code else ''}</status>"
        body = (
            '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<q:answer xmlns:q="http://kszbcss.fgov.be/intf/x">{said_}</q:answer></s:Body></s:Envelope>'
        ).encode()
    return b"HTTP/1.1 %d So\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


OK = answering("MSG00000")


@dataclass
class Site:
    """A running gateway with its store open."""

    run: Running
    mass: Opened
    noted: list[tuple[tuple[str, ...], bool]]

    async def driven(self, *, client: str = "127.0.0.1", kind: RunKind = RunKind.CLIENT) -> RunRecord:
        """Make a run that this client drives, ready."""
        store, (_, wrapped) = self.mass.store, self.mass.keys.new_key()
        new = NewRun(secrets.token_hex(16), kind, "by ourselves", "anna", wrapped, client=client)
        record = await store.create_run(new)
        return await store.change_state(record.id, RunState.READY, author="anna", reason="")

    async def call(self, record: RunRecord, *fields: str) -> bytes:
        """Make one call of a run."""
        return await self.run.ask(post("/bulk/x", envelope(), f"X-Bulk-Run: {record.public_id}", *fields))

    async def counted(self, record: RunRecord, attempts: int) -> RunRecord:
        """Return a run once so many calls of it are accounted for: answers are read after their callers have them."""
        for _ in range(200):
            await self.mass.runner.client_runs.write()
            found = await self.mass.store.run(record.public_id)
            assert found is not None
            if found.attempts >= attempts:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"only {found.attempts} of {attempts} calls were accounted for")


@asynccontextmanager
async def driving(
    folder: Path, url: str, *, clock: JumpingClock | None = None, extra: str = "", upstream: str = "call_timeout: 5s"
) -> AsyncIterator[Site]:
    """Run a gateway whose store is open."""
    async with gateway_over(folder, url, clock=clock, extra=extra, upstream=upstream) as run:
        async with asyncio.timeout(10):
            await run.gateway.mass.is_open.wait()
        assert run.gateway.mass.opened is not None
        site = Site(run, run.gateway.mass.opened, [])
        interruptions = site.mass.runner.interruptions
        noted: Callable[[Iterable[str], bool], None] = interruptions.noted

        def listening(sources: Iterable[str], technical: bool) -> None:
            site.noted.append((tuple(sources), technical))
            noted(site.noted[-1][0], technical)

        interruptions.noted = listening  # type: ignore[method-assign]  # listens, and passes on
        yield site


async def test_calls_of_a_run_are_forwarded_counted_and_their_tag_taken_off(tmp_path: Path) -> None:
    async with raw_server(OK) as server, driving(tmp_path, server.url) as site:
        record = await site.driven()
        for _ in range(3):
            assert (await site.call(record)).startswith(b"HTTP/1.1 200 ")
        counted = await site.counted(record, 3)
        log = site.run.log
        name = 'bcss_gateway_business_status_total{kind="ok",source="bcss"}'
        assert await metric(site.run, name) == 3
    assert (counted.counts.done, counted.counts.rejected, counted.attempts) == (3, 0, 3)
    assert all(b"X-Bulk-Run" not in request for request in server.requests)
    assert len(lines_of(log, lambda line: line.get("run") == record.public_id and line["event"] == "call")) == 3
    assert site.noted == [(("bcss",), False)] * 3


async def test_rejects_and_faults_are_told_apart_and_reach_the_breaker(tmp_path: Path) -> None:
    answers = [answering("MSG00005"), answering("MSG00003"), answering(status=503, body=b"busy"), OK]

    async def in_turn(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(answers.pop(0))

    async with raw_server(in_turn) as server, driving(tmp_path, server.url) as site:
        record = await site.driven()
        statuses = [(await site.call(record)).split(b" ")[1] for _ in range(4)]
        counted = await site.counted(record, 4)
    assert statuses == [b"200", b"200", b"503", b"200"], "whatever it says, the answer passes"
    assert (counted.counts.done, counted.counts.rejected, counted.counts.failed) == (1, 1, 2)
    assert [technical for _, technical in site.noted] == [False, True, True, False]


async def test_a_large_answer_is_read_too_and_one_larger_still_is_judged_by_its_status(tmp_path: Path) -> None:
    def padded(size: int) -> bytes:
        body = OK.partition(b"\r\n\r\n")[2]
        return answering(body=body.replace(b"<s:Body>", b"<s:Body>" + b" " * size))

    answers = [padded(1 << 20), padded(5 << 20)]

    async def in_turn(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(answers.pop(0))

    async with raw_server(in_turn) as server, driving(tmp_path, server.url) as site:
        record = await site.driven()
        for large in tuple(answers):
            assert (await site.call(record)).partition(b"\r\n\r\n")[2] == large.partition(b"\r\n\r\n")[2]
        counted = await site.counted(record, 2)
        name = 'bcss_gateway_business_status_total{kind="%s",source="bcss"}'
        assert (await metric(site.run, name % "ok"), await metric(site.run, name % "unknown")) == (1, 1)
    assert (counted.counts.done, counted.attempts) == (2, 2)


async def test_a_code_that_every_next_call_would_get_too_pauses_the_run(tmp_path: Path) -> None:
    async with raw_server(answering("MSG00013")) as server, driving(tmp_path, server.url) as site:
        record = await site.driven()
        passed = await site.call(record)
        counted = await site.counted(record, 1)
        refused = await site.call(record)
        assert (counted.state, counted.changed_by) == (RunState.PAUSED, "gateway")
    assert passed.startswith(b"HTTP/1.1 200 ")
    assert said(refused)["reason"] == "run_paused"
    assert b"Retry-After" not in refused, "a person ends it"
    assert "resume" in said(refused)["hint"]
    assert len(server.requests) == 1


async def test_only_a_run_that_is_the_callers_own_and_goes_on_is_joined(tmp_path: Path) -> None:
    async with raw_server(OK) as server, driving(tmp_path, server.url) as site:
        theirs = await site.driven(client="payroll")
        stored = await site.driven(kind=RunKind.FILE)
        over = await site.driven()
        await site.mass.store.change_state(over.id, RunState.CANCELLED, author="anna", reason="enough")
        unknown = [await site.call(record) for record in (theirs, stored, over)]
        unknown.append(await site.run.ask(post("/bulk/x", envelope(), f"X-Bulk-Run: {'0' * 32}")))
        paused = await site.driven()
        await site.mass.store.change_state(paused.id, RunState.PAUSED, author="anna", reason="lunch")
        refused = await site.call(paused)
        assert (
            await metric(site.run, 'bcss_gateway_refusals_total{class="bulk",reason="unknown_run",source="bcss"}') == 4
        )
    assert {said(answer)["reason"] for answer in unknown} == {"unknown_run"}
    assert all(b"soapenv:Client" in answer for answer in unknown)
    assert said(refused)["reason"] == "run_paused"
    assert server.requests == []


async def test_calls_that_wait_already_are_not_sent_when_their_run_is_paused(tmp_path: Path) -> None:
    may_answer = asyncio.Event()

    async def when_told(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await may_answer.wait()
        writer.write(OK)

    async with raw_server(when_told) as server, driving(tmp_path, server.url) as site, asyncio.TaskGroup() as tasks:
        record = await site.driven()
        calls = [tasks.create_task(site.call(record)) for _ in range(7)]
        async with asyncio.timeout(10):
            while (
                len(server.requests) < 4
                or sum(pool.waiting for pool in site.run.gateway.slots.statistics().pools.values()) < 3
            ):
                await asyncio.sleep(0.01)
        await site.mass.store.change_state(record.id, RunState.PAUSED, author="anna", reason="lunch")
        site.run.clock.skip(seconds=3)  # for so long a run's state is believed
        may_answer.set()
        answers = [await call for call in calls]
        counted = await site.counted(record, 4)
    assert sorted(answer.split(b" ")[1] for answer in answers) == [b"200"] * 4 + [b"500"] * 3
    assert {said(answer)["reason"] for answer in answers if b" 500 " in answer[:20]} == {"run_paused"}
    assert len(server.requests) == counted.attempts == 4


async def test_a_call_of_a_run_is_never_stored(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "bulk: {refusal_delay: 0s, closed: queue}\n"
    async with raw_server(OK) as server, driving(tmp_path, server.url, clock=morning, extra=extra) as site:
        record = await site.driven()
        assert said(await site.call(record, PREFER))["reason"] == "office_hours"
        assert (await site.counted(record, 0)).attempts == 0, "nothing was sent"
    assert site.noted == []


async def test_trouble_with_the_upstream_is_technical_and_a_caller_who_left_is_not_judged(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def cut_then_silent(writer: asyncio.StreamWriter, _request: bytes) -> None:
        if not site.noted:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 50\r\n\r\nhalf")
            await writer.drain()
            writer.close()
        else:
            await go.wait()

    async with raw_server(cut_then_silent) as server, driving(tmp_path, server.url) as site:
        record = await site.driven()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await site.call(record)
        assert site.noted == [(("bcss",), True)]
        _, writer = await asyncio.open_connection("127.0.0.1", site.run.port)
        writer.write(post("/bulk/x", envelope(), f"X-Bulk-Run: {record.public_id}"))
        for _ in range(200):
            if len(server.requests) == 2:
                break
            await asyncio.sleep(0.01)
        await closed(writer)
        counted = await site.counted(record, 2)
        go.set()
    assert (counted.counts.failed, counted.counts.settled, counted.attempts) == (1, 1, 2)
    assert len(site.noted) == 1


async def test_bulk_without_a_run_reaches_the_breaker_and_real_time_does_not(tmp_path: Path) -> None:
    extra = "routes: [{prefix: /, upstream: bcss, sources: [onss]}]\n"
    async with raw_server(answering("MSG00003")) as server, driving(tmp_path, server.url, extra=extra) as site:
        await site.run.ask(post("/bulk/x", envelope()))
        await site.run.ask(post("/bulk/x", b"<unknown/>"))
        await site.run.ask(post("/x", envelope()))
    assert site.noted == [(("bcss",), True), (("unclassified",), True)]


async def test_what_is_stored_is_sent_when_bulk_opens_and_its_answer_handed_out(
    tmp_path: Path, morning: JumpingClock
) -> None:
    answer = (
        b"HTTP/1.1 200 Fine\r\nx-B: 1\r\nContent-Type: text/xml\r\nX-a: 2\r\n\r\n".replace(
            b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(OK.partition(b"\r\n\r\n")[2])
        )
        + OK.partition(b"\r\n\r\n")[2]
    )
    async with raw_server(answer) as server, driving(tmp_path, server.url, clock=morning) as site:
        promise = await site.run.ask(post("/bulk/x?q", envelope(), PREFER, "X-Own: yes"))
        location = head_of(promise)["location"]
        assert (await site.run.ask(get(location))).startswith(b"HTTP/1.1 202 ")
        assert server.requests == []
        site.run.clock.skip(hours=8)
        got = b""
        for _ in range(100):
            got = await site.run.ask(get(location))
            if not got.startswith(b"HTTP/1.1 202 "):
                break
            await asyncio.sleep(0.1)
        assert await metric(site.run, "bcss_gateway_bulk_in_office_hours_total") == 0
    assert got == answer
    (request,) = server.requests
    assert request.startswith(b"POST /x?q HTTP/1.1\r\nHost: 127.0.0.1")
    assert b"X-Own: yes" in request
    assert b"Prefer" not in request
    assert request.endswith(envelope())
    assert told(promise)["state"] == "waiting"


@pytest.mark.parametrize("closed", ["refuse", "queue"])
async def test_under_a_hold_a_call_is_refused_without_an_hour_or_stored_where_the_site_queues(
    tmp_path: Path, closed: str
) -> None:
    extra = f"bulk: {{refusal_delay: 0s, closed: {closed}}}\n"
    async with raw_server(OK) as server, driving(tmp_path, server.url, extra=extra) as site:
        await site.mass.store.hold("source:bcss", author="anna", reason="they asked for it")
        await site.mass.runner.interruptions.look()
        got = await site.run.ask(post("/bulk/x", envelope()))
        runs = [run.kind for run in await site.mass.store.runs()]
    if closed == "refuse":
        assert said(got)["reason"] == "held"
        assert b"Retry-After" not in got, "a person ends it"
        assert runs == []
    else:
        assert got.startswith(b"HTTP/1.1 202 ")
        assert runs == [RunKind.ASYNC]
    assert server.requests == []
