"""Clients that mean no good: for each a defined answer, bounds, a bystander who is served, and no slot that leaks."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import JumpingClock, Running, closed, envelope, gateway_over, post, raw_server, whole_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST /x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "CL and TE": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "CL twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "CL twice, unlike": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "CL list": POST + b"Content-Length: 2, 2\r\n\r\nab",
    "CL plus": POST + b"Content-Length: +2\r\n\r\nab",
    "CL minus": POST + b"Content-Length: -2\r\n\r\nab",
    "CL overflow": POST + b"Content-Length: 18446744073709551618\r\n\r\nab",
    "CL empty": POST + b"Content-Length:\r\n\r\n",
    "CL hex": POST + b"Content-Length: 0x2\r\n\r\nab",
    "CL with space": POST + b"Content-Length: 1 0\r\n\r\nab",
    "TE gzip": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "TE disguised": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE, space before colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE in HTTP/1.0": b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk minus": CHUNKED + b"-2\r\nab\r\n0\r\n\r\n",
    "chunk 0x": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "chunk overflow": CHUNKED + b"fffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "chunk without size": CHUNKED + b"\r\nab\r\n0\r\n\r\n",
    "chunk, LF alone": CHUNKED + b"2\nab\n0\n\n",
    "chunk longer than said": CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    "chunk, space before CR": CHUNKED + b"2 \r\nab\r\n0\r\n\r\n",
    "folded": POST + b"X: a\r\n b\r\n\r\n",
    "folded first": b"POST /x HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare CR": POST + b"X: a\rb: c\r\n\r\n",
    "bare LF": b"POST /x HTTP/1.1\nHost: x\n\n",
    "bare LF in the header": POST + b"X: a\nY: b\r\n\r\n",
    "NUL in a value": POST + b"X: a\x00b\r\n\r\n",
    "NUL in a name": POST + b"X\x00: ab\r\n\r\n",
    "no colon": POST + b"Xab\r\n\r\n",
    "no name": POST + b": ab\r\n\r\n",
    "no Host": b"POST /x HTTP/1.1\r\nX: y\r\n\r\n",
    "two Hosts": POST + b"Host: y\r\n\r\n",
    "two equal Hosts": POST + b"host: x\r\n\r\n",
    "space in the target": b"GET /x y HTTP/1.1\r\nHost: x\r\n\r\n",
    "control in the target": b"GET /x\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown method": b"BREW /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET /x HTTP/1.2\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "CONNECT": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n\x16\x03\x01",
    "TRACE": b"TRACE /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "header of 1 MB": POST + b"X: %s\r\n\r\n" % (b"y" * 1_000_000),
    "1 MB of fields": POST + b"X: y\r\n" * 170_000 + b"\r\n",
    "target of 1 MB": b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"y" * 1_000_000),
    "chunk extension of 1 MB": CHUNKED + b"2;%s\r\nab\r\n0\r\n\r\n" % (b"y" * 1_000_000),
    "trailers of 1 MB": CHUNKED + b"2\r\nab\r\n0\r\nX: %s\r\n\r\n" % (b"y" * 1_000_000),
}


async def spoken(run: Running, request: bytes) -> bytes:
    """Send, and read until the gateway has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
    got = b""
    with suppress(ConnectionError):
        writer.write(request)
        while data := await asyncio.wait_for(reader.read(65536), 5):
            got += data
    await closed(writer)
    return got


def at_rest(run: Running) -> bool:
    pools = run.gateway.slots.statistics().pools.values()
    return run.gateway.proxy.in_flight == 0 and not any(pool.in_use or pool.waiting for pool in pools)


async def settled(run: Running) -> None:
    for _ in range(300):
        if at_rest(run):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(run.gateway.slots.statistics())


async def served(run: Running) -> None:
    """A bystander's call."""
    assert (await run.ask(post("/by", envelope()))).endswith(b"ok")


@pytest.mark.parametrize("path", [b"/x", b"/bulk/x"])
@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_request_is_refused_and_does_not_reach_the_upstream(
    tmp_path: Path, kind: str, path: bytes
) -> None:
    request = REFUSED[kind].replace(b" /x ", b" %s " % path, 1)
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        got = await spoken(run, request)
        await served(run)
        await settled(run)
        again = await run.ask(post("/bulk/by", envelope()))
    assert got[:10] == b"HTTP/1.1 4" or (got[:10] == b"HTTP/1.0 4" and b" HTTP/1.0\r\n" in request), got[:200]
    assert b"Connection: close\r\n" in got
    assert got.count(b"application/problem+json") == 1
    assert again.endswith(b"ok")
    whole = [one for one in server.requests if not one.startswith(b"POST /by ")]
    assert whole == []
    assert '"event":"defect"' not in run.log.read_text()


@pytest.mark.parametrize(
    "request_",
    [
        b"POST http://elsewhere.example:99/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: elsewhere.example:99\r\nContent-Length: 0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: u@elsewhere.example\r\nX-Forwarded-Host: e.example\r\nContent-Length: 0\r\n\r\n",
        b"POST //elsewhere.example/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /@elsewhere.example/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_no_request_chooses_its_destination(tmp_path: Path, request_: bytes) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        assert (await run.ask(request_)).endswith(b"ok")
    [sent] = server.requests
    host = [line for line in sent.split(b"\r\n") if line.lower().startswith(b"host:")]
    assert host == [b"Host: " + server.url.removeprefix("http://").encode()]


async def test_a_surplus_behind_a_request_is_the_next_request_and_no_part_of_this_one(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(post("/one", b"ab") + b"smuggled\r\n\r\n")
        first = await whole_answer(reader)
        second = await whole_answer(reader)
        assert await reader.read() == b""
        await closed(writer)
    assert first.endswith(b"ok")
    assert second.startswith(b"HTTP/1.1 400 ")
    assert [request.split(b" ")[1] for request in server.requests] == [b"/one"]


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Traffic-Class: realtime"],
        ["X-Traffic-Class: realtime", "X-Traffic-Class: bulk"],
        ["X-Traffic-Class: REALTIME"],
        ["x-traffic-class: realtime", "X-Forwarded-For: 127.0.0.1"],
    ],
)
async def test_class_headers_of_clients_that_may_not_set_them_lower_nothing(
    tmp_path: Path, morning: JumpingClock, fields: list[str]
) -> None:
    extra = "listeners: [{address: 127.0.0.1, port: 0, class: bulk}]\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        got = await run.ask(post("/x", envelope(), *fields))
    assert b"<reason>office_hours</reason>" in got
    assert server.requests == []


async def test_an_action_that_contradicts_the_body_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    body = envelope()
    request = post("/bulk/x", body).replace(b'SOAPAction: ""', b'SOAPAction: "http://kszbcss.fgov.be/Other/other"')
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        assert (await run.ask(request)).endswith(b"ok")
        await settled(run)
    [line] = [json.loads(one) for one in run.log.read_text().splitlines() if '"event":"call"' in one]
    assert line["source"] == "bcss"


async def test_hundreds_of_slow_headers_and_bodies_are_ended_and_nobody_waits_for_them(tmp_path: Path) -> None:
    extra = "limits: {header_time: 300ms, body_grace: 300ms}\n"
    beginnings = [POST + b"X: y", b"P", POST + b"Content-Length: 50\r\n\r\nab", CHUNKED + b"5\r\nab"]
    beginnings += [one.replace(b" /x ", b" /bulk/x ") for one in beginnings]
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        async with asyncio.TaskGroup() as tasks:
            slow = [tasks.create_task(spoken(run, beginnings[n % len(beginnings)])) for n in range(400)]
            for _ in range(20):
                await served(run)
        assert all(task.result().startswith(b"HTTP/1.1 408 ") for task in slow)
        await settled(run)
        assert len(run.gateway._listeners[0].connections) == 0


async def test_a_header_that_dribbles_in_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    extra = "limits: {header_time: 200ms}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        got = asyncio.ensure_future(reader.read())
        for octet in POST + b"X: " + b"y" * 400:
            if got.done():
                break
            with suppress(ConnectionError):
                writer.write(bytes([octet]))
            await asyncio.sleep(0.005)
        assert (await asyncio.wait_for(got, 5)).startswith(b"HTTP/1.1 408 ")
        await closed(writer)
    assert server.requests == []


async def test_thousands_of_idle_connections_cost_others_nothing(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        idle = [await asyncio.open_connection("127.0.0.1", run.port) for _ in range(2000)]
        await served(run)
        assert (await run.ask(post("/bulk/by", envelope()))).endswith(b"ok")
        assert len(run.gateway._listeners[0].connections) >= 2000
        await asyncio.gather(*(closed(writer) for _, writer in idle))


async def test_pipelined_calls_are_answered_in_order_and_a_flood_of_them_is_not_all_read(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        request = post("/bulk/x", envelope()) + post("/x", envelope())
        for _ in range(100):
            writer.write(request)
        for _ in range(200):
            assert (await asyncio.wait_for(whole_answer(reader), 5)).endswith(b"ok")
        await closed(writer)
        await settled(run)
    assert [one.split(b" ")[1] for one in server.requests] == [b"/x"] * 200


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_hang_ups_by_the_hundred_in_every_phase_leak_nothing(tmp_path: Path, reset: bool) -> None:
    """Before, in and behind the header, in the body, queued, granted, while the source works, in the answer."""
    timeouts = "call_timeout: 500ms, hold: 100ms"
    extra = "bulk: {refusal_delay: 0s, queue_time: 30s}\n"

    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        writer.write(OK[:-1])
        await asyncio.sleep(0.02)
        writer.write(OK[-1:])

    request = post("/bulk/x", envelope())
    cuts = [0, 5, 40, len(request) - 200, len(request) - 1, len(request)]
    async with raw_server(answer) as server, gateway_over(tmp_path, server.url, extra=extra, upstream=timeouts) as run:

        async def hang_up(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", run.port)
            writer.write(request[: cuts[number % len(cuts)]])
            await asyncio.sleep(0.001 * (number % 60))
            if reset:
                writer.transport.abort()
            await closed(writer)

        async with asyncio.TaskGroup() as tasks:
            for number in range(300):
                tasks.create_task(hang_up(number))
            await served(run)
        await settled(run)
        assert (await run.ask(post("/bulk/by", envelope()))).endswith(b"ok")
        assert run.gateway.slots.statistics().violations == 0
        assert run.gateway.slots.statistics().pools["base"].peak <= 4
    assert '"event":"defect"' not in run.log.read_text()


async def test_full_queues_refuse_at_once_and_delayed_refusals_are_bounded(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await gate.wait()
        writer.write(OK)

    extra = "bulk: {refusal_delay: 3s, refusal_delay_limit: 5, queue_length: 3}\n"
    async with (
        raw_server(answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream="call_timeout: 30s, hold: 1s") as run,
    ):
        calls = [asyncio.ensure_future(run.ask(post("/bulk/x", envelope()), timeout=60)) for _ in range(50)]
        done, _ = await asyncio.wait(calls, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(200):
            done = {call for call in calls if call.done()}
            if len(done) == 50 - 4 - 3 - 5:
                break
            await asyncio.sleep(0.01)
        assert len(done) == 50 - 4 - 3 - 5  # but those in progress, in the queue, and held back
        for call in done:
            assert b"<reason>queue_full</reason>" in call.result()
            assert b"Retry-After: " in call.result()
        gate.set()
        answers = await asyncio.gather(*calls)
    assert sum(answer.endswith(b"ok") for answer in answers) == len(server.requests) == 7
    assert sum(b"<reason>queue_full</reason>" in answer for answer in answers) == 43


async def test_as_many_calls_are_parked_as_there_may_be_files_and_none_is_lost(tmp_path: Path) -> None:
    """As many as this process may have files for: client and gateway share them here. `make bench` has 10,000."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    number = min(10_000, (hard - 500) // 3)
    extra = "bulk: {refusal_delay: 0s, queue_time: 1h, queue_length: 20000, pools: {base: {slots: 4}}}\n"
    extra += "limits: {connections: 20000}\n"
    gate = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter, _request: bytes) -> None:
        await gate.wait()
        writer.write(OK)

    async with (
        raw_server(answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream="call_timeout: 10min, hold: 1s") as run,
    ):
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(run.ask(post("/bulk/x", envelope()), timeout=300)) for _ in range(number)]
            pool = run.gateway.slots.statistics
            for _ in range(6000):
                if pool().pools["base"].waiting == number - 4:
                    break
                await asyncio.sleep(0.01)
            assert pool().pools["base"].waiting == number - 4
            await served_beside(run)
            gate.set()
        assert [call.result() for call in calls if not call.result().endswith(b"ok")] == []
        assert pool().pools["base"].peak == 4
    assert sum(one.startswith(b"POST /x ") for one in server.requests) == number


async def served_beside(run: Running) -> None:
    """A real-time call that the source does not answer yet is on its way all the same."""
    before = run.gateway.upstreams["bcss"].statistics().in_use
    call = asyncio.ensure_future(run.ask(post("/by", envelope()), timeout=300))
    for _ in range(300):
        if run.gateway.upstreams["bcss"].statistics().in_use > before:
            break
        await asyncio.sleep(0.01)
    assert run.gateway.upstreams["bcss"].statistics().in_use > before
    call.cancel()
