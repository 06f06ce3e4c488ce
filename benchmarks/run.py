"""`make bench`: the gateway beside its peer, in one run; prints a table and writes benchmarks/RESULTS.md.

Method: one process each, pinned: proxy on one CPU, source and load on the other. Rounds are interleaved, forward
then backward; the main figure is CPU time of the proxy's process per request (utime + stime of all its threads),
since a shared machine moves wall-clock figures by a quarter; ratios are the median of per-round ratios. Every
feature is on: access log (to a file), metrics, timeouts, classification. A run in which a request failed is void,
and says so.

With `--quick` rounds are short: it shows that the bench runs, its figures mean little.
"""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen
from zoneinfo import ZoneInfo

HERE = Path(__file__).parent
QUICK = "--quick" in sys.argv
ROUNDS = 2 if QUICK else 5
REQUESTS = 1000 if QUICK else 6000
TICK = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPU, LOAD_CPU = CPUS[-1], CPUS[0]
BRUSSELS = ZoneInfo("Europe/Brussels")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(arguments: list[str], cpu: int, port: int, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program pinned to a CPU until the block ends; wait until it listens."""
    with out.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=HERE.parent,
            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
        )
    try:
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"{arguments} ended: see {out}: {out.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return what a process has used, all its threads together."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def loading(**plan: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a load; it runs beside the block. `result` waits for what it saw."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", json.dumps(plan)],
        stdout=subprocess.PIPE,
        cwd=HERE.parent,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CPU}),
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"connected\n":
            raise RuntimeError("the load could not connect")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def result(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a load's end and return what it saw."""
    assert process.stdout is not None
    seen: dict[str, Any] = json.loads(process.stdout.readline())
    return seen


def load(**plan: Any) -> dict[str, Any]:
    """Run a load to its end; failures make the whole bench void."""
    with loading(**plan) as process:
        seen = result(process)
    if seen["failed"]:
        raise RuntimeError(f"void: {seen['failed']} calls failed with {plan}")
    return seen


def gateway_configuration(folder: Path, port: int, telemetry: int, source: int) -> Path:
    """Write a configuration whose window is open now, whatever the hour, for the routes of the bench."""
    now = datetime.now(BRUSSELS)
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(f"""
data_dir: data
listeners: [{{address: 127.0.0.1, port: {port}}}]
telemetry: {{address: 127.0.0.1, port: {telemetry}}}
upstreams: {{source: {{url: "http://127.0.0.1:{source}", call_timeout: 1s, hold: 1s}}}}
routes: [{{prefix: /a/, upstream: source}}]
bulk: {{queue_time: 1h, queue_length: 20000, refusal_delay: 0s}}
windows:
  exceptions:
    - from: "{(now - timedelta(hours=1)).isoformat(timespec="seconds")}"
      to: "{(now + timedelta(hours=3)).isoformat(timespec="seconds")}"
      owner: bench
      reason: "the bench runs at any hour, against a source of its own"
limits: {{connections: 20000}}
""")
    return path


class Bench:
    """The processes of one run, and what was measured."""

    def __init__(self, folder: Path, gateway: int, telemetry: int, usual: int, source: int) -> None:
        self.folder = folder
        self.ports = {"gateway": gateway, "usual": usual, "direct": source}
        self.telemetry = telemetry
        self.source = source
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Print a line, and keep it for the page of results."""
        print(line, flush=True)
        self.lines.append(line)

    def cpu(self, processes: dict[str, subprocess.Popen[bytes]], size: int, requests: int) -> None:
        """Measure CPU per request, closed loop over 16 connections."""
        costs: dict[str, list[float]] = {name: [] for name in processes}
        for name in processes:
            load(port=self.ports[name], path=f"/a/{size}/0", connections=16, requests=requests // 4, size=size)
        for number in range(ROUNDS):
            order = list(processes) if number % 2 == 0 else list(reversed(processes))
            for name in order:
                before = cpu_seconds(processes[name])
                load(port=self.ports[name], path=f"/a/{size}/0", connections=16, requests=requests, size=size)
                costs[name].append((cpu_seconds(processes[name]) - before) / requests * 1e6)
        ratios = [ours / theirs for ours, theirs in zip(costs["gateway"], costs["usual"], strict=True)]
        self.say(
            f"| CPU per {size / 1000:g} kB request, times the usual aiohttp proxy's | {median(ratios):.2f} "
            f"({min(ratios):.2f}..{max(ratios):.2f}) | {median(costs['gateway']):.0f} us against "
            f"{median(costs['usual']):.0f} us, {ROUNDS} interleaved rounds of {requests} |"
        )

    def bulk(self, delay_ms: int, calls: int) -> None:
        """Measure bulk throughput with a backlog and 4 slots, as a share of cap / latency."""
        shares = []
        peaks = []
        for _ in range(1 if QUICK else 2):
            self.peak()
            seen = load(
                port=self.ports["gateway"],
                path=f"/bulk/a/1500/{delay_ms}",
                connections=calls,
                requests=calls,
                seconds=120,
            )
            shares.append(seen["done"] / seen["seconds"] / (4 / (delay_ms / 1000)))
            peaks.append(self.peak())
        self.say(
            f"| bulk throughput, {delay_ms} ms, backlog of {calls}, as a share of cap / latency | {median(shares):.3f} "
            f"({min(shares):.3f}..{max(shares):.3f}) | most at once at the source: {max(peaks)} of 4 |"
        )
        if max(peaks) > 4:
            raise RuntimeError(f"the cap was exceeded: {max(peaks)} at once")

    def peak(self) -> int:
        """Ask the source how many delayed calls it was working on at once since the last question."""
        with urlopen(f"http://127.0.0.1:{self.source}/peak", timeout=5) as answer:
            return int(answer.read())

    def waiting(self) -> float:
        """Ask the gateway how many bulk calls wait for a slot of the base pool."""
        with urlopen(f"http://127.0.0.1:{self.telemetry}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(WAITING))

    def isolation(self, parked: int) -> None:
        """Measure the real-time median alone and beside many parked bulk calls, alternating."""
        alone: list[float] = []
        beside: list[float] = []
        real_time = {"port": self.ports["gateway"], "path": "/a/1500/0", "connections": 32, "rate": 200}
        requests = 400 if QUICK else 1500
        for _ in range(1 if QUICK else 2):
            alone.append(load(**real_time, requests=requests)["p50"])
            with loading(
                port=self.ports["gateway"], path="/bulk/a/1500/900", connections=parked, requests=parked, seconds=100
            ):
                for _ in range(200):
                    if self.waiting() >= parked * 0.98:  # some are served meanwhile
                        break
                    time.sleep(0.1)
                else:
                    raise RuntimeError("void: not all bulk calls were parked")
                beside.append(load(**real_time, requests=requests)["p50"])
                if self.waiting() < parked - 200:
                    raise RuntimeError("void: the parked calls did not stay")
            time.sleep(2.5)  # the source finishes what it had begun
        ratios = [loaded / free for free, loaded in zip(alone, beside, strict=True)]
        self.say(
            f"| real-time median beside {parked} parked bulk calls, times alone | {median(ratios):.2f} "
            f"({min(ratios):.2f}..{max(ratios):.2f}) | {median(beside) * 1e6:.0f} us against "
            f"{median(alone) * 1e6:.0f} us, 200 calls/s |"
        )


WAITING = 'bcss_gateway_queue_requests{pool="base"}'


def main() -> None:
    """Run all, print, and write the page (not with --quick)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gateway, telemetry, usual, source = (free_port() for _ in range(4))
        config = gateway_configuration(folder / "gateway", gateway, telemetry, source)
        with (
            started(["-m", "benchmarks.source", str(source)], LOAD_CPU, source, folder / "source.log"),
            started(
                ["-m", "benchmarks.usual", str(usual), f"http://127.0.0.1:{source}"],
                PROXY_CPU,
                usual,
                folder / "usual.log",
            ) as peer,
            started(
                ["-m", "gateway.cli", "serve", "--config", str(config)], PROXY_CPU, gateway, folder / "gateway.log"
            ) as ours,
        ):
            time.sleep(2.5)  # a first start waits T (here 2 s) before it lets bulk through
            bench = Bench(folder, gateway, telemetry, usual, source)
            bench.say("| what | figure (least..most over rounds) | how |")
            bench.say("|---|---|---|")
            bench.cpu({"gateway": ours, "usual": peer}, 1500, REQUESTS)
            bench.cpu({"gateway": ours, "usual": peer}, 200_000, REQUESTS // 4)
            bench.bulk(20, 200 if QUICK else 2000)
            bench.bulk(100, 60 if QUICK else 480)
            bench.isolation(500 if QUICK else 5000)
    if not QUICK:
        write_page(bench.lines)


def write_page(lines: list[str]) -> None:
    """Write benchmarks/RESULTS.md."""
    machine = f"{len(CPUS)} CPUs, {platform.machine()}, Python {platform.python_version()}"
    (HERE / "RESULTS.md").write_text(
        "# Results of `make bench`\n\n"
        f"{datetime.now(BRUSSELS):%Y-%m-%d}, {machine}. How it is measured: the head of `benchmarks/run.py`. Ratios\n"
        "can be compared between machines, times cannot; under a tenth, a difference means nothing on a shared one.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
