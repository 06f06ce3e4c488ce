"""What tests with real processes share: the source that counts, gateways as processes, their API, and the books.

What happened at a source is what the stand-in saw, never what a gateway believes. Calls of stored items and of callers
carry no test class, so that the stand-in counts them together ("unknown"); real-time says that it is.
"""

import asyncio
import json
import signal
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from re import compile as pattern
from typing import Any
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

import aiohttp

from gateway.occupancy import boot_id
from gateway.simulator import Latency, Rule, Script, StandIn, standing_in
from tests.conftest import closed, post, whole_answer
from tests.e2e.replica import HandClock

ROOT = Path(__file__).resolve().parents[2]
BRUSSELS = ZoneInfo("Europe/Brussels")
EVENING = datetime(2026, 11, 24, 20, 0, tzinfo=BRUSSELS)
POOLS = {"national-register": 4, "bcss": 4, "onss": 2, "onem": 2, "spp-is": 2, "cin": 2}
"""Caps of the sources that tests ask; the first two share a pool, so a test asks one of them."""

CONSULT = ("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest")  #: a read of the National Register
EMPLOYERS = ("Dolsis2011Service/v1", "findEmployersByWorkerRequest")  #: a read of the ONSS
DECISION = ("PcsaAlertReaction/v1", "motivateDecisionRequest")  #: a write, at the SPP IS
HEALTH = ("OCMWCPASHealthInsurance", "20070509")  #: a read in the classic style, at the CIN
Service = tuple[str, str]
Json = dict[str, Any]
_KEY = pattern(rb"legalContext(?:>|&gt;)([^<&]*)")
_CLASSIC = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
_SSDN = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"


def message(service: Service, key: str) -> str:
    """Return an envelope that says which item it is of."""
    name, operation = service
    if service == HEALTH:
        document = (
            f'<SSDNRequest xmlns="{_SSDN}"><RequestContext/><ServiceRequest><ServiceId>{name}</ServiceId>'
            f"<Version>{operation}</Version><legalContext>{key}</legalContext></ServiceRequest></SSDNRequest>"
        )
        return (
            '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<xmlString xmlns="{_CLASSIC}">{escape(document)}</xmlString></s:Body></s:Envelope>'
        )
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<q:{operation} xmlns:q="http://kszbcss.fgov.be/intf/{name}"><legalContext>{key}</legalContext>'
        f"<ssin>00000000097</ssin></q:{operation}></s:Body></s:Envelope>"
    )


def entries(items: Mapping[str, Service]) -> bytes:
    """Return items as NDJSON, by their keys."""
    lines = (json.dumps({"key": key, "body": message(service, key)}) for key, service in items.items())
    return "".join(f"{line}\n" for line in lines).encode()


def keys(prefix: str, number: int, service: Service = CONSULT) -> dict[str, Service]:
    """Return so many items of a service."""
    return {f"{prefix}{one}": service for one in range(number)}


# The source.


class Source:
    """The stand-in, as a test speaks of it."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.url = stand_in.url
        self._times: dict[str, list[float]] = defaultdict(list)
        self._read = 0

    def does(self, *rules: Rule, latency: float = 0.02) -> None:
        """Have it follow these rules from now on, and take so long where they say nothing."""
        self.stand_in.script = Script(rules, Latency(latency, latency))

    def times(self) -> Mapping[str, list[float]]:
        """Return when each item was asked for, by its key."""
        for one in self.stand_in.received[self._read :]:
            if (key := _KEY.search(one.body)) is not None:
                self._times[key[1].decode()].append(one.at)
        self._read = len(self.stand_in.received)
        return self._times

    def calls(self) -> Counter[str]:
        """Return how often each item was asked for."""
        return Counter({key: len(times) for key, times in self.times().items()})

    @property
    def number(self) -> int:
        """Return how many calls there were."""
        return len(self.stand_in.received)

    def since(self, moment: float) -> list[float]:
        """Return the times of calls after a moment of the event loop's clock."""
        return [one.at for one in self.stand_in.received if one.at > moment]

    def check_caps(self) -> None:
        """Hold the source's own count against the caps."""
        for source, cap in POOLS.items():
            assert self.stand_in.counts.highest(source, "unknown") <= cap, (source, self.stand_in.counts.peak)


@asynccontextmanager
async def source_at_work(latency: float = 0.02) -> AsyncIterator[Source]:
    """Run a source for the duration of the block; see in the end that no cap was exceeded."""
    async with standing_in(record=True) as stand_in:
        source = Source(stand_in)
        source.does(latency=latency)
        yield source
        source.check_caps()


# Gateways.


CONFIG = """\
data_dir: data
listeners: [{{address: 127.0.0.1, port: 0}}]
telemetry: {{address: 127.0.0.1, port: 0}}
administration: {{port: 0}}
upstreams: {{a: {{url: '{url}', call_timeout: 1s, hold: 1s}}}}
routes: [{{prefix: /, upstream: a}}]
bulk: {{refusal_delay: 0s, queue_time: 30s, margin_min: 0s, margin_max: 1s}}
runs: {{cool_down: {cool_down}s, ramp_step: 200ms, retry_first: 200ms, retry_longest: 1s, burst_time: 10s}}
watch_files: 200ms
drain_time: 5s
"""
"""T is 2 s. A key that a test gives itself replaces the line here."""


@dataclass
class Replica:
    """One gateway's folder, and its process while it has one."""

    folder: Path
    clock: HandClock
    process: asyncio.subprocess.Process | None = None
    traffic: int = 0
    telemetry: int = 0
    _read: int = field(default=0, repr=False)

    @property
    def log(self) -> Path:
        """Return where its lines go, those of all its processes."""
        return self.folder / "log.jsonl"

    def lines(self) -> list[Json]:
        """Return what it has logged. What is no JSON (a traceback) is a line under `text`."""
        text = self.log.read_text() if self.log.exists() else ""
        return [_line(line) for line in text.splitlines() if line.endswith("}") or not line.startswith("{")]

    def events(self, event: str) -> list[Json]:
        """Return the lines of one event."""
        return [line for line in self.lines() if line.get("event") == event]

    def last_lines(self, number: int) -> list[str]:
        """Return the last of what it has logged besides calls and items."""
        return [str(line)[:300] for line in self.lines() if line.get("event") not in ("call", "item")][-number:]

    async def start(self, *, store: bool = True) -> "Replica":
        """Start a process, and wait until it listens and has its store open."""
        before = len(self.lines())
        self.process = await self.spawned(self.log)

        def is_there() -> bool:
            fresh = self.lines()[before:]
            events = {line.get("event") for line in fresh}
            for line in fresh:
                if line.get("event") == "ready":
                    self.traffic = int(line["traffic"][0].rpartition(":")[2])
                    self.telemetry = int(line["telemetry"].rpartition(":")[2])
            return {"ready", *(("store open", "administration") if store else ())} <= events

        await until(is_there, 20, self.log)
        return self

    async def spawned(self, log: Path) -> asyncio.subprocess.Process:
        """Start a process, and wait for nothing; what it says goes to a file."""
        with log.open("ab") as out:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.e2e.replica", str(self.folder / "config.yaml")),
                str(self.folder / "clock"),
                *self.arguments(),
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def arguments(self) -> tuple[str, ...]:
        """Return what the launcher is given besides configuration and clock."""
        return ()

    async def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> int:
        """End it in order; return its status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return await asyncio.wait_for(self.process.wait(), 20)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise

    async def ask(self, request: bytes, *, timeout: float = 10.0) -> bytes:
        """Send octets to its traffic listener; return the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.traffic)
        try:
            writer.write(request)
            async with asyncio.timeout(timeout):
                return await whole_answer(reader)
        finally:
            await closed(writer)

    async def bulk(self, key: str, service: Service = CONSULT) -> bytes:
        """Make a synchronous bulk call."""
        return await self.ask(post("/bulk/x", message(service, key).encode(), "Connection: close"), timeout=40)

    async def real_time(self, key: str, service: Service = CONSULT) -> bytes:
        """Make a real-time call."""
        fields = ("Connection: close", "X-Test-Class: realtime")
        return await self.ask(post("/x", message(service, key).encode(), *fields))


def _line(text: str) -> Json:
    try:
        read = json.loads(text)
    except ValueError:
        return {"text": text}
    return read if isinstance(read, dict) else {"text": text}


def configured(
    folder: Path, url: str, *, at: datetime = EVENING, cool_down: float = 2.0, extra: str = "", clean: bool = True
) -> Replica:
    """Make a gateway's folder; `clean`: as an orderly stop before it has left it."""
    folder.mkdir(exist_ok=True)
    own = {line.partition(":")[0] for line in extra.splitlines() if not line.startswith((" ", "-"))}
    base = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in own]
    text = "\n".join(base).format(url=url, cool_down=cool_down)
    (folder / "config.yaml").write_text(f"{text}\n{extra}\n")
    if clean:
        (folder / "data").mkdir()
        left = {"boot": boot_id(), "hold_s": 2.0, "clean": True, "busy": []}
        (folder / "data" / "busy_until.json").write_text(json.dumps(left))
    clock = HandClock(folder / "clock")
    clock.set(at)
    return Replica(folder, clock)


@asynccontextmanager
async def at_work(replica: Replica) -> AsyncIterator["Api"]:
    """Run a gateway for the duration of the block, restarts inside it included; yield its API."""
    await replica.start()
    try:
        async with Api(replica.folder / "data" / "admin.sock") as api:
            yield api
    except BaseException as error:
        error.add_note("\n".join(["its gateway's last lines, calls and items left out:", *replica.last_lines(20)]))
        raise
    finally:
        await replica.stop()
    assert not (defects := [line for line in replica.lines() if _is_defect(line)]), defects


def _is_defect(line: Json) -> bool:
    if "text" in line:  # what Python says when a process is killed that has others
        return "resource_tracker" not in line["text"] and "warnings.warn(" not in line["text"]
    return line.get("event") in ("defect", "cap violated")


class Api:
    """A gateway's API, by its socket; it outlives restarts."""

    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            "http://localhost", connector=aiohttp.UnixConnector(str(socket), force_close=True)
        )

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, body: object = None, **more: Any) -> tuple[int, Json]:
        """Ask; return status and what was said."""
        if body is not None:
            more["json"] = body
        async with self._session.request(method, f"/api/v1{path}", **more) as answer:
            octets = await answer.read()
            return answer.status, json.loads(octets) if octets else {}

    async def said(self, method: str, path: str, body: object = None, **more: Any) -> Json:
        """Ask for what must be granted."""
        status, said = await self.ask(method, path, body, **more)
        assert 200 <= status < 300, (status, said)
        return said

    async def submit(self, items: Mapping[str, Service], *, key: str = "", **query: str) -> str:
        """Submit a run of these items; return its id."""
        headers = {"Content-Type": "application/x-ndjson", **({"Idempotency-Key": key} if key else {})}
        params = {"path": "/x", **query}
        said = await self.said("POST", "/runs", params=params, data=entries(items), headers=headers)
        assert said["total"] == len(items), said
        return str(said["id"])

    async def run(self, run_id: str) -> Json:
        """Return a run as it stands."""
        return await self.said("GET", f"/runs/{run_id}")

    async def pause(self, run_id: str) -> Json:
        """Pause a run."""
        return await self.said("POST", f"/runs/{run_id}/pause", {"reason": "a test"})

    async def resume(self, run_id: str) -> Json:
        """Resume a run."""
        return await self.said("POST", f"/runs/{run_id}/resume", {"reason": "a test"})

    async def results(self, run_id: str) -> list[Json]:
        """Return what was settled."""
        params = {"format": "ndjson"}
        async with self._session.get(f"/api/v1/runs/{run_id}/results", params=params) as answer:
            assert answer.status == 200
            return [json.loads(line) for line in (await answer.read()).splitlines()]

    async def page(self, run_id: str, name: str) -> list[Json]:
        """Return all of `rejects` or `doubts`."""
        found: list[Json] = []
        after = -1
        while True:
            said = await self.said("GET", f"/runs/{run_id}/{name}", params={"after": after, "limit": 1000})
            found += said[name]
            if said["next"] is None:
                return found
            after = said["next"]

    async def reaches(self, run_id: str, *states: str, within: float = 30.0, settled: int = 0) -> Json:
        """Wait until a run stands in one of these states, or has so many settled items; return it."""
        seen: Json | Exception | None = None
        try:
            async with asyncio.timeout(within):
                while True:
                    try:
                        seen = shown = await self.run(run_id)
                    except (aiohttp.ClientError, OSError) as error:
                        seen = error
                    else:
                        if shown["state"] in states or (settled and settled_of(shown) >= settled):
                            return shown
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"after {within} s the run stands at {seen!r}") from None


def settled_of(shown: Json) -> int:
    """Return how many items of a run are settled."""
    counts = shown["counts"]
    return int(counts["done"] + counts["rejected"] + counts["failed"] + counts["inDoubt"])


async def until(is_so: Callable[[], object], within: float, log: Path | None = None) -> None:
    """Wait until it is so."""
    try:
        async with asyncio.timeout(within):
            while not is_so():
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise AssertionError(log.read_text()[-4000:] if log is not None else "it never was so") from None


# The books.


async def check_books(
    api: Api,
    source: Source,
    run_id: str,
    items: Iterable[str],
    *,
    most_calls: int | Mapping[str, int] = 1,
    decided: Collection[str] = (),
) -> Json:
    """Hold a run's books against themselves and against what its source saw; return it.

    Args:
        items: the keys of all that was acknowledged.
        most_calls: how often an item may have been asked for, or that by key.
        decided: keys of doubts that a person decided: what is done by their word need not have been asked for.
    """
    for _ in range(100):  # books that are read page by page are those of one moment only while nothing is settled
        shown, rows, doubts = await api.run(run_id), await api.results(run_id), await api.page(run_id, "doubts")
        if (await api.run(run_id))["counts"] == shown["counts"]:
            break
    counts = shown["counts"]
    by_state = Counter(row["state"] for row in rows)
    assert shown["total"] == len(set(items)) == settled_of(shown) + counts["waiting"]
    assert by_state["done"] == counts["done"], (by_state, counts)
    assert by_state["rejected"] == counts["rejected"], (by_state, counts)
    assert by_state["failed"] == counts["failed"], (by_state, counts)
    assert len(doubts) == counts["inDoubt"], (doubts, counts)
    settled = Counter(row["key"] for row in rows if row["state"] != "in_doubt")
    settled.update(row["key"] for row in doubts)
    assert set(settled) <= set(items)
    assert max(settled.values(), default=1) == 1, settled.most_common(3)
    if not counts["waiting"]:
        assert set(settled) == set(items)
    calls = source.calls()
    for key in items:
        most = most_calls if isinstance(most_calls, int) else most_calls[key]
        assert calls[key] <= most, (key, calls[key])
    for row in rows:
        if row["state"] == "done" and row["key"] not in decided:
            assert calls[row["key"]], f"{row['key']} is done, and nobody asked for it"
    return shown


def check_sqlite(folder: Path) -> None:
    """Look into the file that a stopped gateway left: counters equal rows, and nothing is left in hand or orphaned."""
    with closing(sqlite3.connect(folder / "data" / "store.sqlite")) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert db.execute("select count(*) from batch").fetchone() == (0,)
        assert db.execute("select count(*) from returned where batch_id is not null").fetchone() == (0,)
        assert db.execute("select count(*) from returned join result using (id)").fetchone() == (0,)
        for run_id, total, *counted in db.execute(
            "select run_id, total, done, rejected, failed, in_doubt from run where wrapped_key is not null"
        ).fetchall():
            rows = dict(db.execute("select state, count(*) from result where run_id = ? group by state", (run_id,)))
            assert [rows.get(state, 0) for state in range(4)] == counted
            assert db.execute("select sum(total) from lane where run_id = ?", (run_id,)).fetchone() == (total,)
            unclaimed, returned = (
                db.execute(sql, (run_id,)).fetchone()[0]
                for sql in (
                    "select coalesce(sum(total - next), 0) from lane where run_id = ?",
                    "select count(*) from returned where run_id = ?",
                )
            )
            assert sum(counted) + unclaimed + returned == total, "an item is nowhere"
