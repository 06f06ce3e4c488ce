"""How the size of a run tells on the work: claim, fetch, settle and a run's figures at 10 million items beside 10,000.

Usage: python -m benchmarks.size [ITEMS [ENGINE]]   (10,000,000, sqlite; postgres: one from a wheel)

Items of 120 octets, as a sealed message with its dictionary is, go straight into the store: what loading costs is
`benchmarks.loading`'s. Prints medians in milliseconds, and how many rows a second the store took.
"""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import uvloop

from gateway.app import SystemClock
from gateway.records import LaneKey, NewItem, NewRun, Result, Settlement
from gateway.store.interface import Store
from gateway.store.postgres import open_postgres
from gateway.store.sqlite import open_sqlite
from policies.model import ItemState, RunKind, RunState
from tests.gateway.store.postgres_server import embedded_server

SMALL = 10_000
CALL = 5000
ROUNDS = 100
CLAIM, SETTLE = 64, 16
LANE = LaneKey("/", ("national-register",), True, "bench")


async def filled(store: Store, size: int) -> tuple[int, str, float]:
    """Fill a run with `size` items; return its id and name, and how many a second the store took."""
    run = await store.create_run(NewRun(secrets.token_hex(16), RunKind.FILE, "bench", "bench", b"key"))
    sealed = os.urandom(120)
    began = time.perf_counter()
    for start in range(0, size, CALL):
        items = [NewItem(seq, LANE, sealed) for seq in range(start, min(size, start + CALL))]
        await store.add_items(run.id, items, received=start + len(items))
    took_s = time.perf_counter() - began
    await store.change_state(run.id, RunState.READY, author="bench", reason="")
    return run.id, run.public_id, size / took_s


async def work(store: Store, run_id: int, public_id: str) -> dict[str, float]:
    """Return the medians of what an executor asks of the store, milliseconds."""
    times: dict[str, list[float]] = {"work": [], "claim": [], "fetch": [], "settle": [], "figures": []}
    [(lane, _)] = await store.lanes(run_id)
    answer = os.urandom(300)

    def took(what: str, began: float) -> None:
        times[what].append((time.perf_counter() - began) * 1000)

    for _ in range(ROUNDS):
        began = time.perf_counter()
        await store.work(datetime.now(UTC))
        took("work", began)
        began = time.perf_counter()
        batch = await store.claim(lane.lane_id, "bench", size=CLAIM, window=CLAIM)
        took("claim", began)
        assert batch is not None
        began = time.perf_counter()
        items = await store.fetch(batch)
        took("fetch", began)
        for start in range(0, len(items), SETTLE):
            results = [
                Result(batch.batch_id, one.lane_id, one.position, 1, ItemState.DONE, 200, "", 40, answer)
                for one in items[start : start + SETTLE]
            ]
            done = (batch.batch_id,) if start + SETTLE >= len(items) else ()
            began = time.perf_counter()
            await store.settle(Settlement("bench", results, finished=done))
            took("settle", began)
        began = time.perf_counter()
        await store.run(public_id)
        took("figures", began)
    return {what: median(every) for what, every in times.items()}


async def measure(store: Store, size: int, engine: str) -> None:
    """Measure, and print."""
    await store.migrate()
    small_id, small_name, _ = await filled(store, SMALL)
    small = await work(store, small_id, small_name)
    run_id, name, rate = await filled(store, size)
    large = await work(store, run_id, name)
    print(f"{engine}: {size:,} items, {rate:,.0f} rows/s")
    for what, figure in large.items():
        print(f"  {what:8} {figure:7.2f} ms; at {SMALL:,}: {small[what]:.2f} ms; {figure / small[what]:.2f} times")
    await store.close()


async def run(engine: str, url: str, folder: Path, size: int) -> None:
    """Open the store and measure."""
    if engine == "sqlite":
        await measure(await open_sqlite(folder / "store.db", SystemClock()), size, engine)
    else:
        await measure(await open_postgres(url, SystemClock(), 10.0), size, engine)


def main() -> None:
    """Measure."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    engine = sys.argv[2] if len(sys.argv) > 2 else "sqlite"
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        url = stack.enter_context(embedded_server(durable=True)).url if engine == "postgres" else ""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(engine, url, Path(name), size))


if __name__ == "__main__":
    main()
