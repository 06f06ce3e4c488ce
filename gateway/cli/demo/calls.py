"""The demo's first parts: one call after the other by day, many at once in the evening, and what Prometheus reads."""

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from time import perf_counter

from aiohttp import ClientSession
from lxml import etree
from rich.table import Table

from gateway.app import Gateway
from gateway.cli.demo.stage import Stage
from gateway.simulator import StandIn

CONSULT = "/SOA4520/RetrieveTIGroupsService/v2/retrieveTI"
EMPLOYERS = "/SOA4520/Dolsis2011Service/consult"
_SHOWN = re.compile(r'bcss_gateway_(slots_(in_use_peak|limit)\{pool="(base|onss)"|window_open|cap_viol|bulk_in_office)')
_CALLS = ("bcss_gateway_requests_total{", "bcss_gateway_refusals_total{")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a caller of the demo saw."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: bytes


class Calls:
    """What callers do, and see."""

    def __init__(self, stage: Stage, client: ClientSession, gateway: Gateway, stand_in: StandIn) -> None:
        self._stage = stage
        self._client = client
        self._base = gateway.addresses.traffic[0]
        self._telemetry = gateway.addresses.telemetry
        self._stand_in = stand_in

    async def office_hours(self, now: datetime) -> float:
        """Show real-time passing and bulk being refused; return the median of real-time, seconds."""
        self._stage.title(f"1. {now:%A %H:%M}, office hours: real-time passes, bulk is refused")
        real_time = [await self._call(CONSULT, "realtime") for _ in range(15)]
        alone = median(one.seconds for one in real_time)
        self._stage.line("real-time", f"15 calls, all HTTP 200, median {alone * 1000:.0f} ms")
        self._stage.check(all(one.status == 200 for one in real_time), "real-time did not pass in office hours")
        refused = await self._call(f"/bulk{CONSULT}", "bulk")
        fault = etree.fromstring(refused.body)
        said = {etree.QName(one).localname: one.text or "" for one in fault.iter() if isinstance(one.tag, str)}
        self._stage.line("bulk", f"HTTP {refused.status}, a SOAP fault after {refused.seconds:.1f} s:")
        self._stage.line("", said.get("faultstring", "").replace(" / ", "\n"))
        self._stage.line("", f"reason {said.get('reason')}, opensAt {said.get('opensAt')}")
        self._stage.line(
            "", f"Retry-After: {refused.headers.get('Retry-After')} (seconds; some minutes of jitter included)"
        )
        self._stage.check(refused.status == 500 and said.get("reason") == "office_hours", "bulk was not refused")
        self._stage.check("Retry-After" in refused.headers, "the refusal does not say when to come back")
        return alone

    async def evening(self, now: datetime, alone: float) -> None:
        """Show bulk passing, never more than 4 and 2 at once, with real-time beside it."""
        self._stage.title(f"2. {now:%A %H:%M}, the window is open: 40 + 20 bulk calls at once, real-time beside them")
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
        self._stage.show(table)
        self._stage.line("bulk", f"{passed} of {len(bulk)} passed in {took:.1f} s; one answer says: ")
        self._stage.line("", bulk[-1].headers.get("X-Gateway-Decision", ""))
        with_bulk = median(one.seconds for one in beside)
        self._stage.line("real-time", f"median {with_bulk * 1000:.0f} ms beside bulk, {alone * 1000:.0f} ms alone")
        self._stage.check(passed == len(bulk), "not every bulk call passed")
        self._stage.check(
            counts.highest("national-register") == 4, "the National Register did not see exactly 4 at once"
        )
        self._stage.check(counts.highest("onss") == 2, "the ONSS did not see exactly 2 at once")
        self._stage.check(all(one.status == 200 for one in beside), "real-time did not pass beside bulk")

    async def metrics(self) -> None:
        """Show what Prometheus would read."""
        self._stage.title(f"3. The metrics, {self._telemetry}/metrics (some of them)")
        async with self._client.get(f"{self._telemetry}/metrics") as answer:
            text = await answer.text()
        shown = [line for line in text.splitlines() if _SHOWN.match(line)]
        shown += [line for line in text.splitlines() if line.startswith(_CALLS) and not line.endswith(" 0.0")]
        for line in shown:
            self._stage.plain(line)
        self._stage.check("bcss_gateway_cap_violations_total 0.0" in shown, "a cap was violated")

    async def _call(self, path: str, traffic: str) -> Answered:
        started = perf_counter()
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""', "X-Test-Class": traffic}
        async with self._client.post(self._base + path, data=message(path), headers=headers) as answer:
            body = await answer.read()
            return Answered(answer.status, perf_counter() - started, dict(answer.headers), body)


def message(path: str) -> str:
    """Return a message of the operation that a path leads to, about a person who is nobody."""
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
