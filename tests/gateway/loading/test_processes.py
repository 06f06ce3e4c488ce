"""The processes that encode: gone when their work is, however it ends, and when the gateway is, however it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config import Configuration, load
from gateway.loading import Loader, Submission, UnreadableError
from gateway.loading.loader import _NOBODY, PORTION
from gateway.loading.submission import BrokenOffError
from gateway.records import Loaded, NewItem
from gateway.sealing import KeyRing

PATH = "/SOA4520/x"
SITE = "upstreams: {a: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /SOA4520, upstream: a}]\n"
BODY = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><q:ask xmlns:q="urn:q">%d</q:ask></s:Body>'
    "</s:Envelope>"
)


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    (tmp_path / "config.yaml").write_text(SITE)
    return load(tmp_path / "config.yaml", {})


def children(of: int) -> set[int]:
    """Return the processes that encode for a process: all its children but multiprocessing's tracker."""
    found = Path(f"/proc/{of}/task").glob("*/children")
    numbers = {int(number) for file in found for number in file.read_text().split()}
    return {number for number in numbers if b"spawn_main" in _command(number)}


def _command(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def gone(processes: set[int]) -> bool:
    """Wait until none of them is at work any more; say whether it came to that."""
    for _ in range(200):
        if not any(b"spawn_main" in _command(one) for one in processes):
            return True
        time.sleep(0.05)
    return False


class Endless:
    """Adds everything, and says after how many."""

    def __init__(self) -> None:
        self.items = 0
        self.some = asyncio.Event()

    async def add(self, run_id: int, items: Sequence[NewItem], /, *, received: int | None) -> Loaded:
        self.items += len(items)
        if self.items > 4 * PORTION:
            self.some.set()
        return Loaded(len(items), 0, received or 0)

    async def set_dictionary(self, run_id: int, sealed: bytes) -> bytes:
        return sealed


async def endless() -> AsyncIterator[bytes]:
    number = 0
    while True:
        yield b"".join(json.dumps({"body": BODY % (number + n)}).encode() + b"\n" for n in range(100))
        number += 100


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing(b"k" * 32)


async def test_an_upload_that_is_cancelled_leaves_no_process(configuration: Configuration, ring: KeyRing) -> None:
    store = Endless()
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(
            loader.take(_NOBODY, ring.new_key()[0], Submission("ndjson", PATH), endless(), offset=0)
        )
        await asyncio.wait_for(store.some.wait(), 60)
        at_work = children(os.getpid())
        assert at_work
        taking.cancel()
    assert taking.cancelled()
    assert gone(at_work)


async def test_what_was_received_stays_when_a_process_is_killed_and_loading_goes_on_there(
    configuration: Configuration, ring: KeyRing
) -> None:
    store = Endless()
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    key, submission = ring.new_key()[0], Submission("ndjson", PATH)
    octets = b"".join(json.dumps({"body": BODY % n}).encode() + b"\n" for n in range(3000))

    async def killed() -> AsyncIterator[bytes]:
        while not store.some.is_set():
            yield octets
        for process in children(os.getpid()):
            os.kill(process, signal.SIGKILL)
        while True:
            yield octets

    with pytest.raises(BrokenOffError, match="go on there"):
        await asyncio.wait_for(loader.take(_NOBODY, key, submission, killed(), offset=0), 60)
    received = store.items
    assert received >= 4 * PORTION

    async def again() -> AsyncIterator[bytes]:
        for _ in range(received // 3000 + 1):
            yield octets

    whole = (received // 3000 + 1) * 3000
    report = await loader.take(replace(_NOBODY, received=received), key, submission, again(), offset=0)
    assert (report.received, report.added) == (whole, whole - received)


async def test_unreadable_in_the_middle_ends_them_too(configuration: Configuration, ring: KeyRing) -> None:
    store = Endless()
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    seen: set[int] = set()

    async def broken() -> AsyncIterator[bytes]:
        whole = endless()
        while not store.some.is_set():
            yield await anext(whole)
        seen.update(children(os.getpid()))
        yield b"x" * (9 << 20)

    with pytest.raises(UnreadableError, match="longer than 8 MiB"):
        await loader.take(_NOBODY, ring.new_key()[0], Submission("ndjson", PATH), broken(), offset=0)
    assert seen
    assert gone(seen)


PROGRAM = """
    import asyncio, sys
    from gateway.config import load
    from gateway.loading import Loader, Submission
    from gateway.sealing import KeyRing
    from tests.gateway.loading.test_processes import Endless, PATH, _NOBODY, endless

    async def main() -> None:
        store = Endless()
        configuration = load(__import__("pathlib").Path(sys.argv[1]), {})
        loader = Loader(lambda: configuration, store.add, store.set_dictionary)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                loader.take(_NOBODY, KeyRing(b"k" * 32).new_key()[0], Submission("ndjson", PATH), endless(), offset=0)
            )
            await store.some.wait()
            print("at work", flush=True)

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.fixture
def gateway(configuration: Configuration, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that loads for ever, in a group of its own, as a terminal starts one."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "config.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background ignores it
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


def test_they_end_with_a_gateway_that_was_killed(gateway: subprocess.Popen[str]) -> None:
    at_work = children(gateway.pid)
    assert at_work
    gateway.kill()
    gateway.wait()
    assert gone(at_work)


def test_a_terminals_interrupt_ends_the_gateway_and_them_without_a_word_of_theirs(
    gateway: subprocess.Popen[str],
) -> None:
    at_work = children(gateway.pid)
    assert at_work
    os.killpg(gateway.pid, signal.SIGINT)
    _, said = gateway.communicate(timeout=30)
    assert gone(at_work)
    assert "KeyboardInterrupt" in said  # this program's own
    assert "spawn" not in said.lower()  # in what a child says of its end
