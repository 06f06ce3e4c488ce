"""What is measured, and how: each measure returns its rows.

The main figure is CPU time of the proxy's tree of processes for each request, since a shared machine moves wall-clock
figures by a quarter. The load and the source are in Python and share a CPU: a proxy that waits for them wakes more
often, and costs more for each call than when it has always something to do. How busy each was is therefore told.
"""

import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from benchmarks.figures import GATEWAY, Bound, Field, Row, Running, interleaved
from benchmarks.peers import CAP, SLOW
from benchmarks.processes import (
    PROXY_CPU,
    VoidError,
    costing,
    free_port,
    load,
    loading,
    memory_kib,
    result,
    started,
    stop,
    taken,
)

CPU_BOUNDS = {
    "usual": Bound(0.55),
    "Envoy": Bound(1.5),
    "HAProxy": Bound(7),
    "nginx": Bound(),
    "proxy.py": Bound(3.5, lower=True, inverse=True),
    "mitmproxy": Bound(12, lower=True, inverse=True),
}
LARGE_BOUNDS = {"usual": Bound(0.7), "Envoy": Bound(1.8), "HAProxy": Bound()}
ADDED_BOUNDS = {"HAProxy": Bound(2), "Envoy": Bound(0.9)}
MEMORY_BOUNDS = {"HAProxy": Bound(1.6), "Envoy": Bound(0.45)}
SETTLE = 1.5  #: seconds until the source is done with what takes it 900 ms


def direct(source: int, size: int, calls: int) -> float:
    """Calls a second that the load and the source manage with nothing between them."""
    seen = load(port=source, path=f"/a/{size}/0", connections=16, requests=calls, size=size)
    rate: float = seen["done"] / seen["seconds"]
    return rate


def cpu(these: Field, size: int, calls: int, rounds: int) -> list[Row]:
    """CPU per request, closed loop over 16 connections; fewer calls for the slow ones."""
    busy: dict[str, list[float]] = {one.name: [] for one in these.proxies}

    def cost(one: Running) -> float:
        count = max(200, calls // 10) if one.name in SLOW else calls
        plan = one.plan(f"/a/{size}/0", connections=16, requests=count, size=size)
        if not busy[one.name]:
            load(**plan | {"requests": max(50, count // 4)})
        used, seconds = costing(one.process, **plan)
        busy[one.name].append(used / seconds)
        return used / count * 1e6

    figures = interleaved(these, rounds, cost)
    rows = []
    for name, bound in (CPU_BOUNDS if size < 10_000 else LARGE_BOUNDS).items():
        how = f"{rounds} rounds of {calls} calls"
        if name in SLOW:
            how += " (a tenth for it)"
        if any(one.name == name and one.peer.closes for one in these.proxies):
            how += ", a connection for each"
        if busy.get(GATEWAY) and busy.get(name):
            how += f"; busy {median(busy[GATEWAY]):.0%} and {median(busy[name]):.0%}"
        rows += figures.rows(f"CPU per {size / 1000:g} kB call", "us", how, {name: bound})
    return rows


def differing(these: Field, calls: int, rounds: int) -> list[Row]:
    """CPU per request whose header is another one each time: nothing that was read before can be known again."""

    def cost(one: Running) -> float:
        plan = one.plan("/a/1500/0", connections=16, requests=calls, size=1500, differing=True)
        used, _ = costing(one.process, **plan)
        return used / calls * 1e6

    figures = interleaved(these, rounds, cost)
    how = f"{rounds} rounds of {calls} calls, an identifier in each header"
    return figures.rows("CPU per 1.5 kB call, headers differing", "us", how, {"usual": Bound(), "Envoy": Bound()})


def added(these: Field, source: int, rate: int, calls: int, rounds: int) -> list[Row]:
    """Median latency above the direct one (measured just before each), open loop over 64 connections.

    It counts from when a call was due, as the bounds do. That also holds how late the idle load woke up, which moves
    much on a virtual machine; the median from when calls were sent is told beside it, and decides nothing.
    """
    plan = {"connections": 64, "rate": rate, "requests": calls}
    from_sending: dict[str, list[float]] = {one.name: [] for one in these.proxies}

    def above(one: Running) -> float:
        bare = load(port=source, path="/a/1500/0", **plan)
        through = load(**one.plan("/a/1500/0", **plan))
        from_sending[one.name].append((through["wait"] - bare["wait"]) * 1e6)
        added: float = (through["p50"] - bare["p50"]) * 1e6
        return added

    figures = interleaved(these, rounds, above)
    rows = []
    for name, bound in ADDED_BOUNDS.items():
        how = f"{rounds} rounds of {calls} calls, from when they were due"
        if from_sending.get(GATEWAY) and from_sending.get(name):
            how += f" (from the sending: {median(from_sending[GATEWAY]):.0f} against {median(from_sending[name]):.0f})"
        rows += figures.rows(f"added median at {rate}/s", "us", how, {name: bound})
    return rows


def bulk(these: Field, source: int, delay_ms: int, calls: int, rounds: int, least: float) -> list[Row]:
    """Throughput of bulk with a backlog, as a share of cap / latency; the cap as the source saw it."""
    most: set[int] = set()

    def share(one: Running) -> float:
        peak(source)
        plan = one.plan(f"/bulk/a/1500/{delay_ms}", connections=calls, requests=calls, seconds=150)
        seen = load(**plan)
        at_once = peak(source)
        if one.name == GATEWAY:
            most.add(at_once)
        if at_once > CAP:
            raise VoidError(f"THE CAP WAS EXCEEDED: {at_once} at once at the source")
        if at_once < CAP:
            raise VoidError(f"only {at_once} at once at the source: the cap was not reached")
        shared: float = seen["done"] / seen["seconds"] / (CAP / (delay_ms / 1000))
        return shared

    figures = interleaved(these, rounds, share)
    how = f"{rounds} rounds, backlog {calls}; most at once at the source: {max(most, default=0)}"
    bounds = {"HAProxy": Bound(least, lower=True), "Envoy": Bound()}
    return figures.rows(f"bulk throughput at {delay_ms} ms", "of cap / latency", how, bounds)


def peak(source: int) -> int:
    """Ask the source how many delayed calls it was working on at once since the last question."""
    with urlopen(f"http://127.0.0.1:{source}/peak", timeout=5) as answer:
        return int(answer.read())


def parked(
    these: Field, fresh: Callable[[Running], AbstractContextManager[Running]], number: int, rounds: int
) -> list[Row]:
    """Memory for each parked call: each proxy anew, `number` calls to a source that takes its time."""

    def of_each(one: Running) -> float:
        with fresh(one) as again:
            load(**again.plan("/a/1500/0", connections=16, requests=400))
            before = memory_kib(again.process)
            with loading(**again.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100)) as calls:
                _until(lambda: taken(again.port) >= number, f"not all {number} calls were taken")
                time.sleep(1)
                used = memory_kib(again.process) - before
                answered = stop(calls)["done"]
            time.sleep(SETTLE)
        each: float = used / (number - answered)
        return each

    figures = interleaved(these, rounds, of_each)
    how = f"{rounds} rounds of {number} parked, PSS, all seen taken"
    return figures.rows("memory of a parked call", "KiB", how, MEMORY_BOUNDS)


def _until(true: Callable[[], bool], otherwise: str) -> None:
    for _ in range(150):
        if true():
            return
        time.sleep(0.2)
    raise VoidError(otherwise)


def arriving(these: Field, number: int, rounds: int) -> list[Row]:
    """Real-time p99 at 200/s while `number` bulk calls arrive in one burst.

    The burst also keeps the load's CPU busy, the same for all: it brings ratios nearer to 1.
    """

    def late(one: Running) -> float:
        real_time = one.plan("/a/1500/0", connections=400, rate=200, requests=600)
        burst = one.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100, wait=True)
        with loading(**burst) as flood, loading(**real_time) as calls:
            time.sleep(0.5)
            flood.send_signal(signal.SIGUSR1)  # all at once
            seen = result(calls)
            stop(flood)
        time.sleep(SETTLE)
        if seen["failed"]:
            raise VoidError(f"{seen['failed']} real-time calls failed beside the burst")
        worst: float = seen["p99"] * 1000
        return worst

    figures = interleaved(these, rounds, late)
    how = f"{rounds} rounds, 200 calls/s"
    return figures.rows(f"real-time p99 while {number} bulk calls arrive", "ms", how, {"Envoy": Bound(0.6)})


def isolation(these: Field, waiting: Callable[[], float], number: int, calls: int, rounds: int) -> list[Row]:
    """The real-time median beside many parked bulk calls, times alone, alternating."""
    alone: list[float] = []
    beside: list[float] = []

    def times_alone(one: Running) -> float:
        real_time = one.plan("/a/1500/0", connections=32, rate=200, requests=calls)
        alone.append(load(**real_time)["p50"])
        with loading(**one.plan("/bulk/a/1500/900", connections=number, requests=number, seconds=100)) as flood:
            _until(lambda: waiting() >= number * 0.98, "not all bulk calls were parked")  # some are served meanwhile
            beside.append(load(**real_time)["p50"])
            stop(flood)
        time.sleep(SETTLE)
        return beside[-1] / alone[-1]

    figures = interleaved(these, rounds, times_alone)
    what = f"real-time median beside {number} parked bulk calls, times alone"
    if why := figures.missing.get(GATEWAY):
        return [Row(what, Bound(1.15), [], why)]
    how = f"{median(beside) * 1e6:.0f} against {median(alone) * 1e6:.0f} us; {rounds} rounds, 200 calls/s"
    return [Row(what, Bound(1.15), figures.values[GATEWAY], how)]


def ready(these: Field, folder: Path, source: int, rounds: int) -> list[Row]:
    """From exec to the first 200."""

    def start(one: Running) -> float:
        port = free_port()
        place = folder / f"ready-{one.name}"
        place.mkdir(exist_ok=True)
        command = one.peer.command(place, port, source)
        began = time.perf_counter()
        with started(command, PROXY_CPU, 0, place / "log"):
            while not _answers(port):
                if time.perf_counter() - began > 20:
                    raise VoidError("it did not get ready within 20 s")
                time.sleep(0.002)
            return (time.perf_counter() - began) * 1000

    figures = interleaved(these, rounds, start)
    return figures.rows("ready", "ms", f"{rounds} rounds, exec to the first 200", {"usual": Bound(1.5)})


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"GET /a/100/0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return probe.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
