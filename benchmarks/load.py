"""The load: prepared requests over keep-alive connections, closed loop (as fast as answers come) or open loop (at a
rate).

Usage: python -m benchmarks.load '{"port": ..., "path": ..., ...}'; prints one JSON line with what was seen. A wrong
status, a wrong length or a missing answer counts as failed; a run with failures is void.
"""

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, cast

import uvloop

END = b"\r\n\r\n"
BODY = b"""<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
xmlns:v1="%s"><soapenv:Header/><soapenv:Body>
<v1:%s><informationCustomer><ticket>1</ticket></informationCustomer><legalContext>EXAMPLE</legalContext>
<criteria><ssin>00000000097</ssin></criteria><!--%s--></v1:%s></soapenv:Body></soapenv:Envelope>"""


def request(path: str, size: int, headers: dict[str, str]) -> bytes:
    """Write a whole request whose body has about `size` bytes."""
    namespace = b"http://kszbcss.fgov.be/intf/RetrieveTIGroupsService/v2"
    name = b"retrieveTIGroupsRequest"
    bare = len(BODY % (namespace, name, b"", name))
    body = BODY % (namespace, name, b"." * max(0, size - bare), name)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway.example",
        "Content-Type: text/xml; charset=utf-8",
        'SOAPAction: ""',
    ]
    lines += ["User-Agent: bench", "Accept: text/xml", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Seen:
    """What the load saw."""

    done: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)  #: from when a call was due
    waits: list[float] = field(default_factory=list)  #: from when it was sent, without the load's own lateness


class Caller(asyncio.Protocol):
    """One connection. `idle` is called when it may send again."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.head = b""
        self.missing = 0
        self.good = False
        self.due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def send(self, due: float) -> None:
        """Send the request; latency counts from when it was due."""
        self.due = due
        self.sent = perf_counter()
        self.head = b""
        self.transport.write(self.run.next_request())

    def data_received(self, data: bytes) -> None:
        """Take an answer; it must be 200, and as long as was asked for."""
        if self.due is None:
            self.run.seen.failed += 1  # nobody asked
            return
        if self.head.endswith(END):
            self.missing -= len(data)
        elif not self.read_head(data):
            return
        if self.missing > 0:
            return
        due, self.due = self.due, None
        at = perf_counter()
        self.run.seen.waits.append(at - self.sent)
        self.run.answered(self, self.good and not self.missing, at - due)

    def read_head(self, data: bytes) -> bool:
        """Read the head, or a part of it; say whether it is complete."""
        head, found, body = (self.head + data).partition(END)
        self.head = head + found
        if not found:
            return False
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
        self.good = head.startswith(b"HTTP/1.1 200") and length == self.run.expected
        self.missing = length - len(body)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what will not be answered."""
        if self.due is not None:
            self.run.lost(self)


class Run:
    """One run of the load."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.request = request(plan["path"], plan.get("size", 1500), plan.get("headers", {}))
        self.differing = plan.get("differing", False)
        self.number = 0
        self.expected = int(plan["path"].rsplit("/", 2)[1])
        self.left = plan["requests"]
        self.sent = 0
        self.rate = plan.get("rate", 0)
        self.seen = Seen()
        self.free: deque[Caller] = deque()
        self.over: asyncio.Future[None]

    def next_request(self) -> bytes:
        """Return the next request: the same, or, with `differing`, with another identifier in its header each time."""
        if not self.differing:
            return self.request
        self.number += 1
        line, header = self.request.split(b"\r\n", 1)
        return b"%b\r\nX-Request-Id: %016x\r\n%b" % (line, self.number, header)

    def answered(self, caller: Caller, good: bool, latency: float) -> None:
        """Book an answer, and go on."""
        self.seen.done += 1
        self.seen.failed += not good
        self.seen.latencies.append(latency)
        if not self.rate and self.left:
            self.left -= 1
            caller.send(perf_counter())
        else:
            self.free.append(caller)
        self.check_over()

    def lost(self, _caller: Caller) -> None:
        """Book a call that was not answered."""
        self.seen.done += 1
        self.seen.failed += 1
        self.check_over()

    def check_over(self) -> None:
        """End when all were answered."""
        if self.seen.done >= self.plan["requests"] and not self.over.done():
            self.over.set_result(None)

    async def go(self) -> dict[str, Any]:
        """Run to the end, for at most `seconds` (default 60), or until SIGTERM."""
        loop = asyncio.get_running_loop()
        callers = []
        for _ in range(self.plan["connections"]):
            _, caller = await loop.create_connection(lambda: Caller(self), "127.0.0.1", self.plan["port"])
            callers.append(caller)
        await self.begin(loop)
        started = perf_counter()
        if self.rate:
            self.free.extend(callers)
            self.pace(loop, started)
        else:
            for caller in callers[: self.left]:
                self.left -= 1
                caller.send(perf_counter())
        try:
            async with asyncio.timeout(self.plan.get("seconds", 60)):
                await self.over
        except TimeoutError:
            self.seen.failed += self.plan["requests"] - self.seen.done
        return self.summary(perf_counter() - started)

    async def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say that all is connected; with `wait`, begin when told to (SIGUSR1)."""
        self.over = loop.create_future()
        now = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, now.set)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        print("connected", flush=True)
        if self.plan.get("wait"):
            await now.wait()

    def stop(self) -> None:
        """End before all were answered; those that were not did not fail."""
        if not self.over.done():
            self.over.set_result(None)

    def pace(self, loop: asyncio.AbstractEventLoop, started: float) -> None:
        """Send at the rate. The kernel's timer: those of the loop have steps of 1 ms, and may come before the time."""
        loop.add_signal_handler(signal.SIGALRM, self.send_due, started)
        signal.setitimer(signal.ITIMER_REAL, 1e-6, 1 / self.rate)

    def send_due(self, started: float) -> None:
        """Send what is due, whether or not earlier answers are there; no free connection is a failure."""
        while self.sent < self.plan["requests"] and (due := started + self.sent / self.rate) <= perf_counter():
            self.sent += 1
            if self.free:
                self.free.popleft().send(due)
            else:
                self.seen.done += 1
                self.seen.failed += 1
        if self.sent == self.plan["requests"]:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.check_over()

    def summary(self, took: float) -> dict[str, Any]:
        """Return what was seen."""
        latencies = sorted(self.seen.latencies) or [0.0]
        return {
            "done": self.seen.done,
            "failed": self.seen.failed,
            "seconds": took,
            "p50": latencies[len(latencies) // 2],
            "wait": median(self.seen.waits or [0.0]),
            "p99": latencies[int(len(latencies) * 0.99)],
        }

    async def closing(self) -> dict[str, Any]:
        """Run with a connection for each call, as many calls at once as there would be connections."""
        await self.begin(asyncio.get_running_loop())
        whole = self.request.replace(b"\r\nHost:", b"\r\nConnection: close\r\nHost:", 1)
        numbers = iter(range(self.plan["requests"]))
        started = perf_counter()
        try:
            async with asyncio.timeout(self.plan.get("seconds", 60)), asyncio.TaskGroup() as tasks:
                for _ in range(self.plan["connections"]):
                    tasks.create_task(self.caller(whole, numbers))
        except TimeoutError:
            self.seen.failed += self.plan["requests"] - self.seen.done
        return self.summary(perf_counter() - started)

    async def caller(self, whole: bytes, numbers: Iterator[int]) -> None:
        """Call, one after the other, while there are numbers."""
        for _ in numbers:
            began = perf_counter()
            got = b""
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.plan["port"])
                writer.write(whole)
                got = await reader.read(-1)
                writer.close()
            except OSError:
                pass  # no answer: counted below
            good = got.startswith(b"HTTP/1.1 200") and len(got.partition(END)[2]) == self.expected
            self.seen.done += 1
            self.seen.failed += not good
            self.seen.latencies.append(perf_counter() - began)


async def main() -> None:
    """Run the plan of the command line."""
    run = Run(json.loads(sys.argv[1]))
    try:
        seen = await (run.closing() if run.plan.get("close") else run.go())
    except OSError as why:
        sys.exit(f"load: {why}")
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
