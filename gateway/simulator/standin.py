"""The stand-in for the BCSS's web services: answers every style of message as scripted, and counts what it is
working on.

It is the ground truth of the tests and the demo: how many calls were in progress at once, for each source and class,
is what the stand-in saw, not what the gateway believes.

Rules that always hold:
- A call counts from when its body was read until its latency has passed, even if its caller hangs up meanwhile: a
  real source goes on working, too. A call to several sources counts at each.
- The class is what the sender of a test says in `X-Test-Class`; nothing else of the gateway's doing is looked at.
- Bodies are kept only when a test asks for it (`record`).
"""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from gateway.simulator.messages import Asked, content_type, fault, read, reply
from gateway.simulator.script import Rule, Script
from gateway.simulator.wsdl import wsdl_for

CONTROL = "/.stand-in/"
_DRIPS = 10


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came, for tests that compare octets."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    at: float = 0.0  #: when its body was read, by the event loop's clock


@dataclass(slots=True)
class Counts:
    """What the stand-in has worked on. Keys are (source, class)."""

    current: Counter[tuple[str, str]] = field(default_factory=Counter)
    peak: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)  #: by service

    def begin(self, sources: tuple[str, ...], traffic: str) -> None:
        """Count a call that is being worked on."""
        for source in sources:
            self.current[source, traffic] += 1
            self.peak[source, traffic] = max(self.peak[source, traffic], self.current[source, traffic])

    def end(self, sources: tuple[str, ...], traffic: str) -> None:
        """Count a call that is done."""
        for source in sources:
            self.current[source, traffic] -= 1

    def highest(self, source: str, traffic: str = "bulk") -> int:
        """Return the most calls of a class that were in progress at a source at once."""
        return self.peak[source, traffic]

    def shown(self) -> dict[str, object]:
        """Return everything as JSON can hold it."""
        nested: dict[str, dict[str, int]] = {}
        for (source, traffic), peak in self.peak.items():
            nested.setdefault(source, {})[traffic] = peak
        current = {f"{source}/{traffic}": number for (source, traffic), number in self.current.items() if number}
        return {"peak": nested, "current": current, "total": self.calls.total(), "by_service": dict(self.calls)}


class StandIn:
    """A stand-in that runs. Made by `standing_in`."""

    def __init__(self, script: Script, *, record: bool = False) -> None:
        self.script = script
        self.counts = Counts()
        self.url = ""
        self.received: list[Received] = []
        self._record = record
        self._working: set[asyncio.TimerHandle] = set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path.startswith(CONTROL):
            return self._control(request)
        if request.method == "GET":
            return self._wsdl(request)
        traffic = request.headers.get("X-Test-Class", "unknown")
        # A status that comes before the body is read is decided by what the path says.
        early, _ = self._early(request, traffic)
        if early is not None:
            return early
        body = await request.read()
        if self._record:
            at = asyncio.get_running_loop().time()
            self.received.append(Received(request.method, request.raw_path, request.raw_headers, body, at))
        asked = read(body)
        for service in asked.services:
            self.counts.calls[service] += 1
        rule, seconds = self.script.decide(asked.services, asked.sources, traffic)
        await self._work(asked, traffic, seconds)
        return await self._said(request, asked, rule, seconds)

    def _early(self, request: web.BaseRequest, traffic: str) -> tuple[web.Response | None, float]:
        service = next((part for part in request.path.split("/") if part.endswith("Service")), "")
        for rule in self.script.rules:
            if rule.kind == "status" and rule.every == 1 and rule.matches((service,), (), traffic):
                response = web.Response(status=int(rule.value), text="scripted\n")
                response.force_close()
                return response, 0.0
        return None, 0.0

    async def _work(self, asked: Asked, traffic: str, seconds: float) -> None:
        """Take as long as scripted. What counts the end is the loop's timer: it does not care who has hung up."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self.counts.begin(asked.sources, traffic)

        def end() -> None:
            self._working.discard(timer)
            self.counts.end(asked.sources, traffic)
            if not done.done():
                done.set_result(None)

        timer = loop.call_later(seconds, end)
        self._working.add(timer)
        await done

    async def _said(self, request: web.BaseRequest, asked: Asked, rule: Rule, seconds: float) -> web.StreamResponse:
        kind = {"Content-Type": content_type(asked)}
        if asked.trouble:
            return web.Response(status=500, body=fault(asked, asked.trouble, client=True), headers=kind)
        match rule.kind:
            case "fault":
                return web.Response(status=500, body=fault(asked, "An error occurred while serving."), headers=kind)
            case "status":
                return web.Response(status=int(rule.value), text="scripted\n")
            case "reset" | "truncated" | "garbage" | "slow":
                return await self._spoiled(request, rule.kind, reply(asked), kind, seconds)
            case _:
                status = rule.value if rule.kind == "business" else ""
                return web.Response(body=reply(asked, status), headers=kind)

    async def _spoiled(
        self, request: web.BaseRequest, kind: str, body: bytes, headers: dict[str, str], seconds: float
    ) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if kind == "reset":
            transport.abort()
        elif kind == "garbage":
            transport.write(b"this is not HTTP\r\n\r\n")
            transport.close()
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {headers['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
            transport.write(head.encode())
            step = max(1, len(body) // _DRIPS)
            for start in range(0, len(body) // 2 if kind == "truncated" else len(body), step):
                transport.write(body[start : start + step])
                if kind == "slow":
                    await asyncio.sleep(seconds)
            if kind == "truncated":
                transport.close()
        return _AlreadySent()

    def _control(self, request: web.BaseRequest) -> web.Response:
        if request.path == f"{CONTROL}counts" and request.method == "GET":
            return web.Response(text=json.dumps(self.counts.shown()), content_type="application/json")
        if request.path == f"{CONTROL}reset" and request.method == "POST":
            self.counts.peak = self.counts.current.copy()
            self.counts.calls.clear()
            return web.Response(text="counting anew\n")
        return web.Response(status=404, text=f"GET {CONTROL}counts or POST {CONTROL}reset\n")

    def _wsdl(self, request: web.BaseRequest) -> web.Response:
        text = wsdl_for(request.path, self.url + request.path)
        if text is None or "wsdl" not in request.query_string.lower():
            return web.Response(status=404, text="No WSDL here.\n")
        return web.Response(text=text, content_type="text/xml")


class _AlreadySent(web.StreamResponse):
    """Tells aiohttp that an answer of our own is on its way."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing."""


@asynccontextmanager
async def standing_in(
    script: Script | None = None,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    record: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[StandIn]:
    """Run a stand-in for the duration of the block; `url` says where."""
    stand_in = StandIn(script or Script(), record=record)
    server = web.Server(stand_in.answer, access_log=None, auto_decompress=False)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, address, port, backlog=1024, ssl=tls)
    bound = listening.sockets[0].getsockname()[1]
    stand_in.url = f"{'https' if tls else 'http'}://{address}:{bound}"
    try:
        yield stand_in
    finally:
        listening.close()
        await server.shutdown(0.1)


async def simulate(address: str, port: int, script: Script, ready: Callable[[str], None]) -> None:
    """Run a stand-in until cancelled; `ready` is told where it listens."""
    async with standing_in(script, address=address, port=port) as stand_in:
        ready(stand_in.url)
        await asyncio.Event().wait()
