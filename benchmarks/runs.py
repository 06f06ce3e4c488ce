"""How busy a run keeps its slots: a gateway with a backlog in its store, and a source that takes a fixed time.

Usage: python -m benchmarks.runs [LATENCY_MS [SECONDS [ENGINE]]]   (20 ms, 8 s, sqlite; postgres: one from a wheel, or a
URL of an empty database). On PostgreSQL new slots are born occupied for L, so that begins 20 s later.

Prints the share of slot time spent in calls as the gateway's client side sees it, the throughput beside what cap and
latency allow as the source sees it, the most calls at once, and CPU for an item. Everything is as in production:
bodies sealed, commits durable.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from urllib.request import urlopen
from zoneinfo import ZoneInfo

import uvloop

from benchmarks.processes import LOAD_CPU, PROXY_CPU, free_port, started
from gateway.app import Gateway, SystemClock, running
from gateway.config import load
from gateway.log import LineWriter
from gateway.mass import Opened
from gateway.occupancy import boot_id
from gateway.packing import StoredRequest, pack_request
from gateway.records import LaneKey, NewItem, NewRun
from policies.model import RunKind, RunState, Slot
from tests.gateway.store.postgres_server import embedded_server

CAP = 4
CHUNK = 1000
ANSWER = 2000
EVENING = datetime(2026, 11, 24, 20, 0, tzinfo=ZoneInfo("Europe/Brussels"))
BODY = (
    b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
    b'<q:retrieveTIGroupsRequest xmlns:q="http://kszbcss.fgov.be/intf/RetrieveTIGroupsService/v2">'
    b"<ssin>00000000097</ssin>" + b"<legalContext>REHEARSAL</legalContext>" * 30 + b"</q:retrieveTIGroupsRequest>"
    b"</s:Body></s:Envelope>"
)


class EveningClock(SystemClock):
    """The machine's clocks, the wall moved to an evening: bulk may start."""

    def __init__(self) -> None:
        self._shift: timedelta = EVENING - super().wall()

    def wall(self) -> datetime:
        """Return the moved wall clock."""
        return super().wall() + self._shift


class SlotTime:
    """How long slots were in a call: from the first check that passed, before the first byte, until the source is done
    (seen by the gateway's client side)."""

    def __init__(self) -> None:
        self._calling = 0
        self._at = time.perf_counter()
        self._seconds = 0.0
        may_start, settle = Slot.may_start, Slot.settle

        def may_start_watched(slot: Slot, now: float) -> bool:
            is_first = slot.started_at is None
            may = may_start(slot, now)
            if may and is_first:
                self._step(1)
            return may

        def settle_watched(slot: Slot) -> None:
            if slot.started_at is not None and slot.busy_until is not None:
                self._step(-1)
            settle(slot)

        Slot.may_start, Slot.settle = may_start_watched, settle_watched  # type: ignore[method-assign]  # a bench looks in

    def _step(self, change: int) -> None:
        now = time.perf_counter()
        self._seconds += self._calling * (now - self._at)
        self._at = now
        self._calling += change

    def seconds(self) -> float:
        """Return the sum over all slots so far."""
        self._step(0)
        return self._seconds


async def fill(mass: Opened, size: int, latency_ms: int) -> int:
    """Store a run of `size` items; return its id."""
    key, wrapped = mass.keys.new_key()
    run = await mass.store.create_run(NewRun(secrets.token_hex(16), RunKind.FILE, "bench", "bench", wrapped))
    target = b"/soap/%d/%d" % (ANSWER, latency_ms)
    octets = pack_request(StoredRequest(target, ((b"Content-Type", b"text/xml; charset=utf-8"),), BODY))
    lane = LaneKey("/", ("national-register",), True)
    for begin in range(0, size, CHUNK):
        numbers = range(begin, min(begin + CHUNK, size))
        items = [NewItem(seq, lane, key.seal("request", run.public_id, seq, octets)) for seq in numbers]
        await mass.store.add_items(run.id, items, received=numbers.stop)
    await mass.store.change_state(run.id, RunState.READY, author="bench", reason="")
    mass.runner.wake()
    return run.id


def calls_made(gateway: Gateway) -> float:
    """Return how many calls were made."""
    text = gateway.metrics.exposition().decode()
    lines = [line for line in text.splitlines() if line.startswith("bcss_gateway_upstream_seconds_count{")]
    wanted = [line for line in lines if 'class="bulk"' in line and 'source="national-register"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


async def measure(folder: Path, port: int, latency_ms: int, seconds: float, url: str) -> None:
    """Run a gateway, and print what it came to."""
    slot_time = SlotTime()
    (folder / "state").mkdir()
    left = {"boot": boot_id(), "hold_s": 1.0, "clean": True, "busy": []}
    (folder / "state" / "busy_until.json").write_text(json.dumps(left))
    (folder / "config.yaml").write_text(
        f"data_dir: state\nlisteners: [{{address: 127.0.0.1, port: 0}}]\ntelemetry: {{address: 127.0.0.1, port: 0}}\n"
        f"upstreams: {{bcss: {{url: 'http://127.0.0.1:{port}', call_timeout: 1s, hold: 1s}}}}\n"
        "routes: [{prefix: /, upstream: bcss}]\n" + ("store: {url: {env: DATABASE_URL}}\n" if url else "")
    )
    clock = EveningClock()
    configuration = load(folder / "config.yaml", {"DATABASE_URL": url}, now=clock.wall())
    with (folder / "log").open("w") as out:
        lines = LineWriter(out)
        async with running(configuration, clock=clock, lines=lines, dice=Random(1)) as gateway:
            await gateway.mass.is_open.wait()
            assert gateway.mass.opened is not None
            await fill(gateway.mass.opened, int(CAP * (seconds + 5) * 1000 / max(latency_ms, 1)), latency_ms)
            while calls_made(gateway) < 50:
                await asyncio.sleep(0.5)
            await asyncio.to_thread(urlopen, f"http://127.0.0.1:{port}/peak")
            calls, busy_s = calls_made(gateway), slot_time.seconds()
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(seconds)
            number, busy_s = calls_made(gateway) - calls, slot_time.seconds() - busy_s
            took_s, cpu = time.perf_counter() - began, time.process_time() - cpu
            peak = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/peak").read().decode())
        lines.close()
    print(f"{'postgres' if url else 'sqlite'}, {latency_ms} ms, {took_s:.1f} s, {number:.0f} items")
    print(f"  slot time in calls (client side)   {busy_s / (CAP * took_s):.4f}")
    print(f"  throughput / (cap / latency)       {number * latency_ms / 1000 / (CAP * took_s):.4f}")
    print(f"  {number / took_s:.1f} items/s; CPU {cpu / number * 1e6:.0f} us an item; most at once: {peak.strip()}")


def main() -> None:
    """Measure."""
    latency_ms = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8.0
    url = sys.argv[3] if len(sys.argv) > 3 else ""
    port = free_port()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        if url == "postgres":
            url = stack.enter_context(embedded_server(durable=True)).url
        url = "" if url == "sqlite" else url
        command = [sys.executable, "-m", "benchmarks.source", str(port)]
        with started(command, LOAD_CPU, port, folder / "source.log"):
            os.sched_setaffinity(0, {PROXY_CPU})
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measure(folder, port, latency_ms, seconds, url))


if __name__ == "__main__":
    main()
