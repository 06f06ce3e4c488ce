"""How fast a run is loaded, and what it costs: the real loader into a real store; then how its size tells on the work.

Usage: python -m benchmarks.loading [ITEMS [FORM [ENGINE]]]   (100,000, ndjson, sqlite; csv; postgres: one from a wheel,
or the URL of an empty database). A million items take about a minute.

Prints items a second from octets to durable rows; the memory of this process and of those that encode, at the start and
at the end of loading; how late the event loop was meanwhile (what real-time would feel, with CPUs to share); octets on
disk an item; how long a claim, a fetch and a settlement of `BATCH` items take, and the run's figures, beside those of a
run of 10,000 items in the same store; and octets on disk for each answer of 2 kB.
"""

import asyncio
import json
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TypeVar

import asyncpg
import uvloop

from gateway.app import SystemClock
from gateway.config import load
from gateway.loading import Loader, Submission
from gateway.packing import StoredAnswer, pack_answer
from gateway.records import NewRun, Result, Settlement
from gateway.sealing import KeyRing, RunKey
from gateway.store.interface import Store
from gateway.store.postgres import open_postgres
from gateway.store.sqlite import open_sqlite
from policies.model import ItemState, RunKind, RunState
from tests.gateway.store.postgres_server import embedded_server

T = TypeVar("T")
SMALL = 10_000
BATCH = 500
ROUNDS = 40
PIECE = 256 * 1024
PROBE_S = 0.002
PATH = "/SOA4520/RetrieveTIGroupsService/v2/retrieveTI"
SITE = "upstreams: {a: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /, upstream: a}]\n"
TEMPLATE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:v2="http://kszbcss.fgov.be/intf/RetrieveTIGroupsService/v2">\n  <soapenv:Header/>\n  <soapenv:Body>\n'
    "    <v2:retrieveTIGroupsRequest>\n      <informationCustomer>\n        <ticket>{{ticket}}</ticket>\n"
    "        <timestampSent>{{sent}}</timestampSent>\n        <customerIdentification>\n"
    "          <sectorCode>17</sectorCode>\n          <institutionCode>0</institutionCode>\n"
    "        </customerIdentification>\n      </informationCustomer>\n      <legalContext>REHEARSAL</legalContext>\n"
    + "".join(
        f"      <criterion>\n        <name>field{n}</name>\n        <value>{n * 37}</value>\n      </criterion>\n"
        for n in range(7)
    )
    + "      <ssin>{{ssin}}</ssin>\n      <period>\n        <beginDate>{{begin}}</beginDate>\n"
    "      </period>\n    </v2:retrieveTIGroupsRequest>\n  </soapenv:Body>\n</soapenv:Envelope>\n"
)


def fields(number: int) -> dict[str, str]:
    """Return the values of one item: nobody's numbers (day and month are 0), with right check digits."""
    nine = number // 1000 % 100 * 10_000_000 + number % 1000
    return {
        "ticket": f"{number * 2_654_435_761 % 2**32:08x}-{number}",
        "sent": f"2026-11-24T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000Z",
        "ssin": f"{nine:09d}{97 - nine % 97:02d}",
        "begin": f"20{number % 27:02d}-{number % 12 + 1:02d}-01",
        "key": f"person {number}",
    }


def submission(form: str, size: int, file: Path) -> Path:
    """Write what is submitted, beforehand: making it costs as much as loading it."""
    with file.open("w") as out:
        if form == "csv":
            out.write(",".join(fields(0)) + "\n")
        for number in range(size):
            values = fields(number)
            if form == "csv":
                out.write(",".join(values.values()) + "\n")
                continue
            body = TEMPLATE
            for name in ("ticket", "sent", "ssin", "begin"):
                body = body.replace("{{" + name + "}}", values[name])
            out.write(json.dumps({"key": values["key"], "body": body}) + "\n")
    return file


async def octets(file: Path) -> AsyncIterator[bytes]:
    """Yield a submission as a fast client would send it."""
    with file.open("rb") as whole:
        while piece := await asyncio.to_thread(whole.read, PIECE):
            yield piece


@dataclass
class Bench:
    """One store, filled and measured."""

    store: Store
    folder: Path
    url: str
    form: str
    keys: KeyRing

    async def filled(self, size: int, file: Path) -> tuple[int, str, RunKey]:
        """Load a run of `size` items from a file; return its id and name, and its key."""
        (self.folder / "config.yaml").write_text(SITE)
        configuration = load(self.folder / "config.yaml", {})
        loader = Loader(lambda: configuration, self.store.add_items, self.store.set_dictionary)
        key, wrapped = self.keys.new_key()
        run = await self.store.create_run(NewRun(secrets.token_hex(16), RunKind.FILE, "bench", "bench", wrapped))
        how = Submission("ndjson", PATH) if self.form == "ndjson" else Submission("csv", PATH, "", "", TEMPLATE, "key")
        report = await loader.take(run, key, how, octets(file), offset=0)
        assert report.added == size, report.faults[:3]
        await self.store.change_state(run.id, RunState.READY, author="bench", reason="")
        record = await self.store.run(run.public_id)
        assert record is not None
        if record.dictionary is not None:
            key = key.with_dictionary(key.unseal("dictionary", run.public_id, 0, record.dictionary))
        return run.id, run.public_id, key

    async def disk(self) -> int:
        """Return how many octets the store has on disk, what is still in its log included."""
        if not self.url:
            return await asyncio.to_thread(_file_size, self.folder / "store.db")
        connection = await asyncpg.connect(self.url)
        try:
            return int(await connection.fetchval("select pg_database_size(current_database())"))
        finally:
            await connection.close()

    async def work(self, run_id: int, public_id: str, key: RunKey) -> dict[str, float]:
        """Claim, fetch and settle some batches; return the median of each, and of the run's figures, milliseconds."""
        times: dict[str, list[float]] = {"claim": [], "fetch": [], "settle": [], "figures": [], "work": []}

        async def timed(what: str, call: Awaitable[T]) -> T:
            began = time.perf_counter()
            result = await call
            times[what].append((time.perf_counter() - began) * 1000)
            return result

        [(lane, _)] = await self.store.lanes(run_id)
        for number in range(ROUNDS // 2 if lane.unclaimed <= SMALL else ROUNDS):
            await timed("work", self.store.work(datetime.now(UTC)))
            batch = await timed("claim", self.store.claim(lane.lane_id, "bench", size=BATCH, window=BATCH))
            if batch is None:
                break
            items = await timed("fetch", self.store.fetch(batch))
            results = [
                Result(batch.batch_id, item.lane_id, item.position, 1, ItemState.DONE, 200, "", 40, sealed)
                for item, sealed in ((item, answer(key, public_id, item.seq)) for item in items)
            ]
            settlement = Settlement("bench", results, finished=[batch.batch_id])
            settled = await timed("settle", self.store.settle(settlement))
            assert settled.stored == len(items), number
            await timed("figures", self.store.run(public_id))
        return {what: median(every) for what, every in times.items()}


def _file_size(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:  # what is in its log comes into the file
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    return file.stat().st_size


def answer(key: RunKey, public_id: str, seq: int) -> bytes:
    """Return a sealed answer of 2 kB."""
    values = fields(seq)
    rows = "".join(f"<row><begin>{values['begin']}</begin><code>{seq * n % 997}</code></row>" for n in range(1, 30))
    body = f"<answer><ssin>{values['ssin']}</ssin><ticket>{values['ticket']}</ticket>{rows}</answer>"
    headers = ((b"Content-Type", b"text/xml; charset=utf-8"), (b"Date", b"Tue, 24 Nov 2026 20:00:00 GMT"))
    return key.seal("answer", public_id, seq, pack_answer(StoredAnswer(200, b"OK", headers, body.encode())))


async def watched(loading: Awaitable[T], late: list[float], memory: list[float]) -> T:
    """Await something, and note how late the loop is meanwhile, and how much memory all of us have."""

    async def probe() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(PROBE_S)
            late.append((time.perf_counter() - began - PROBE_S) * 1000)

    async def weigh() -> None:
        while True:
            await asyncio.sleep(1)
            memory.append(await asyncio.to_thread(weight))

    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(probe()), tasks.create_task(weigh())]
        result = await loading
        for task in watching:
            task.cancel()
    return result


def weight() -> float:
    """Return the memory of this process and its children, shared pages parted among them, MiB."""
    children = {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}
    total = 0
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


async def measure(store: Store, folder: Path, url: str, form: str, size: int) -> None:
    """Measure, and print."""
    await store.migrate()
    bench = Bench(store, folder, url, form, KeyRing(secrets.token_bytes(32)))
    file = folder / "submission"
    small = await bench.work(*await bench.filled(SMALL, submission(form, SMALL, file)))
    submission(form, size, file)
    late: list[float] = []
    memory: list[float] = []
    before, began, cpu = await bench.disk(), time.perf_counter(), time.process_time()
    run = await watched(bench.filled(size, file), late, memory)
    took_s, cpu = time.perf_counter() - began, time.process_time() - cpu
    on_disk = await bench.disk() - before
    late.sort()
    settled_before = await bench.disk()
    large = await bench.work(*run)
    answers = min(ROUNDS * BATCH, size)
    answers_on_disk = (await bench.disk() - settled_before) / answers
    first, last = memory[len(memory) // 4], max(memory[-3:])
    p99 = late[len(late) * 99 // 100]
    print(f"{'postgres' if url else 'sqlite'}, {form}, {size:,} items of {len(TEMPLATE):,} octets")
    print(
        f"  loaded      {size / took_s:,.0f} items/s ({took_s:.1f} s; {cpu / size * 1e6:.1f} us of this process each)"
    )
    print(f"  memory      {first:.0f} MiB after a quarter of it, {last:.0f} at its end")
    print(f"  loop late   median {median(late):.2f}, p99 {p99:.1f}, most {late[-1]:.1f} ms")
    print(f"  disk        {on_disk / size:.0f} octets an item, {answers_on_disk:.0f} an answer")
    for what, figure in large.items():
        print(f"  {what:11} {figure:.2f} ms; in a run of {SMALL:,}: {small[what]:.2f} ms")
    await store.close()


async def sqlite(folder: Path, form: str, size: int) -> None:
    """Measure the store in a file."""
    await measure(await open_sqlite(folder / "store.db", SystemClock()), folder, "", form, size)


async def postgres(url: str, folder: Path, form: str, size: int) -> None:
    """Measure the store in a database."""
    await measure(await open_postgres(url, SystemClock(), 10.0), folder, url, form, size)


def main() -> None:
    """Measure."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    form = sys.argv[2] if len(sys.argv) > 2 else "ndjson"
    engine = sys.argv[3] if len(sys.argv) > 3 else "sqlite"
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        url = stack.enter_context(embedded_server(durable=True)).url if engine == "postgres" else engine
        call = sqlite(Path(name), form, size) if engine == "sqlite" else postgres(url, Path(name), form, size)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(call)


if __name__ == "__main__":
    main()
