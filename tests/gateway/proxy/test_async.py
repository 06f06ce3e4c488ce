"""Calls that are stored: who asks for it or may not start now gets a promise, and later the answer, octet for octet."""

import asyncio
import gzip
import re
from pathlib import Path
from random import Random

import pytest

from gateway.packing import StoredAnswer
from gateway.proxy.prefer import prefers_async, without_async
from gateway.proxy.refusing import Refuser
from gateway.records import NewRun, RunRecord
from gateway.soap import FaultForm
from policies.model import ItemState, Reason, Refusal, RunState
from tests.conftest import JumpingClock, closed, envelope, gateway_over, post, raw_server, whole_answer
from tests.gateway.proxy.storing import Site, body_of, get, head_of, lines_of, storing, told
from tests.gateway.proxy.test_bulk import metric, said

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\n<ok>"
PREFER = "Prefer: respond-async"
QUEUE = "bulk: {refusal_delay: 0s, closed: queue}\n"
ANSWER = StoredAnswer(
    200,
    b"Fine",
    ((b"content-TYPE", b"text/xml"), (b"X-B", b"2"), (b"x-a", b"1"), (b"X-B", b"3")),
    b'<?xml version="1.0"?>\r\n<a>\x00\xff</a>\n',
)
WITH_TIMESTAMP = envelope().replace(
    b"<s:Body>",
    b'<s:Header><w:Security xmlns:w="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd">'
    b'<u:Timestamp xmlns:u="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd">'
    b"<u:Created>2026-11-24T08:00:00Z</u:Created><u:Expires>2026-11-24T08:05:00Z</u:Expires></u:Timestamp>"
    b"</w:Security></s:Header><s:Body>",
)


async def stored(site: Site, *fields: str, body: bytes = b"", path: str = "/bulk/x") -> str:
    """Have a call stored; return where its answer will be."""
    got = await site.run.ask(post(path, body or envelope(), PREFER, *fields))
    assert got.startswith(b"HTTP/1.1 202 Accepted\r\n"), got
    return head_of(got)["location"]


# Taking in.


async def test_a_bulk_call_that_prefers_it_is_stored_and_promised(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "routes: [{prefix: /in, replace: /out, upstream: bcss}]\n"
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning, extra=extra) as site:
        fields = (
            "prefer: Respond-Async, wait=10",
            "X-Own: 1",
            "x-own: 2",
            "Connection: X-Hop",
            "X-Hop: 1",
        )
        got = await site.run.ask(post("/bulk/in/p?q=1", envelope(), *fields))
        (run,) = await site.runs()
        ((_, _, request),) = await site.taken(run)
        ((work, total),) = await site.store.lanes(run.id)
        assert await metric(site.run, 'bcss_gateway_requests_total{class="bulk",outcome="stored",source="bcss"}') == 1
        assert await metric(site.run, "bcss_gateway_refusals_total") == 0
    head, promise = head_of(got), told(got)
    assert got.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert re.fullmatch(r"/\.gateway/async/[0-9a-f]{32}", head["location"])
    assert head["preference-applied"] == "respond-async"
    assert head["x-gateway-decision"] == "stored; class=bulk; state=waiting"
    assert 7.5 * 3600 - 60 <= int(head["retry-after"]) <= 7.6 * 3600, "not before bulk opens"
    assert (promise["origin"], promise["state"], promise["run"]) == ("gateway", "waiting", run.public_id)
    assert promise["location"] == head["location"]
    assert (request.method, request.target, request.body) == (b"POST", b"/out/p?q=1", envelope())
    assert request.headers == (
        (b"Content-Type", b"text/xml; charset=utf-8"),
        (b"SOAPAction", b'""'),
        (b"X-Own", b"1"),
        (b"x-own", b"2"),
    )
    assert (work.key.route, work.key.sources, work.key.service) == ("/in", ("bcss",), "TestConnectionServiceService/v1")
    assert (total, run.state, run.route, run.options["day"]) == (1, RunState.READY, "/in", "2026-11-24")
    assert site.woken == [], "nothing can be sent before the window opens"
    assert server.requests == []
    (line,) = lines_of(site.run.log, lambda line: line.get("outcome") == "stored")
    assert (line["status"], line["run"], line["source"]) == (202, run.public_id, "bcss")


async def test_nothing_that_is_kept_can_be_read_without_the_key(tmp_path: Path, morning: JumpingClock) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning) as site:
        handle = (await stored(site)).rpartition("/")[2]
        await site.settled(ItemState.DONE, ANSWER)
    kept = b"".join(one.read_bytes() for one in tmp_path.glob("store.sqlite*"))
    assert b"00000000097" not in kept
    assert b"Envelope" not in kept
    assert b"127.0.0.1" not in kept.replace(b"calls of 127.0.0.1", b""), "who may fetch is kept as a keyed tag"
    log = site.run.log.read_text()
    assert "00000000097" not in log
    assert handle not in log, "who reads the log could fetch the answer"


async def test_with_an_open_window_the_runner_is_woken_and_the_caller_comes_back_soon(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        got = await site.run.ask(post("/bulk/x", envelope(), PREFER))
        assert 5 <= int(head_of(got)["retry-after"]) <= 8
        assert site.woken == [True]
        assert server.requests == []


async def test_a_site_may_queue_what_comes_in_closed_hours(tmp_path: Path, morning: JumpingClock) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning, extra=QUEUE) as site:
        got = await site.run.ask(post("/bulk/x", envelope()))
        assert got.startswith(b"HTTP/1.1 202 ")
        assert "preference-applied" not in head_of(got), "nobody preferred it"
        ((_, _, request),) = await site.taken((await site.runs())[0])
        assert request.body == envelope()
        site.run.clock.skip(hours=8)
        assert (await site.run.ask(post("/bulk/x", envelope()))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("authorization", ["Authorization: Basic dGVzdDp0ZXN0", "Cookie: session=fictive"])
@pytest.mark.parametrize("fields", [(PREFER,), ()], ids=["preferred", "queued"])
async def test_a_call_with_credentials_is_stored_only_where_the_upstream_has_its_own(
    tmp_path: Path, morning: JumpingClock, fields: tuple[str, ...], authorization: str
) -> None:
    (tmp_path / "password").write_text("fictive")
    async with raw_server(OK) as server:
        async with storing(tmp_path, server.url, clock=morning, extra=QUEUE) as site:
            refused = await site.run.ask(post("/bulk/x", envelope(), authorization, *fields))
            assert await site.runs() == []
        own = f"upstreams: {{bcss: {{url: '{server.url}', credentials: {{user: u, password: {{file: password}}}}}}}}\n"
        async with storing(tmp_path, server.url, clock=morning, extra=QUEUE + own) as site:
            got = await site.run.ask(post("/bulk/x", envelope(), authorization, *fields))
            ((_, _, request),) = await site.taken((await site.runs())[0])
    if fields:
        assert said(refused)["reason"] == "not_storable"
        assert b"soapenv:Client" in refused
        assert b"Retry-After" not in refused
    else:  # it cannot be stored, but can be sent when bulk opens
        assert said(refused)["reason"] == "office_hours"
        assert b"Retry-After" in refused
    assert "credentials" in said(refused)["hint"]
    assert got.startswith(b"HTTP/1.1 202 ")
    assert not {b"authorization", b"cookie"} & {name.lower() for name, _ in request.headers}


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_message_that_would_be_stale_at_night_is_not_stored(
    tmp_path: Path, morning: JumpingClock, coding: str
) -> None:
    body = gzip.compress(WITH_TIMESTAMP) if coding == "gzip" else WITH_TIMESTAMP
    fields = ("Content-Encoding: gzip",) if coding == "gzip" else ()
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning) as site:
        refused = await site.run.ask(post("/bulk/x", body, PREFER, *fields))
        assert await site.runs() == []
    assert said(refused)["reason"] == "not_storable"
    assert "stale" in said(refused)["hint"]


async def test_without_a_store_a_call_that_would_be_stored_is_refused_and_others_go_on(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        refused = await run.ask(post("/bulk/x", envelope(), PREFER))
        fetching = await run.ask(get("/.gateway/async/" + 32 * "a"))
        assert (await run.ask(post("/bulk/x", envelope()))).startswith(b"HTTP/1.1 200 ")
    assert said(refused)["reason"] == "store_unavailable"
    assert 10 <= int(head_of(refused)["retry-after"]) <= 15
    assert fetching.startswith(b"HTTP/1.1 503 ")
    assert told(fetching)["reason"] == "store_unavailable"
    assert 10 <= int(head_of(fetching)["retry-after"]) <= 15


async def test_a_real_time_call_that_prefers_it_passes_untouched(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        got = await site.run.ask(post("/x", envelope(), PREFER))
        assert await site.runs() == []
    assert got.startswith(b"HTTP/1.1 200 ")
    assert PREFER.encode() in server.requests[0]


async def test_only_a_post_with_a_body_is_stored_and_nothing_in_mode_observe(
    tmp_path: Path, morning: JumpingClock
) -> None:
    observe = "mode: observe\nobserve: {owner: someone, until: 2026-12-01}\n"
    async with raw_server(OK) as server:
        async with storing(tmp_path, server.url, clock=morning, extra=QUEUE) as site:
            refused = await site.run.ask(get("/bulk/x", PREFER))
            empty = await site.run.ask(post("/bulk/x", b"", PREFER))
            assert await site.runs() == []
        async with storing(tmp_path, server.url, clock=morning, extra=QUEUE + observe) as site:
            passed = await site.run.ask(post("/bulk/x", envelope(), PREFER))
            assert await site.runs() == []
    assert told(refused)["reason"] == "office_hours"
    assert said(empty)["reason"] == "office_hours"
    assert passed.startswith(b"HTTP/1.1 200 ")


async def test_unclassified_calls_are_stored_as_such_and_never_repeatable(
    tmp_path: Path, morning: JumpingClock
) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning) as site:
        await stored(site, body=b"<unknown/>")
        ((work, _),) = await site.store.lanes((await site.runs())[0].id)
    assert (work.key.sources, work.key.repeatable) == ((), False)


# Which run.


async def test_one_run_for_each_client_route_and_day(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "routes: [{prefix: /a, upstream: bcss}, {prefix: /b, upstream: bcss}]\n"
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning, extra=extra) as site:
        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(stored(site, path="/bulk/a" if number % 2 else "/bulk/b"))
        assert sorted((run.route, run.total) for run in await site.runs()) == [("/a", 5), ("/b", 5)]
        site.run.clock.skip(days=1)
        await stored(site, path="/bulk/a")
        runs = [(run.route, run.options["day"]) for run in await site.runs()]
    assert runs[2:] == [("/a", "2026-11-25")]
    assert len(runs) == 3


async def test_a_run_that_was_ended_is_followed_by_another_of_the_same_day(
    tmp_path: Path, morning: JumpingClock
) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning) as site:
        await stored(site)
        (first,) = await site.runs()
        await site.store.change_state(first.id, RunState.CANCELLED, author="anna", reason="wrong")
        await stored(site)
        await stored(site)
        runs = await site.runs()
    assert [(run.state, run.total) for run in runs] == [(RunState.CANCELLED, 1), (RunState.READY, 2)]


async def test_another_process_joins_the_run_of_the_day(tmp_path: Path, morning: JumpingClock) -> None:
    async with raw_server(OK) as server:
        for _ in range(2):
            async with storing(tmp_path, server.url, clock=morning) as site:
                await stored(site)
                (run,) = await site.runs()
                assert len(await site.taken(run)) == 1
        assert run.total == 2


# Handing out.


async def test_an_answer_is_handed_out_octet_for_octet_as_often_as_asked(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        await site.settled(ItemState.DONE, ANSWER)
        for _ in range(2):
            got = await site.run.ask(get(location))
            assert got == (
                b"HTTP/1.1 200 Fine\r\ncontent-TYPE: text/xml\r\nX-B: 2\r\nx-a: 1\r\nX-B: 3\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(ANSWER.body), ANSWER.body)
            )
        name = 'bcss_gateway_requests_total{class="realtime",outcome="fetched",source="none"}'
        assert await metric(site.run, name) == 2


@pytest.mark.parametrize("state", [ItemState.DONE, ItemState.REJECTED])
async def test_a_rejects_answer_and_one_with_its_own_length_are_handed_out_too(
    tmp_path: Path, state: ItemState
) -> None:
    answer = StoredAnswer(500, b"Internal Server Error", ((b"Content-Length", b"7"),), b"<fault>")
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        await site.settled(state, answer)
        got = await site.run.ask(get(location))
    assert got == b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 7\r\n\r\n<fault>"


async def test_a_head_gets_the_header_alone_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        await site.settled(ItemState.DONE, ANSWER)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.run.port)
        writer.write(get(location, method="HEAD"))
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(get(location, method="HEAD"))
        assert await reader.readuntil(b"\r\n\r\n") == head
        writer.close()
    assert head.endswith(b"Content-Length: %d\r\n\r\n" % len(ANSWER.body))


async def test_a_large_answer_is_handed_out_whole(tmp_path: Path) -> None:
    large = StoredAnswer(200, b"OK", ((b"Content-Type", b"text/xml"),), bytes(range(256)) * 8000)
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site, body=envelope() + b" " * 200_000)
        await site.settled(ItemState.DONE, large)
        assert body_of(await site.run.ask(get(location))) == large.body


async def test_an_answer_without_a_body_gets_none(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        await site.settled(ItemState.DONE, StoredAnswer(204, b"No Content", ((b"X", b"1"),), b""))
        reader, writer = await asyncio.open_connection("127.0.0.1", site.run.port)
        writer.write(get(location))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"
        writer.close()


async def test_while_it_waits_a_call_is_promised_again(tmp_path: Path, morning: JumpingClock) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url, clock=morning) as site:
        location = await stored(site)
        got = await site.run.ask(get(location))
        (run,) = await site.runs()
        await site.taken(run)
        await site.store.change_state(run.id, RunState.PAUSED, author="anna", reason="look")
        site.run.clock.skip(hours=8)
        paused = await site.run.ask(get(location))
    assert got.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert (told(got)["location"], told(got)["runState"]) == (location, "ready")
    assert 7.4 * 3600 <= int(head_of(got)["retry-after"]) <= 7.6 * 3600
    assert (told(paused)["state"], told(paused)["runState"]) == ("waiting", "paused")
    assert int(head_of(paused)["retry-after"]) <= 8


@pytest.mark.parametrize(
    ("state", "code", "status", "words"),
    [
        (ItemState.FAILED, "HTTP 503", 502, "failed after 1 attempt. The last attempt came to HTTP 503"),
        (ItemState.IN_DOUBT, "upstream_timeout", 409, "Nobody knows"),
        (ItemState.DONE, "", 410, "by a person's word"),
    ],
)
async def test_without_an_answer_it_is_said_what_happened_and_what_to_do(
    tmp_path: Path, state: ItemState, code: str, status: int, words: str
) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        await site.settled(state, None, code=code)
        got = await site.run.ask(get(location))
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert head_of(got)["content-type"] == "application/problem+json"
    assert words in str(told(got)["detail"])


async def test_what_a_cancelled_run_did_not_settle_is_gone_and_what_it_did_is_not(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        answered = await stored(site)
        await site.settled(ItemState.DONE, ANSWER)
        location = await stored(site)
        (run,) = await site.runs()
        await site.store.change_state(run.id, RunState.CANCELLED, author="anna", reason="enough")
        gone = await site.run.ask(get(location))
        assert (await site.run.ask(get(answered))).startswith(b"HTTP/1.1 200 Fine\r\n")
        await site.store.recover((await site.store.batches())[0], delay_s=0.0)
        await site.store.purge(run.id, author="anna")
        purged = await site.run.ask(get(answered))
    assert gone.startswith(b"HTTP/1.1 410 ")
    assert "cancelled, by anna" in str(told(gone)["detail"])
    assert purged.startswith(b"HTTP/1.1 404 ")


async def test_an_answer_that_cannot_be_opened_is_said_so(tmp_path: Path) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        location = await stored(site)
        (run,) = await site.runs()
        ((batch, item, _),) = await site.taken(run)
        other = (await site.store.create_run(_like(run))).id
        assert other != run.id
        forged = await site.store.run(_like(run).public_id)
        assert forged is not None
        await site.settle(forged, batch, item, ItemState.DONE, ANSWER)  # sealed under another run's name
        got = await site.run.ask(get(location))
    assert got.startswith(b"HTTP/1.1 500 ")
    assert "cannot be opened" in str(told(got)["detail"])


def _like(run: RunRecord) -> NewRun:
    assert run.wrapped_key is not None
    return NewRun("f" * 32, run.kind, run.name, run.author, run.wrapped_key, client=run.client)


# Who may.


async def asked_from(site: Site, address: str, request: bytes) -> bytes:
    """Ask from another address of this host."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.run.port, local_addr=(address, 0))
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await whole_answer(reader)
    finally:
        await closed(writer)


async def test_another_client_gets_nothing_and_learns_nothing(tmp_path: Path) -> None:
    extra = "clients: [{name: payroll, networks: [127.0.0.2/32, 127.0.0.3/32]}]\n"
    async with raw_server(OK) as server, storing(tmp_path, server.url, extra=extra) as site:
        location = await stored(site)
        ours = await asked_from(site, "127.0.0.2", post("/bulk/x", envelope(), PREFER))
        await site.settled(ItemState.DONE, ANSWER)
        assert len(await site.runs()) == 2
        theirs = head_of(ours)["location"]
        stranger = await asked_from(site, "127.0.0.2", get(location))
        unknown = await asked_from(site, "127.0.0.2", get("/.gateway/async/" + "0" * 32))
        assert (await site.run.ask(get(theirs))).startswith(b"HTTP/1.1 404 ")
        same = await asked_from(site, "127.0.0.3", get(theirs, "User-Agent: another program"))
        assert (await site.run.ask(get(location))).startswith(b"HTTP/1.1 200 ")
    assert stranger.startswith(b"HTTP/1.1 404 ")
    assert told(stranger)["detail"] == told(unknown)["detail"]
    assert same.startswith(b"HTTP/1.1 200 "), "a client rule that rests on addresses names one client"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/.gateway/"), 404),
        (get("/.gateway/async/" + "A" * 32), 404),
        (get("/.gateway/async/" + "a" * 31), 404),
        (get("/.gateway/async/" + "a" * 32, method="DELETE"), 405),
        (post("/.gateway/async/" + "a" * 32, b"x"), 405),
        (b"GET /.gateway/async/" + b"a" * 32 + b" HTTP/1.1\r\n\r\n", 400),
        (get("/.gateway/async/" + "a" * 32 + "?x=1"), 404),
    ],
)
async def test_what_is_not_an_answers_address_is_never_forwarded(tmp_path: Path, request_: bytes, status: int) -> None:
    async with raw_server(OK) as server, storing(tmp_path, server.url) as site:
        got = await site.run.ask(request_)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    if status == 405:
        assert head_of(got)["allow"] == "GET, HEAD"
    assert server.requests == []


# The preference.


@pytest.mark.parametrize(
    ("values", "asks"),
    [
        ([b"respond-async"], True),
        ([b"wait=10, RESPOND-ASYNC"], True),
        ([b"return=minimal", b"respond-async;x=1"], True),
        ([b'foo="respond-async, x"'], False),
        ([b"respond-asynchronously"], False),
        ([b'foo="a\\", respond-async, b"'], False),
        ([b""], False),
        ([], False),
    ],
)
def test_a_preference_is_told_by_its_name(values: list[bytes], asks: bool) -> None:
    assert prefers_async(values) is asks


def test_of_preferences_only_those_that_were_applied_are_taken_away() -> None:
    given = (
        (b"A", b"1"),
        (b"prefer", b"respond-async, wait=10"),
        (b"Prefer", b'return=minimal, respond-async, x="a, b"'),
        (b"Prefer", b"handling=strict ,x"),
    )
    assert without_async(given) == (
        (b"A", b"1"),
        (b"Prefer", b'return=minimal, x="a, b"'),
        (b"Prefer", b"handling=strict ,x"),
    )


# When to come back.


@pytest.mark.parametrize(
    ("reason", "least"),
    [
        (Reason.STORE_UNAVAILABLE, 10),
        (Reason.LAYOUT_CONFLICT, 60),
        (Reason.HELD, None),
        (Reason.RUN_PAUSED, None),
        (Reason.NOT_STORABLE, None),
        (Reason.UNKNOWN_RUN, None),
    ],
)
def test_only_what_passes_by_itself_has_a_time_to_come_back(reason: Reason, least: int | None) -> None:
    refuser = Refuser(FaultForm(), JumpingClock(), Random(1), delay_s=0.0, at_most=0)
    after = refuser.timed(Refusal(reason, "id"), retry_in_s=None).retry_after_s
    if least is None:
        assert after is None
    else:
        assert after is not None
        assert least <= after <= 1.5 * least + 1
