"""What is measured, and how: each measure returns its rows, or raises VoidError, and then says nothing.

The main figure is CPU time of the proxy's tree of processes for each request, since a shared machine moves wall-clock
figures by a quarter. Ratios are medians of the ratios of rounds, which go over the proxies forward, then backward.
"""

import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from benchmarks.peers import CAP, Peer
from benchmarks.processes import (
    PROXY_CPU,
    Process,
    VoidError,
    cpu_seconds,
    free_port,
    load,
    loading,
    memory_kib,
    result,
    started,
)


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure, and the bound it is held to (None: only shown)."""

    what: str
    figure: float
    least: float
    most: float
    how: str
    bound: float | None = None
    at_least: bool = False  #: the bound is a lower one

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"{'≥' if self.at_least else '≤'} {self.bound:g}"
        met = ""
        if self.bound is not None:
            met = "met" if (self.figure >= self.bound) == self.at_least or self.figure == self.bound else "**not met**"
        return f"| {self.what} | {bound} | {self.figure:.2f} ({self.least:.2f}..{self.most:.2f}) | {met} | {self.how} |"


@dataclass(frozen=True)
class Running:
    """A proxy that runs."""

    peer: Peer
    process: Process
    port: int

    def plan(self, path: str, **more: Any) -> dict[str, Any]:
        """Return a plan of load for this proxy."""
        return {"port": self.port, "path": path, "close": self.peer.closes, **more}


def _rows(
    what: str, figures: Mapping[str, list[float]], bounds: Mapping[str, tuple[float, bool]], unit: str, how: str
) -> list[Row]:
    """Return a row for each bound: our figure over the peer's, or the other way round for a lower bound."""
    rows = []
    for name, (bound, inverse) in bounds.items():
        if name not in figures:
            continue
        pairs = list(zip(figures["gateway"], figures[name], strict=True))
        ratios = [theirs / ours if inverse else ours / theirs for ours, theirs in pairs]
        ours, theirs = median(figures["gateway"]), median(figures[name])
        label = f"{what}: times less than {name}" if inverse else f"{what}, times {name}'s"
        detail = f"{ours:.3g} against {theirs:.3g} {unit}; {how}"
        rows.append(Row(label, median(ratios), min(ratios), max(ratios), detail, bound, inverse))
    return rows


def cpu(
    proxies: list[Running], size: int, requests: int, rounds: int, bounds: Mapping[str, tuple[float, bool]]
) -> list[Row]:
    """CPU per request, closed loop over 16 connections."""
    path = f"/a/{size}/0"
    costs: dict[str, list[float]] = {one.peer.name: [] for one in proxies}
    numbers = {one.peer.name: max(200, requests // (10 if one.peer.name in SLOW else 1)) for one in proxies}
    for one in proxies:
        load(**one.plan(path, connections=16, requests=numbers[one.peer.name] // 4, size=size))
    for number in range(rounds):
        for one in proxies if number % 2 == 0 else reversed(proxies):
            count = numbers[one.peer.name]
            before = cpu_seconds(one.process)
            load(**one.plan(path, connections=16, requests=count, size=size))
            costs[one.peer.name].append((cpu_seconds(one.process) - before) / count * 1e6)
    how = f"{rounds} rounds of {requests} calls"
    return _rows(f"CPU per {size / 1000:g} kB call", costs, bounds, "us", how)


SLOW = ("proxy.py", "mitmproxy")


def added(proxies: list[Running], source: int, rate: int, calls: int, rounds: int) -> list[Row]:
    """Median latency above the direct one, open loop over 64 connections."""
    figures: dict[str, list[float]] = {one.peer.name: [] for one in proxies}
    plan = {"connections": 64, "rate": rate, "requests": calls}
    for number in range(rounds):
        direct = load(port=source, path="/a/1500/0", **plan)["p50"]
        for one in proxies if number % 2 == 0 else reversed(proxies):
            figures[one.peer.name].append((load(**one.plan("/a/1500/0", **plan))["p50"] - direct) * 1e6)
    bounds = {"HAProxy": (2.0, False), "Envoy": (0.9, False)}
    return _rows(f"added median at {rate}/s", figures, bounds, "us", f"{rounds} rounds of {calls} calls")


def bulk(proxies: list[Running], source: int, delay_ms: int, calls: int, rounds: int, bound: float) -> list[Row]:
    """Throughput of bulk with a backlog, as a share of cap / latency; the cap as the source saw it."""
    shares: dict[str, list[float]] = {one.peer.name: [] for one in proxies}
    most = 0
    for number in range(rounds):
        for one in proxies if number % 2 == 0 else reversed(proxies):
            peak(source)
            plan = one.plan(f"/bulk/a/1500/{delay_ms}", connections=calls, requests=calls, seconds=150)
            seen = load(**plan)
            shares[one.peer.name].append(seen["done"] / seen["seconds"] / (CAP / (delay_ms / 1000)))
            at_once = peak(source)
            if one.peer.name == "gateway":
                most = max(most, at_once)
    if most > CAP:
        raise VoidError(f"THE CAP WAS EXCEEDED: {most} at once")
    how = f"of cap / latency; backlog {calls}, {rounds} rounds; most at once at the source: {most}"
    ours = shares["gateway"]
    rows = [Row(f"bulk at {delay_ms} ms, share of cap / latency", median(ours), min(ours), max(ours), how)]
    if "HAProxy" in shares:
        ratios = [mine / theirs for mine, theirs in zip(ours, shares["HAProxy"], strict=True)]
        detail = f"{median(ours):.3f} against {median(shares['HAProxy']):.3f} {how}"
        what = f"bulk throughput at {delay_ms} ms, times HAProxy's"
        rows.append(Row(what, median(ratios), min(ratios), max(ratios), detail, bound, at_least=True))
    return rows


def peak(source: int) -> int:
    """Ask the source how many delayed calls it was working on at once since the last question."""
    with urlopen(f"http://127.0.0.1:{source}/peak", timeout=5) as answer:
        return int(answer.read())


def parked(proxies: list[Running], number: int) -> list[Row]:
    """Memory for each parked call: each proxy anew, `number` calls to a source that takes its time."""
    figures: dict[str, list[float]] = {}
    for one in proxies:
        load(**one.plan("/a/1500/0", connections=16, requests=400))
        before = memory_kib(one.process)
        plan = one.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100)
        with loading(**plan):
            time.sleep(4 + number / 2000)
            figures[one.peer.name] = [(memory_kib(one.process) - before) / number]
        time.sleep(2.5)
    bounds = {"HAProxy": (1.6, False), "Envoy": (0.45, False)}
    return _rows("memory of a parked call", figures, bounds, "KiB", f"{number} parked, PSS")


def arriving(proxies: list[Running], number: int, rounds: int) -> list[Row]:
    """Real-time p99 at 200/s while `number` bulk calls arrive in one burst."""
    figures: dict[str, list[float]] = {one.peer.name: [] for one in proxies}
    for _ in range(rounds):
        for one in proxies:
            real_time = one.plan("/a/1500/0", connections=400, rate=200, requests=600)
            burst = one.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100, wait=True)
            with loading(**burst) as flood, loading(**real_time) as calls:
                time.sleep(0.5)
                flood.send_signal(signal.SIGUSR1)  # all at once
                seen = result(calls)
                if seen["failed"]:
                    raise VoidError(f"{seen['failed']} real-time calls failed beside {one.peer.name}'s burst")
            figures[one.peer.name].append(seen["p99"] * 1000)
            time.sleep(2.5)
    bounds = {"Envoy": (0.6, False)}
    return _rows(f"real-time p99 while {number} bulk calls arrive", figures, bounds, "ms", f"{rounds} rounds")


def isolation(gateway: Running, waiting: Callable[[], float], number: int, rounds: int) -> list[Row]:
    """The real-time median beside many parked bulk calls, times alone, alternating."""
    alone: list[float] = []
    beside: list[float] = []
    real_time = gateway.plan("/a/1500/0", connections=32, rate=200, requests=1500)
    for _ in range(rounds):
        alone.append(load(**real_time)["p50"])
        with loading(**gateway.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100)):
            for _ in range(200):
                if waiting() >= number * 0.98:  # some are served meanwhile
                    break
                time.sleep(0.1)
            else:
                raise VoidError("not all bulk calls were parked")
            beside.append(load(**real_time)["p50"])
        time.sleep(2.5)  # the source finishes what it had begun
    ratios = [loaded / free for free, loaded in zip(alone, beside, strict=True)]
    how = f"{median(beside) * 1e6:.0f} us against {median(alone) * 1e6:.0f} us, 200 calls/s"
    what = f"real-time median beside {number} parked bulk calls, times alone"
    return [Row(what, median(ratios), min(ratios), max(ratios), how, 1.15)]


def ready(peers: list[Peer], folder: Path, source: int, rounds: int) -> list[Row]:
    """From exec to the first 200."""
    figures: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            port = free_port()
            place = folder / f"ready-{peer.name}"
            place.mkdir(exist_ok=True)
            began = time.perf_counter()
            with started(peer.command(place, port, source), PROXY_CPU, 0, place / "log"):
                while not _answers(port):
                    if time.perf_counter() - began > 20:
                        raise VoidError(f"{peer.name} did not get ready")
                    time.sleep(0.002)
                figures[peer.name].append((time.perf_counter() - began) * 1000)
    return _rows("ready", figures, {"usual": (1.5, False)}, "ms", f"{rounds} rounds, exec to the first 200")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"GET /a/100/0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return probe.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
