"""`make bench`: the gateway, everything on, beside its peers in one run; prints a table, writes benchmarks/RESULTS.md.

One process or thread each, pinned: proxies on one CPU, source and load on the other. Everything of the gateway is on:
access log (to a file), metrics, timeouts, classification, suspicion. A measure in which a call failed is void, and
says so; a peer that cannot be had is named, with the reason.

`--quick`: short rounds, to see that the bench runs. `--only cpu,bulk`: some measures (cpu, large, added, bulk, parked,
arriving, isolation, ready).
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from urllib.request import urlopen

from benchmarks import measures
from benchmarks.measures import Row, Running
from benchmarks.peers import BRUSSELS, PEERS, Peer, install
from benchmarks.processes import CPUS, LOAD_CPU, PROXY_CPU, VoidError, free_port, started

HERE = Path(__file__).parent
QUICK = "--quick" in sys.argv
ROUNDS = 2 if QUICK else 5
SCALE = 10 if QUICK else 1
WAITING = 'bcss_gateway_queue_requests{pool="base"}'
CPU_BOUNDS = {
    "usual": (0.55, False),
    "Envoy": (1.5, False),
    "HAProxy": (7.0, False),
    "nginx": (float("inf"), False),
    "proxy.py": (3.5, True),
    "mitmproxy": (12.0, True),
}
LARGE_BOUNDS = {"usual": (0.7, False), "Envoy": (1.8, False), "HAProxy": (float("inf"), False)}


class Bench:
    """The proxies of one run."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.source = free_port()
        self.telemetry = free_port()
        self.absent: dict[str, str] = {}
        self.proxies: dict[str, Running] = {}
        command = [sys.executable, "-m", "benchmarks.source", str(self.source)]
        stack.enter_context(started(command, LOAD_CPU, self.source, folder / "source.log"))
        for peer in PEERS:
            try:
                self.proxies[peer.name] = self.run(peer, folder / peer.name, stack)
            except (VoidError, OSError) as why:
                self.absent[peer.name] = " ".join(str(why).split())[:200]
        time.sleep(2.5)  # a gateway's first start waits T (here 2 s) before it lets bulk through

    def run(self, peer: Peer, place: Path, stack: ExitStack) -> Running:
        """Start one proxy."""
        place.mkdir()
        if peer.name == "gateway" and place.name == peer.name:
            (place / "telemetry").write_text(str(self.telemetry))
        port = free_port()
        command = peer.command(place, port, self.source)
        return Running(peer, stack.enter_context(started(command, PROXY_CPU, port, place / "log")), port)

    def these(self, *names: str) -> list[Running]:
        """Return those of the named proxies that run."""
        return [self.proxies[name] for name in names if name in self.proxies]

    def waiting(self) -> float:
        """Ask the gateway how many bulk calls wait for a slot of the base pool."""
        with urlopen(f"http://127.0.0.1:{self.telemetry}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(WAITING))

    def fresh(self, *names: str) -> tuple[list[Running], ExitStack]:
        """Start the named proxies anew, for what depends on what a process did before."""
        stack = ExitStack()
        again = []
        for one in self.these(*names):
            place = self.folder / f"{one.peer.name}-{time.monotonic_ns()}"
            again.append(self.run(one.peer, place, stack))
        time.sleep(2.5)
        return again, stack

    def parked(self) -> list[Row]:
        """Measure memory, in fresh processes."""
        again, stack = self.fresh("gateway", "HAProxy", "Envoy")
        with stack:
            return measures.parked(again, 10_000 // SCALE)


def plan(bench: Bench) -> dict[str, Callable[[], list[Row]]]:
    """Return the measures, by name."""
    everybody = list(bench.proxies.values())
    capped = bench.these("gateway", "HAProxy", "Envoy")
    source = bench.source
    bulk_rounds = 1 if QUICK else 2
    return {
        "cpu": lambda: measures.cpu(everybody, 1500, 6000 // SCALE, ROUNDS, CPU_BOUNDS),
        "large": lambda: measures.cpu(
            bench.these("gateway", "usual", "HAProxy", "Envoy"), 200_000, 1500 // SCALE, ROUNDS, LARGE_BOUNDS
        ),
        "added 200": lambda: measures.added(capped, source, 200, 1000 // SCALE, ROUNDS),
        "added 1000": lambda: measures.added(capped, source, 1000, 4000 // SCALE, ROUNDS),
        "bulk 5": lambda: measures.bulk(capped, source, 5, 2000 // SCALE, bulk_rounds, 0.92),
        "bulk 20": lambda: measures.bulk(capped, source, 20, 2000 // SCALE, bulk_rounds, 0.98),
        "bulk 100": lambda: measures.bulk(capped, source, 100, 480 // SCALE, bulk_rounds, 0.98),
        "parked": bench.parked,
        "arriving": lambda: measures.arriving(bench.these("gateway", "Envoy"), 5000 // SCALE, bulk_rounds),
        "isolation": lambda: measures.isolation(
            bench.proxies["gateway"], bench.waiting, 5000 // SCALE, 1 if QUICK else 2
        ),
        "ready": lambda: measures.ready(
            [one.peer for one in bench.these("gateway", "usual")], bench.folder, source, ROUNDS
        ),
    }


def main() -> None:
    """Run all, print, and write the page (not with --quick or --only)."""
    chosen = next((sys.argv[at + 1].split(",") for at, word in enumerate(sys.argv) if word == "--only"), None)
    lines = ["| what | bound | figure (least..most over rounds) | | how |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        os.chmod(name, 0o755)
        install()
        bench = Bench(Path(name), stack)
        for peer, why in bench.absent.items():
            lines.append(f"| {peer} | | not measured | | {why} |")
            print(lines[-1], flush=True)
        for what, measure in plan(bench).items():
            if chosen is not None and what.split()[0] not in chosen:
                continue
            try:
                rows = [str(row).replace("≤ inf", "") for row in measure()]
            except VoidError as why:
                rows = [f"| {what} | | void | | {why} |"]
            lines += rows
            print("\n".join(rows), flush=True)
    if not QUICK and chosen is None:
        write_page(lines)


def write_page(lines: list[str]) -> None:
    """Write benchmarks/RESULTS.md."""
    machine = f"{len(CPUS)} CPUs, {platform.machine()}, Python {platform.python_version()}"
    page = HERE / "RESULTS.md"
    notes = page.read_text().partition("\n## ")
    (HERE / "RESULTS.md").write_text(
        "# Results of `make bench`\n\n"
        f"{datetime.now(BRUSSELS):%Y-%m-%d}, {machine}. How it is measured: the heads of `benchmarks/run.py` and\n"
        "`measures.py`. Ratios can be compared between machines, times cannot; under a tenth, a difference means\n"
        "nothing on a shared one. The load and the source share a CPU and manage some 15,000 calls a second.\n\n"
        + "\n".join(lines)
        + "\n"
        + "".join(notes[1:])
    )


if __name__ == "__main__":
    main()
