"""Freezes: a gateway stopped (SIGSTOP) in random phases of bulk calls, longer than the source may work on them.

Counted at the source, which reads octets as a real one does: how many requests it worked on at once. A call whose guard
said no midway is aborted: the source sees half a request and then a reset, and that is no request. In this process run
the source and the clients; the gateway is a process of its own.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from gateway.occupancy import boot_id
from tests.conftest import closed, envelope, post

ROUNDS = 25
HOLD_S = 0.6
"""T of the gateway under test: call timeout 0.3 s and hold 0.3 s."""


class SlowSource:
    """Reads requests, slowly if told so, works on each for some time, and counts those in progress.

    A call is in progress from its header read, as a source may begin to work then, until its work is done, whether or
    not anybody still waits for it: sometimes longer than the gateway waits, and never as long as its slot is held.
    """

    def __init__(self, *, reads_slowly: bool) -> None:
        self._reads_slowly = reads_slowly
        self._dice = Random(1)
        self.now = self.peak = self.whole = self.partial = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.now += 1
                self.peak = max(self.peak, self.now)
                try:
                    await self._body(reader, int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                    await asyncio.sleep(self._dice.choice([0.03, 0.03, 0.03, 0.4]))
                finally:
                    self.now -= 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def _body(self, reader: asyncio.StreamReader, left: int) -> None:
        try:
            while left:
                data = await reader.read(min(left, 65536))
                if not data:
                    raise ConnectionResetError
                left -= len(data)
                if self._reads_slowly:
                    await asyncio.sleep(0.005)
        except ConnectionError:
            self.partial += 1
            raise
        self.whole += 1


@asynccontextmanager
async def gateway_process(folder: Path, source: int, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "data").mkdir()
    left = {"boot": boot_id(), "hold_s": HOLD_S, "clean": True, "busy": []}
    (folder / "data" / "busy_until.json").write_text(json.dumps(left))
    config = folder / "config.yaml"
    # Calls time out by the dozen here, and are to go on all the same: no breaker.
    config.write_text(f"""
data_dir: data
listeners: [{{address: 127.0.0.1, port: {port}}}]
telemetry: {{address: 127.0.0.1, port: 0}}
upstreams: {{bcss: {{url: "http://127.0.0.1:{source}", call_timeout: 300ms, hold: 300ms}}}}
routes: [{{prefix: /, upstream: bcss}}]
bulk: {{refusal_delay: 0s, queue_time: 60s, margin_min: 0s, margin_max: 1s}}
runs: {{burst_faults: 1000, burst_calls: 1000, burst_time: 10ms}}
windows: {{exceptions: [{{from: "{hours(-1)}", to: "{hours(3)}", owner: tests, reason: "a source of its own"}}]}}
""")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "serve", "--config", str(config), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                await closed(writer)
                break
            await asyncio.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        await asyncio.wait_for(process.wait(), 40)


def hours(number: int) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(hours=number)).isoformat(timespec="seconds")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("size", "reads_slowly"), [(1_000, False), (1_000_000, False), (1_000_000, True)], ids=["1kB", "1MB", "1MB-slow"]
)
async def test_the_cap_holds_through_freezes_in_any_phase(tmp_path: Path, size: int, reads_slowly: bool) -> None:
    source = SlowSource(reads_slowly=reads_slowly)
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0, limit=1 << 16)
    dice = Random(size + reads_slowly)
    body = envelope().replace(b"hello", b"x" * size)
    port, over = free_port(), False
    rounds = ROUNDS if size < 10_000 else (ROUNDS + 1) // 2
    answers: list[bytes] = []

    async def caller() -> None:
        while not over:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(post("/bulk/x", body, "Connection: close"))
                    async with asyncio.timeout(5):
                        answers.append((await reader.readuntil(b"\r\n"))[:12])
                finally:
                    writer.transport.abort()

    address = server.sockets[0].getsockname()[1]
    async with gateway_process(tmp_path, address, port) as process, asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(caller())
        for _ in range(rounds):
            await asyncio.sleep(dice.uniform(0.02, 0.25))
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(dice.choice([0.05, 0.2, HOLD_S + 0.2]))
            process.send_signal(signal.SIGCONT)
        await asyncio.sleep(HOLD_S)
        over = True
    server.close()
    # Calls went on all the time, whatever the machine's speed: one in two rounds at the least.
    assert answers.count(b"HTTP/1.1 200") > rounds // 2, answers[-20:]
    assert source.whole > rounds // 2
    assert source.peak <= 4, f"{source.peak} calls at once at a source with a cap of 4"
