"""What tests of more than one room share: a gateway in this process, a raw client, a raw server, clocks that stand
or jump."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest

from gateway.app import Gateway, SystemClock, running
from gateway.config import load
from gateway.log import LineWriter
from gateway.occupancy import boot_id

asyncio.set_event_loop(None)  # else pytest-asyncio makes a loop to remember, which nobody closes
BRUSSELS = ZoneInfo("Europe/Brussels")
EVENING = datetime(2026, 11, 24, 20, 0, tzinfo=BRUSSELS)
MORNING = datetime(2026, 11, 24, 9, 30, tzinfo=BRUSSELS)


class JumpingClock:
    """Both clocks of the gateway, started at a chosen hour; `skip` lets time pass on both."""

    def __init__(self, start: datetime = EVENING) -> None:
        self._real = SystemClock()
        self._wall_shift = start - self._real.wall()
        self._skipped = timedelta()

    def boot(self) -> float:
        return self._real.boot() + self._skipped.total_seconds()

    def wall(self) -> datetime:
        return self._real.wall() + self._wall_shift + self._skipped

    def skip(self, **much: float) -> None:
        self._skipped += timedelta(**much)


@dataclass
class Running:
    """A gateway under test."""

    gateway: Gateway
    clock: JumpingClock
    log: Path

    @property
    def port(self) -> int:
        return int(self.gateway.addresses.traffic[0].rpartition(":")[2])

    @property
    def telemetry(self) -> int:
        return int(self.gateway.addresses.telemetry.rpartition(":")[2])

    async def ask(self, request: bytes, *, timeout: float = 10.0) -> bytes:
        """Send octets on a connection of their own; return all that comes until it ends, or an answer is whole."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(timeout):
                return await whole_answer(reader)
        finally:
            await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection and see it gone, so that no test leaves one to the next."""
    writer.close()
    with suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer; one without length until the connection ends."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:]}
    if b"content-length" in fields:
        return head + await reader.readexactly(int(fields[b"content-length"]))
    if fields.get(b"transfer-encoding") == b"chunked":
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            data = await reader.read(65536)
            if not data:
                break
            body += data
        return head + body
    return head + await reader.read()


@dataclass
class RawServer:
    """Answers each request with what `answer` writes, and keeps the requests' octets."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)


RawAnswer = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


@asynccontextmanager
async def raw_server(
    answer: RawAnswer | bytes, *, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[RawServer]:
    """Run a raw server; it reads requests with Content-Length, chunked, or without body."""
    seen = RawServer()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                request = await whole_request(reader)
                seen.requests.append(request)
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(writer, request)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        for writer in writers:
            await closed(writer)


async def whole_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length:" in lower:
        return head + await reader.readexactly(int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]))
    if b"transfer-encoding: chunked" in lower:
        return head + await reader.readuntil(b"0\r\n\r\n")
    return head


@asynccontextmanager
async def gateway_over(
    folder: Path,
    url: str,
    *,
    extra: str = "",
    upstream: str = "call_timeout: 500ms, hold: 500ms",
    clock: JumpingClock | None = None,
    clean: bool = True,
) -> AsyncIterator[Running]:
    """Run a gateway in front of `url`; `clean` spares it the wait of a first start."""
    clock = clock or JumpingClock()
    state = folder / "state"
    if clean:
        state.mkdir(exist_ok=True)
        left = {"boot": boot_id(), "hold_s": 1.0, "clean": True, "busy": []}
        (state / "busy_until.json").write_text(json.dumps(left))
    config = folder / "config.yaml"
    base = {
        "data_dir": "state",
        "listeners": "[{address: 127.0.0.1, port: 0}]",
        "telemetry": "{address: 127.0.0.1, port: 0}",
        "administration": "{port: 0}",
        "upstreams": f"{{bcss: {{url: '{url}', {upstream}}}}}",
        "routes": "[{prefix: /, upstream: bcss}]",
        "bulk": "{refusal_delay: 0s}",
        # Many tests break calls on purpose: that is no reason to stop bulk for minutes, where it is not what is tried.
        "runs": "{burst_faults: 1000, burst_calls: 1000, burst_time: 10ms}",
    }
    own = {line.partition(":")[0] for line in extra.splitlines() if line and not line.startswith((" ", "-"))}
    config.write_text("\n".join(f"{key}: {value}" for key, value in base.items() if key not in own) + "\n" + extra)
    configuration = load(config, {}, now=clock.wall())
    log = folder / "log.jsonl"
    with log.open("a") as out:
        lines = LineWriter(out)
        try:
            async with running(configuration, clock=clock, lines=lines, dice=Random(1)) as gateway:
                yield Running(gateway, clock, log)
        finally:
            lines.close()


def envelope(service: str = "TestConnectionServiceService/v1", operation: str = "sendTestMessageRequest") -> bytes:
    """Return a small message of the new style."""
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<q:{operation} xmlns:q="http://kszbcss.fgov.be/intf/{service}"><echo>hello</echo><ssin>00000000097</ssin>'
        f"</q:{operation}></s:Body></s:Envelope>"
    ).encode()


def post(path: str, body: bytes, *fields: str) -> bytes:
    """Write a POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway.example",
        "Content-Type: text/xml; charset=utf-8",
        'SOAPAction: ""',
    ]
    lines += [f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@pytest.fixture
def evening() -> JumpingClock:
    """A clock that says Tuesday 20:00: bulk may start."""
    return JumpingClock(EVENING)


@pytest.fixture
def morning() -> JumpingClock:
    """A clock that says Tuesday 09:30: office hours."""
    return JumpingClock(MORNING)
