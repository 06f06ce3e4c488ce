"""Two gateways on one PostgreSQL, for tests and the drill: the tap between them and the database, work that goes on
while things go wrong, and the books of the database.

The design's times are for people (L = 76 s); here L is 3.7 s: T = 2 s, R and margin as in `SHORT`. Sources take 1.2 s
for one call in sixty, longer than the gateway waits and shorter than T.
"""

import asyncio
import base64
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGSTOP
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg

from gateway.simulator import Latency, Rule
from tests.e2e.world import (
    CONSULT,
    DECISION,
    EMPLOYERS,
    Api,
    Json,
    Replica,
    Service,
    Source,
    at_work,
    check_books,
    configured,
    entries,
    keys,
    settled_of,
    source_at_work,
)
from tests.gateway.store.postgres_server import EmbeddedServer, fresh_database, step_clock

SHORT = ("0.5", "0.2")
"""R and margin, seconds."""
LEASE_S = 3.7
"""L."""
SLOW = Rule(every=60, traffic="unknown", latency=Latency(1.2, 1.2))
ATTEMPTS = 12
"""Calls for one item at the most. More than the usual 5: what a process has in hand when it is killed has used up one,
and here they are killed every few seconds, by turns."""
LIVE = ("HealthCareInsuranceService/v1", "consultRequest")
"""What real-time asks: something that no run asks."""
AWAY = (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, TimeoutError, EOFError)
"""What a caller sees of a gateway that is being killed or frozen."""


class Shared(Replica):
    """One of several gateways."""

    def arguments(self) -> tuple[str, ...]:
        """Return short times."""
        return SHORT

    def configure(self, before: str, after: str) -> None:
        """Change the configuration, as an editor does: a new file in the place of the old one."""
        file = self.folder / "config.yaml"
        text = file.read_text()
        assert before in text
        fresh = file.with_suffix(".fresh")
        fresh.write_text(text.replace(before, after))
        fresh.replace(file)


# The way to the database.


class Tap:
    """Stands between gateways and their database. Shut, it lets nothing through and breaks nothing: what was sent
    meanwhile arrives when it is opened again, as after a partition of the network."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    def shut(self) -> None:
        """Let nothing through."""
        self._flows.clear()

    def open(self) -> None:
        """Let through what waits, and all that comes."""
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        self._writers.add(writer)
        try:
            with suppress(OSError):
                inner_reader, inner = await asyncio.open_connection("127.0.0.1", self._to)
                self._writers.add(inner)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._relay(reader, inner))
                    tasks.create_task(self._relay(inner_reader, writer))
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        await self._flows.wait()  # the end of a connection does not get through either
        writer.transport.abort()
        self._writers.discard(writer)

    def end(self) -> None:
        """Cut every connection."""
        self.open()
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[tuple[Tap, str]]:
    """Run a tap before a database; yield it, and the address of the database behind it."""
    parts = urlsplit(url)
    assert parts.port is not None
    tap = Tap(parts.port)
    server = await asyncio.start_server(tap.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield tap, urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{port}"))
    finally:
        server.close()
        tap.end()
        await asyncio.sleep(0.05)


# Everything together.


@dataclass
class World:
    """A source, a database, a tap before it, and gateways."""

    folder: Path
    source: Source
    server: EmbeddedServer
    url: str  #: of the database, past the tap
    tap: Tap
    tapped_url: str
    stack: AsyncExitStack
    gateways: list[Shared] = field(default_factory=list)
    apis: dict[str, Api] = field(default_factory=dict)
    unwell: Counter[str] = field(default_factory=Counter)  #: how much is wrong with a gateway, by name
    ailments: Counter[str] = field(default_factory=Counter)  #: how much ever was

    async def add(self, *names: str, bulk: str = "") -> Sequence[Shared]:
        """Start more gateways; `bulk`: entries of that section besides the usual ones."""
        started = await asyncio.gather(*(self._start(name, bulk) for name in names))
        self.gateways += started
        return started

    async def _start(self, name: str, bulk: str) -> Shared:
        folder = self.folder / name
        folder.mkdir()
        (folder / "url").write_text(self.tapped_url)
        (folder / "key").write_text(base64.b64encode(b"k" * 32).decode())
        extra = (
            "store: {url: {file: url}, key: {file: key}, timeout: 1s}\n"
            f"bulk: {{refusal_delay: 0s, queue_time: 30s, margin_min: 0s, margin_max: 1s{bulk}}}"
        )
        made = configured(folder, self.source.url, cool_down=1.0, extra=extra)
        gateway = Shared(made.folder, made.clock)
        self.apis[name] = await self.stack.enter_async_context(at_work(gateway))
        return gateway

    @property
    def bulk_calls(self) -> int:
        """Return how many bulk calls the source has seen."""
        calls = self.source.stand_in.counts.calls
        return calls.total() - calls[LIVE[0].partition("/")[0]]

    def bulk_since(self, moment: float) -> list[float]:
        """Return when bulk calls came, since a moment of the event loop's clock."""
        name = LIVE[0].encode()
        return [one.at for one in self.source.stand_in.received if one.at > moment and name not in one.body]

    def well(self) -> list[Shared]:
        """Return the gateways that may be expected to answer."""
        return [one for one in self.gateways if not self.unwell[one.folder.name]]

    def api(self, gateway: Shared) -> Api:
        """Return a gateway's API."""
        return self.apis[gateway.folder.name]

    @asynccontextmanager
    async def ailing(self, gateway: Shared) -> AsyncIterator[None]:
        """Have nobody expect answers of a gateway during the block."""
        name = gateway.folder.name
        self.unwell[name] += 1
        self.ailments[name] += 1
        try:
            yield
        finally:
            self.unwell[name] -= 1

    # Faults.

    async def kill(self, gateway: Shared, *, away_s: float) -> None:
        """Kill -9 a gateway, and start it again after some time."""
        async with self.ailing(gateway):
            await gateway.kill()
            await asyncio.sleep(away_s)
            await gateway.start()

    async def freeze(
        self, gateway: Shared, *, seconds: float, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Stop a gateway's process in whatever it does, and let it go on, not before `meanwhile` is over."""
        async with self.ailing(gateway):
            with suppress(ProcessLookupError):  # somebody may have killed it, too
                gateway.send(SIGSTOP)
                await asyncio.sleep(seconds)
                if meanwhile is not None:
                    await meanwhile()
                gateway.send(SIGCONT)
            await asyncio.sleep(0.2)

    async def kill_database(self, *, away_s: float) -> None:
        """Kill -9 the database server, and start it again after some time."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(self.server.start)

    async def swallow(self, *, seconds: float) -> None:
        """Have nothing get through to the database or back, without an error."""
        self.tap.shut()
        await asyncio.sleep(seconds)
        self.tap.open()

    async def step_clock(self, **much: float) -> None:
        """Set the database's clock so far ahead of the true one."""
        await step_clock(self.url, timedelta(**much))

    async def rows(self, sql: str, *values: Any) -> Sequence[asyncpg.Record]:
        """Ask the database."""
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            found: Sequence[asyncpg.Record] = await connection.fetch(sql, *values)
            return found
        finally:
            await connection.close()


@asynccontextmanager
async def world(
    folder: Path, server: EmbeddedServer, *names: str, url: str = "", latency: float = 0.02
) -> AsyncIterator[World]:
    """Run gateways with these names; in the end look at the caps and at the database's books.

    Args:
        url: of a database that such a world has left: its slots are free at once, where those of a new one count as
            taken for L. Left out: one of its own.
    """
    async with AsyncExitStack() as outer:
        url = url or await outer.enter_async_context(fresh_database(server.url))
        tap, tapped_url = await outer.enter_async_context(tapped(url))
        async with source_at_work(latency) as source, AsyncExitStack() as stack:
            source.does(SLOW, latency=latency)
            made = World(folder, source, server, url, tap, tapped_url, stack)
            await made.add(*names)
            yield made
        await check_postgres(url)


# Work that goes on.


class Load:
    """Runs one after another, synchronous bulk and real-time beside them, at all gateways that are well.

    A submission goes on until it is acknowledged, with the same idempotency key: that is what a careful client does.
    """

    SIZE: Mapping[Service, int] = {CONSULT: 34, EMPLOYERS: 8, DECISION: 8}
    """So few that no process has to be started to encode them."""

    def __init__(self, where: World, *, at_once: int = 4, seed: int = 1, size: Mapping[Service, int] = SIZE) -> None:
        self._world = where
        self._name = secrets.token_hex(3)  # another load may have left runs in this database
        self._at_once = at_once
        self._size = size
        self._dice = Random(seed)
        self._prefixes = (f"{self._name}{number}" for number in count(1))
        self._over = False
        self.runs: dict[str, dict[str, Service]] = {}  #: acknowledged
        self.said: Counter[str] = Counter()  #: what callers of synchronous bulk were told
        self.real_time = 0
        self.doubts = 0
        self.broken_off: Counter[str] = Counter()  #: why submissions were sent again

    @asynccontextmanager
    async def going_on(self, *, bulk: int = 2) -> AsyncIterator[None]:
        """Have it go on during the block; afterwards wait until all runs are over, and look at their books."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._at_once):
                tasks.create_task(self._submitter())
            for _ in range(bulk):
                tasks.create_task(self._bulk_caller())
            tasks.create_task(self._real_time_caller())
            try:
                yield
            finally:
                self._over = True
        await self.ended()

    def _gateway(self) -> Shared | None:
        well = self._world.well()
        return self._dice.choice(well) if well else None

    async def _submitter(self) -> None:
        while not self._over:
            prefix = next(self._prefixes)
            items: dict[str, Service] = {}
            for service, size in self._size.items():
                items |= keys(f"{prefix}{service[0][0]}", size, service)
            run_id = await self._submit(items)
            while not self._over and not await self._is_nearly_done(run_id):
                await asyncio.sleep(0.2)

    async def _submit(self, items: dict[str, Service]) -> str:
        key = secrets.token_hex(8)
        while True:
            if (gateway := self._gateway()) is not None:
                try:
                    status, said = await asyncio.wait_for(self._post(gateway, key, items), 8)
                except AWAY as error:
                    self.broken_off[type(error).__name__] += 1
                else:
                    if status in (200, 201):
                        assert said["total"] == len(items), said
                        self.runs[said["id"]] = items
                        return str(said["id"])
                    assert status in (409, 503), (status, said)
                    self.broken_off[f"{status} {said['title']}"] += 1
            await asyncio.sleep(0.3)

    async def _post(self, gateway: Shared, key: str, items: dict[str, Service]) -> tuple[int, Json]:
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        return await self._world.api(gateway).ask(
            "POST", "/runs", params={"path": "/x", "maxAttempts": str(ATTEMPTS)}, data=entries(items), headers=headers
        )

    async def _is_nearly_done(self, run_id: str) -> bool:
        shown = await self._shown(run_id)
        return shown is not None and settled_of(shown) >= 0.8 * shown["total"]

    async def _shown(self, run_id: str) -> Json | None:
        with suppress(*AWAY):
            if (gateway := self._gateway()) is not None:
                status, said = await asyncio.wait_for(self._world.api(gateway).ask("GET", f"/runs/{run_id}"), 8)
                assert status in (200, 503), (status, said)
                return said if status == 200 else None
        return None

    async def _bulk_caller(self) -> None:
        while not self._over:
            if (gateway := self._gateway()) is None:
                await asyncio.sleep(0.1)
                continue
            try:
                answer = await gateway.bulk(f"b{secrets.token_hex(8)}")
            except AWAY:
                self.said["nothing"] += 1
                await asyncio.sleep(0.1)
            else:
                self.said[_reason(answer)] += 1
                await asyncio.sleep(0.05)

    async def _real_time_caller(self) -> None:
        """Ask each gateway in turn. One that is well must answer as the source did; nothing is said of calls during
        which a gateway fell ill."""
        while not self._over:
            for gateway in self._world.gateways:
                if gateway not in self._world.well():
                    continue
                ailments = self._world.ailments.copy()
                try:
                    answer = await gateway.real_time("live", LIVE)
                except AWAY:
                    assert self._world.ailments != ailments, "real-time was not answered"
                    continue
                if self._world.ailments == ailments:
                    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
                    self.real_time += 1
            await asyncio.sleep(0.03)

    # Afterwards.

    async def ended(self, within: float = 180.0) -> None:
        """Wait until each run is over, or waits for a person because of doubts; look at its books."""
        gateway = self._world.well()[0]
        for run_id in self.runs:
            await self._world.api(gateway).reaches(run_id, "completed", "paused", within=within)
        for run_id, items in self.runs.items():
            await self._check(gateway, run_id, items)

    async def _check(self, gateway: Shared, run_id: str, items: dict[str, Service]) -> None:
        most = {key: 1 if service == DECISION else ATTEMPTS for key, service in items.items()}
        found = await check_books(self._world.api(gateway), self._world.source, run_id, items, most_calls=most)
        assert found["counts"]["waiting"] == 0, found
        assert found["counts"]["rejected"] == found["counts"]["failed"] == 0, found
        doubts = await self._world.api(gateway).page(run_id, "doubts")
        assert all(items[row["key"]] == DECISION for row in doubts), "a read is in doubt"
        assert found["state"] == ("paused" if doubts else "completed"), found
        self.doubts += len(doubts)
        calls = self._world.source.calls()
        assert sum(calls[key] for key in items) <= found["attempts"], "calls that the books do not know"

    def tally(self) -> Mapping[str, int]:
        """Return what there was: runs, items, calls for them, items called more than once."""
        calls = self._world.source.calls()
        items = [key for run in self.runs.values() for key in run]
        return {
            "runs": len(self.runs),
            "items": len(items),
            "calls": sum(calls[key] for key in items),
            "repeated": sum(calls[key] > 1 for key in items),
            "in doubt": self.doubts,
            "synchronous": self.said["answered"],
            "real-time": self.real_time,
        }


def _reason(answer: bytes) -> str:
    if answer.startswith(b"HTTP/1.1 200"):
        return "answered"
    for reason in ("store_unavailable", "layout_conflict", "queue_timeout", "cooling_down", "shutting_down", "held"):
        if reason.encode() in answer:
            return reason
    if b"upstream_timeout" in answer:
        return "upstream_timeout"
    raise AssertionError(answer[:2000])


# The books.


async def check_postgres(url: str) -> None:
    """Look into a database when all runs are over: counters equal rows, nothing is in hand, orphaned or nowhere."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        for what, sql in _MUST_BE_EMPTY.items():
            assert not (rows := await connection.fetch(sql)), (what, [dict(row) for row in rows[:5]])
    finally:
        await connection.close()


_MUST_BE_EMPTY = {
    "a batch is left": "select * from batch",
    "an item that is settled waits": "select w.* from returned w join result r on r.id = w.id",
    "an item waits though its run is over": (
        "select w.* from returned w join run on run.id = w.run_id where run.state in ('completed', 'cancelled')"
    ),
    "a run is stuck": "select id, state from run where state in ('loading', 'ready', 'running')",
    "an item is nowhere": """
        select run.id, run.total, settled.number as settled, open.number as unclaimed, again.number as returned
        from run,
          lateral (select count(*) as number from result r where r.run_id = run.id) settled,
          lateral (select coalesce(sum(total - claimed), 0) as number from lane where run_id = run.id) open,
          lateral (select count(*) as number from returned w where w.run_id = run.id) again
        where run.total <> settled.number + open.number + again.number""",
    "counters are not the rows": """
        select run.id, run.total, done, rejected, failed, in_doubt, rows.* from run, lateral (
          select count(*) filter (where state = 0) as r0, count(*) filter (where state = 1) as r1,
            count(*) filter (where state = 2) as r2, count(*) filter (where state = 3) as r3
          from result where run_id = run.id) rows
        where (done, rejected, failed, in_doubt) <> (r0, r1, r2, r3)""",
    "attempts are not the rows'": """
        select run.id, run.attempts, rows.attempts from run, lateral (
          select (select coalesce(sum(attempts), 0) from result where run_id = run.id)
            + (select coalesce(sum(attempts), 0) from returned where run_id = run.id) as attempts) rows
        where run.attempts <> rows.attempts""",
    "lanes are not the run's": """
        select run.id, run.total from run
        where run.total <> (select coalesce(sum(total), 0) from lane where run_id = run.id)""",
    "items are not the run's": (
        "select run.id, run.total from run where run.total <> (select count(*) from item where run_id = run.id)"
    ),
}
