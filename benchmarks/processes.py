"""Programs of a bench: started pinned to a CPU, measured as whole trees of processes, ended by their ids."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TICK = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPU, LOAD_CPU = CPUS[-1], CPUS[0]
Process = subprocess.Popen[bytes]


class VoidError(Exception):
    """A measurement in which something failed: it says nothing."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _prepare(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def started(command: Sequence[str], cpu: int, port: int, out: Path) -> Iterator[Process]:
    """Run a program pinned to a CPU until the block ends; wait until it listens (port 0: do not)."""
    with out.open("ab") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, preexec_fn=lambda: _prepare(cpu)
        )
    try:
        for _ in range(600 if port else 0):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise VoidError(f"{command[0]} ended: {out.read_text()[-500:]}") from None
                time.sleep(0.05)
        yield process
    finally:
        end(process)


def end(process: Process) -> None:
    """End a program that we started, and see it gone."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def cpu_seconds(process: Process) -> float:
    """Return what a tree of processes has used, all threads together."""
    ticks = 0
    for pid in tree(process.pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def memory_kib(process: Process) -> int:
    """Return the proportional memory (PSS) of a tree of processes."""
    lines = [line for pid in tree(process.pid) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@contextmanager
def loading(**plan: Any) -> Iterator[Process]:
    """Start a load; it runs beside the block. `result` waits for what it saw."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", json.dumps(plan)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: _prepare(LOAD_CPU),
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"connected\n":
            raise VoidError("the load could not connect")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def result(process: Process) -> dict[str, Any]:
    """Wait for a load's end and return what it saw."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise VoidError("the load ended early")
    seen: dict[str, Any] = json.loads(line)
    return seen


def load(**plan: Any) -> dict[str, Any]:
    """Run a load to its end. Raises VoidError when a call failed."""
    with loading(**plan) as process:
        seen = result(process)
    if seen["failed"]:
        raise VoidError(f"{seen['failed']} of {plan['requests']} calls failed")
    return seen
