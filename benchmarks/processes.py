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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FILES = 32_768  #: 10,000 parked calls need a file each, and HAProxy sets aside two for each connection it may have
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
    if hard < FILES:
        with suppress(ValueError, OSError):  # root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def started(command: Sequence[str], cpu: int, port: int, out: Path) -> Iterator[Process]:
    """Run a program pinned to a CPU until the block ends; wait until it listens (port 0: do not)."""
    # As installed: with bytecode. The first start of each, which nobody measures, writes it.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with out.open("ab") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, env=environ, preexec_fn=lambda: _prepare(cpu)
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
        else:
            if port:
                raise VoidError(f"{command[0]} did not listen within 30 s")
        yield process
    finally:
        end(process)


def end(process: Process) -> None:
    """End a program that we started, and see it gone, with the processes it left behind."""
    if process.poll() is not None:
        return
    children = tree(process.pid)[1:]
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


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
    """Return what a tree of processes has used, user and system, all threads together.

    The kernel's CPU clock of each process (clock_getcpuclockid(3)): the sum that utime and stime of /proc are cut from,
    which come in steps of 10 ms each, a fifth of what a fast proxy uses in a round.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in tree(process.pid))


def memory_kib(process: Process) -> int:
    """Return the proportional memory (PSS) of a tree of processes."""
    lines = [line for pid in tree(process.pid) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def taken(port: int) -> int:
    """Return how many connections to a port were accepted, with nothing in them that was not read."""
    number = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_, inode = line.split()[:10]
        number += (local[-4:], state, queues[-8:], inode != "0") == (f"{port:04X}", "01", "00000000", True)
    return number


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
    """Wait for a load's end and return what it saw, failures too."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise VoidError("the load ended early")
    seen: dict[str, Any] = json.loads(line)
    return seen


def stop(process: Process) -> dict[str, Any]:
    """Stop a load and return what it saw until then. Raises VoidError when a call failed."""
    process.send_signal(signal.SIGTERM)
    return _good(result(process))


def _good(seen: dict[str, Any]) -> dict[str, Any]:
    if seen["failed"]:
        raise VoidError(f"{seen['failed']} calls failed, {seen['done']} were done")
    return seen


def costing(process: Process, **plan: Any) -> tuple[float, float]:
    """Return the CPU seconds of a proxy for a load, without that of connecting, and how long it took."""
    with loading(**plan, wait=True) as calls:
        time.sleep(0.2)  # it has accepted
        before = cpu_seconds(process)
        calls.send_signal(signal.SIGUSR1)
        seen = _good(result(calls))
        return cpu_seconds(process) - before, seen["seconds"]


def load(**plan: Any) -> dict[str, Any]:
    """Run a load to its end. Raises VoidError when a call failed."""
    with loading(**plan) as process:
        return _good(result(process))
