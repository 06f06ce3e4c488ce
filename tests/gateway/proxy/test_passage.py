"""A real-time call that passes as callbacks: whatever comes between, it is answered once or cut, stands in the books
once, and neither connection carries an octet of it on."""

import asyncio
import json
from pathlib import Path

from tests.conftest import JumpingClock, Running, closed, envelope, gateway_over, post, raw_server, whole_answer
from tests.gateway.proxy.test_suspicion import loop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


def booked(run: Running) -> list[tuple[int, str]]:
    """Return the status and outcome of each call in the books."""
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [(line["status"], line["outcome"]) for line in lines if line["event"] == "call"]


async def at_rest(run: Running) -> None:
    """Wait until no call is in flight, and no connection to the upstream in use."""
    for _ in range(200):
        if not run.gateway.proxy.in_flight and not run.gateway.upstreams["bcss"].statistics().in_use:
            return
        await asyncio.sleep(0.01)
    raise AssertionError((run.gateway.proxy.in_flight, run.gateway.upstreams["bcss"].statistics()))


async def test_a_suspect_made_bulk_costs_no_connection_to_the_upstream(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "suspicion: {action: bulk, calm: 2min}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        answers = await loop(run, 70)
        assert b"<reason>office_hours</reason>" in answers[-1]
        assert run.gateway.upstreams["bcss"].statistics().in_use == 0


async def test_surplus_behind_an_answer_in_pieces_ends_the_upstreams_connection_and_not_the_call(
    tmp_path: Path,
) -> None:
    async def in_pieces(writer: asyncio.StreamWriter, request: bytes) -> None:
        if b"/warm" in request:
            writer.write(OK)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"67890" + OK)

    async with raw_server(in_pieces) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(post("/warm", b""))
        assert (await run.ask(GET, timeout=3)).endswith(b"\r\n\r\n1234567890")
        assert (await run.ask(post("/warm", b""))).endswith(b"ok")
        await at_rest(run)
    assert len(booked(run)) == 3


async def test_a_body_behind_an_answer_to_head_reaches_nobody(tmp_path: Path) -> None:
    """It would be taken for the next answer."""
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(GET)
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(GET.replace(b"GET", b"HEAD"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 2\r\n" in head
        writer.write(GET)
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        await closed(writer)


async def test_a_client_that_waits_for_an_invitation_gets_one(tmp_path: Path) -> None:
    body = envelope()
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        whole = post("/x", body, "Expect: 100-continue")
        writer.write(whole[: -len(body)])
        await asyncio.sleep(0.2)  # longer than a body is waited for as callbacks
        writer.write(body)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        await closed(writer)
