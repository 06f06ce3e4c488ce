"""`bcss-gateway demo`: the gateway at work, for somebody who sees it for the first time.

It runs the real gateway on the given configuration, on free ports, with the stand-in behind it; only the clock is
shifted, so that office hours and the evening both happen, and call timeout and hold are 1 s, so that nobody waits
out T. What it shows of simultaneous calls is what the stand-in counted. Status 1 when something did not happen as it
should.
"""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector
from lxml import etree
from rich.console import Console
from rich.table import Table

from gateway.app import Gateway, SystemClock, running
from gateway.config import Configuration
from gateway.log import LineWriter
from gateway.simulator import Latency, Rule, Script, StandIn, standing_in

CONSULT = "/SOA4520/RetrieveTIGroupsService/v2/retrieveTI"
EMPLOYERS = "/SOA4520/Dolsis2011Service/consult"
LATENCY_S = 0.1
_SHOWN = re.compile(r'bcss_gateway_(slots_(in_use_peak|limit)\{pool="(base|onss)"|window_open|cap_viol|bulk_in_office)')
_CALLS = ("bcss_gateway_requests_total{", "bcss_gateway_refusals_total{")


class ShiftedClock:
    """The machine's clocks, moved forward together, as if the time between had passed. The demo's alone."""

    def __init__(self, start: datetime) -> None:
        self._real = SystemClock()
        self._wall_shift = start - self._real.wall()
        self._passed = timedelta()

    def boot(self) -> float:
        """Return the boot clock, with the time that was skipped."""
        return self._real.boot() + self._passed.total_seconds()

    def wall(self) -> datetime:
        """Return the shifted wall clock."""
        return self._real.wall() + self._wall_shift + self._passed

    def skip_to(self, instant: datetime) -> None:
        """Let the time until `instant` pass."""
        self._passed += instant - self.wall()


@dataclass(frozen=True, slots=True)
class Answered:
    """What a caller of the demo saw."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: bytes


def demo(configuration: Configuration) -> int:
    """Run the demo; return the exit status."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log.jsonl").open("w") as out:
        lines = LineWriter(out)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_demo(configuration, Path(folder), lines))
        finally:
            lines.close()


async def _demo(configuration: Configuration, folder: Path, lines: LineWriter) -> int:
    console = Console(highlight=False, width=110)
    zone = configuration.calendar.zone
    today = SystemClock().wall().astimezone(zone).date()
    working_day = next(
        day
        for day in (today + timedelta(days=offset) for offset in range(1, 30))
        if not configuration.calendar.is_open(datetime.combine(day, time(10, 30), zone))
    )
    clock = ShiftedClock(datetime.combine(working_day, time(10, 30), zone))
    script = Script([Rule(latency=Latency(LATENCY_S, LATENCY_S))])
    async with standing_in(script) as stand_in:
        moved = _moved(configuration, stand_in.url, folder)
        async with (
            running(moved, clock=clock, lines=lines, dice=Random(1)) as gateway,  # noqa: S311  # jitter, no secret
            ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=20)) as client,
        ):
            show = _Demo(console, client, gateway, stand_in)
            console.print(
                f"[bold]The gateway[/] listens on {gateway.addresses.traffic[0]}; behind it, a stand-in for the BCSS "
                f"on {stand_in.url}.\nEach call takes the stand-in {LATENCY_S * 1000:.0f} ms. Its log is not shown."
            )
            alone = await show.office_hours(clock.wall().astimezone(zone))
            clock.skip_to(datetime.combine(working_day, time(17, 5), zone))
            await show.evening(clock.wall().astimezone(zone), alone)
            await show.metrics()
    return show.ended()


def _moved(configuration: Configuration, url: str, folder: Path) -> Configuration:
    settings = configuration.settings
    short = {"url": url, "call_timeout": 1.0, "hold": 1.0}
    return replace(
        configuration,
        settings=settings.model_copy(
            update={
                "data_dir": folder / "state",
                "listeners": tuple(one.model_copy(update={"port": 0}) for one in settings.listeners),
                "administration": settings.administration.model_copy(update={"port": 0}),
                "telemetry": settings.telemetry.model_copy(update={"address": "127.0.0.1", "port": 0}),
                "upstreams": {name: one.model_copy(update=short) for name, one in settings.upstreams.items()},
            }
        ),
    )


class _Demo:
    def __init__(self, console: Console, client: ClientSession, gateway: Gateway, stand_in: StandIn) -> None:
        self._console = console
        self._client = client
        self._base = gateway.addresses.traffic[0]
        self._telemetry = gateway.addresses.telemetry
        self._stand_in = stand_in
        self._wrong: list[str] = []

    async def office_hours(self, now: datetime) -> float:
        """Show real-time passing and bulk being refused; return the median of real-time, seconds."""
        self._title(f"1. {now:%A %H:%M}, office hours: real-time passes, bulk is refused")
        real_time = [await self._call(CONSULT, "realtime") for _ in range(15)]
        alone = median(one.seconds for one in real_time)
        self._line("real-time", f"15 calls, all HTTP 200, median {alone * 1000:.0f} ms")
        self._check(all(one.status == 200 for one in real_time), "real-time did not pass in office hours")
        refused = await self._call(f"/bulk{CONSULT}", "bulk")
        fault = etree.fromstring(refused.body)
        said = {etree.QName(one).localname: one.text or "" for one in fault.iter() if isinstance(one.tag, str)}
        self._line("bulk", f"HTTP {refused.status}, a SOAP fault after {refused.seconds:.1f} s:")
        self._line("", said.get("faultstring", "").replace(" / ", "\n"))
        self._line("", f"reason {said.get('reason')}, opensAt {said.get('opensAt')}")
        self._line("", f"Retry-After: {refused.headers.get('Retry-After')} (seconds; some minutes of jitter included)")
        self._check(refused.status == 500 and said.get("reason") == "office_hours", "bulk was not refused")
        self._check("Retry-After" in refused.headers, "the refusal does not say when to come back")
        return alone

    async def evening(self, now: datetime, alone: float) -> None:
        """Show bulk passing, never more than 4 and 2 at once, with real-time beside it."""
        self._title(f"2. {now:%A %H:%M}, the window is open: 40 + 20 bulk calls at once, real-time beside them")
        started = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            base = [tasks.create_task(self._call(f"/bulk{CONSULT}", "bulk")) for _ in range(40)]
            onss = [tasks.create_task(self._call(f"/bulk{EMPLOYERS}", "bulk")) for _ in range(20)]
            beside = [await self._call(CONSULT, "realtime") for _ in range(10)]
        took = perf_counter() - started
        bulk = [task.result() for task in (*base, *onss)]
        passed = sum(one.status == 200 for one in bulk)
        counts = self._stand_in.counts
        table = Table("source", "bulk calls", "cap", "most at once, as the stand-in saw it")
        table.add_row("National Register (and BCSS)", str(len(base)), "4", str(counts.highest("national-register")))
        table.add_row("ONSS", str(len(onss)), "2", str(counts.highest("onss")))
        self._console.print(table)
        self._line("bulk", f"{passed} of {len(bulk)} passed in {took:.1f} s; one answer says: ")
        self._line("", bulk[-1].headers.get("X-Gateway-Decision", ""))
        with_bulk = median(one.seconds for one in beside)
        self._line("real-time", f"median {with_bulk * 1000:.0f} ms beside bulk, {alone * 1000:.0f} ms alone")
        self._check(passed == len(bulk), "not every bulk call passed")
        self._check(counts.highest("national-register") == 4, "the National Register did not see exactly 4 at once")
        self._check(counts.highest("onss") == 2, "the ONSS did not see exactly 2 at once")
        self._check(all(one.status == 200 for one in beside), "real-time did not pass beside bulk")

    async def metrics(self) -> None:
        """Show what Prometheus would read."""
        self._title(f"3. The metrics, {self._telemetry}/metrics (some of them)")
        async with self._client.get(f"{self._telemetry}/metrics") as answer:
            text = await answer.text()
        shown = [line for line in text.splitlines() if _SHOWN.match(line)]
        shown += [line for line in text.splitlines() if line.startswith(_CALLS) and not line.endswith(" 0.0")]
        for line in shown:
            self._console.print(f"   {line}", markup=False, soft_wrap=True)
        self._check("bcss_gateway_cap_violations_total 0.0" in shown, "a cap was violated")

    def ended(self) -> int:
        """Say how it went; return the exit status."""
        for wrong in self._wrong:
            self._console.print(f"[bold red]Not as it should be:[/] {wrong}")
        if not self._wrong:
            self._console.print("\n[bold green]All as it should be.[/] README.md says how to go on.")
        return 1 if self._wrong else 0

    async def _call(self, path: str, traffic: str) -> Answered:
        started = perf_counter()
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""', "X-Test-Class": traffic}
        async with self._client.post(self._base + path, data=_message(path), headers=headers) as answer:
            body = await answer.read()
            return Answered(answer.status, perf_counter() - started, dict(answer.headers), body)

    def _title(self, text: str) -> None:
        self._console.print(f"\n[bold cyan]{text}[/]")

    def _line(self, who: str, text: str) -> None:
        lines: Sequence[str] = text.splitlines() or [""]
        for number, line in enumerate(lines):
            self._console.print(f"   {who if number == 0 else '':<10} {line}", markup=False, soft_wrap=True)

    def _check(self, held: bool, wrong: str) -> None:
        if not held:
            self._wrong.append(wrong)


def _message(path: str) -> str:
    service, operation = (
        ("Dolsis2011Service/v1", "findEmployersByWorkerRequest")
        if "Dolsis" in path
        else ("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest")
    )
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
        f'<s:Body><q:{operation} xmlns:q="http://kszbcss.fgov.be/intf/{service}">'
        f"<legalContext>EXAMPLE</legalContext><ssin>00000000097</ssin></q:{operation}></s:Body></s:Envelope>"
    )
