"""`make bench`: the gateway, everything on, beside its peers in one run; prints a table, writes benchmarks/RESULTS.md.

One process or thread each, pinned: proxies on one CPU, source and load on the other. Everything of the gateway is on:
access log (to a file), metrics, timeouts, classification, suspicion. A measure in which a call failed is void, and
says so; a peer that cannot be had is named, with the reason. All of it takes some 20 minutes.

`--quick`: short rounds, to see that the bench runs (2 minutes; its figures say little). `--only cpu,bulk`: some
measures. Neither writes the page.
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from urllib.request import urlopen

from benchmarks import measures
from benchmarks.figures import FAILURES, GATEWAY, Field, Row, Running
from benchmarks.peers import BRUSSELS, PEERS, Peer, install
from benchmarks.processes import CPUS, LOAD_CPU, PROXY_CPU, free_port, started

PAGE = Path(__file__).parent / "RESULTS.md"
WAITING = 'bcss_gateway_queue_requests{pool="base"}'
HEAD = ["| what | bound | figure (least..most) | how |", "|---|---|---|---|"]
BULK_WAIT = 2.5  #: a gateway's first start waits T (here 2 s) before it lets bulk through


class Bench:
    """The proxies of one run."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.source = free_port()
        self.telemetry = free_port()
        self.absent: dict[str, str] = {}
        self.proxies: dict[str, Running] = {}
        command = [sys.executable, "-m", "benchmarks.source", str(self.source)]
        stack.enter_context(started(command, LOAD_CPU, self.source, folder / "source.log"))
        for peer in PEERS:
            try:
                self.proxies[peer.name] = stack.enter_context(self.running(peer, peer.name, self.telemetry))
            except FAILURES as why:
                self.absent[peer.name] = " ".join(str(why).split())[:200]
        time.sleep(BULK_WAIT)

    @contextmanager
    def running(self, peer: Peer, place: str, telemetry: int = 0) -> Iterator[Running]:
        """Run one proxy until the block ends."""
        folder = self.folder / place
        folder.mkdir()
        if peer.name == GATEWAY:
            (folder / "telemetry").write_text(str(telemetry))
        port = free_port()
        with started(peer.command(folder, port, self.source), PROXY_CPU, port, folder / "log") as process:
            yield Running(peer, process, port)

    @contextmanager
    def fresh(self, one: Running) -> Iterator[Running]:
        """Run a proxy anew, for what depends on what a process did before."""
        with self.running(one.peer, f"{one.name}-{time.monotonic_ns()}") as again:
            time.sleep(BULK_WAIT if one.name == GATEWAY else 0)
            yield again

    def these(self, *names: str) -> Field:
        """Return the named proxies, those that run and those that do not."""
        running = [self.proxies[name] for name in names if name in self.proxies]
        return Field(running, {name: self.absent[name] for name in names if name in self.absent})

    def waiting(self) -> float:
        """Ask the gateway how many bulk calls wait for a slot of the base pool."""
        with urlopen(f"http://127.0.0.1:{self.telemetry}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(WAITING))


Plan = dict[str, list[Callable[[], list[Row]]]]


def plan(bench: Bench, quick: bool) -> Plan:
    """Return the measures, by name."""
    rounds, scale = (2, 10) if quick else (5, 1)
    everybody = bench.these(*(peer.name for peer in PEERS))
    large = bench.these(GATEWAY, "usual", "HAProxy", "Envoy")
    capped = bench.these(GATEWAY, "HAProxy", "Envoy")
    source = bench.source

    def bulk(delay_ms: int, calls: int, least: float) -> Callable[[], list[Row]]:
        return lambda: measures.bulk(capped, source, delay_ms, calls // scale, rounds, least)

    return {
        "cpu": [
            lambda: measures.cpu(everybody, 1500, 6000 // scale, rounds),
            lambda: measures.differing(bench.these(GATEWAY, "usual", "Envoy"), 6000 // scale, rounds),
        ],
        "large": [lambda: measures.cpu(large, 200_000, 1500 // scale, rounds)],
        "added": [
            lambda: measures.added(capped, source, 200, 1000 // scale, rounds),
            lambda: measures.added(capped, source, 1000, 4000 // scale, rounds),
        ],
        "bulk": [bulk(5, 2000, 0.92), bulk(20, 2000, 0.98), bulk(100, 480, 0.98)],
        "parked": [lambda: measures.parked(capped, bench.fresh, 10_000 // scale, rounds)],
        "arriving": [lambda: measures.arriving(bench.these(GATEWAY, "Envoy"), 5000 // scale, rounds)],
        "isolation": [
            lambda: measures.isolation(bench.these(GATEWAY), bench.waiting, 5000 // scale, 1000 // scale, rounds)
        ],
        "ready": [lambda: measures.ready(bench.these(GATEWAY, "usual"), bench.folder, source, rounds)],
    }


def rows(bench: Bench, chosen: Plan) -> Iterator[str]:
    """Measure, and return the lines of the table as they come."""
    for name, why in bench.absent.items():
        yield f"| {name} | | not measured: {why} | |"
    for name, parts in chosen.items():
        for measure in parts:
            try:
                yield from (str(row) for row in measure())
            except FAILURES as why:
                yield f"| {name} | | void: {' '.join(str(why).split())[:200]} | |"


def direct(bench: Bench, quick: bool) -> str:
    """Say what the load and the source can do without a proxy."""
    scale = 10 if quick else 1
    small = measures.direct(bench.source, 1500, 20_000 // scale)
    large = measures.direct(bench.source, 200_000, 2000 // scale)
    return (
        f"The load and the source, in Python, share a CPU and manage {small:,.0f} calls a second of 1.5 kB and"
        f" {large:,.0f} of 200 kB without a proxy."
    )


def write_page(able: str, table: list[str]) -> None:
    """Write the page; what a person wrote below the table stays."""
    notes = PAGE.read_text().partition("\n## ") if PAGE.exists() else ()
    machine = f"{len(CPUS)} CPUs, {platform.machine()}, Python {platform.python_version()}"
    PAGE.write_text(
        "# Results of `make bench`\n\n"
        f"{datetime.now(BRUSSELS):%Y-%m-%d}, {machine}. How it is measured: the heads of `benchmarks/run.py`,\n"
        "`figures.py` and `measures.py`. Ratios can be compared between machines, times cannot; under a tenth, a\n"
        f"difference means nothing on a shared one. {able}\n"
        'A proxy that was less "busy" than 100 % waited for them, and costs more for each call than it would else.\n'
        "CPU is the main figure; calls a second are not compared.\n\n" + "\n".join(table) + "\n" + "".join(notes[1:])
    )


def arguments(names: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.run")
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that it runs")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"some of: {', '.join(names)}")
    given = parser.parse_args()
    given.only = [name for name in given.only.split(",") if name]
    if unknown := set(given.only) - set(names):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return given


def _ended(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # ends what was started, on the way out


NAMES = ["cpu", "large", "added", "bulk", "parked", "arriving", "isolation", "ready"]


def main() -> None:
    """Run all, print, and write the page (not with --quick or --only)."""
    given = arguments(NAMES)
    signal.signal(signal.SIGTERM, _ended)
    table = list(HEAD)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        os.chmod(name, 0o755)
        install()
        bench = Bench(Path(name), stack)
        able = direct(bench, given.quick)
        print(able, *HEAD, sep="\n", flush=True)
        measured = plan(bench, given.quick)
        for line in rows(bench, {what: measured[what] for what in given.only or NAMES}):
            table.append(line)
            print(line, flush=True)
    if not given.quick and not given.only:
        write_page(able, table)


if __name__ == "__main__":
    main()
