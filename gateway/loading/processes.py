"""The processes that make items of entries, so that the event loop, and with it real-time, does not feel it.

Rules that always hold:
- They are started when they are first needed, give way to this process, and are gone when their work is (`close`), or
  when this process is, however it ended.
- Nothing is shared with them: what they need and what they make goes to and fro, some hundred entries at a time.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import ParamSpec, TypeVar

from gateway.loading.encoding import Encoded, Encoder
from gateway.loading.submission import BrokenOffError, Raw
from gateway.sealing import train

P = ParamSpec("P")
T = TypeVar("T")
NICENESS = 10
"""They get what the gateway leaves: about a tenth of its share where both want a processor."""
_LOST = "A process that reads entries ended (too little memory?). What was received stays; go on there."


class Processes:
    """Encodes elsewhere. `close` must be called."""

    def __init__(self, encoder: Encoder, count: int) -> None:
        self.count = count
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin, initargs=(encoder,))
        self._dictionary = b""

    def encode(self, number: int, entries: Sequence[Raw]) -> "asyncio.Future[Encoded]":
        """Have a portion encoded; await it with `result_of`."""
        return self._submit(_encoded, self._dictionary, number, entries)

    async def dictionary(self, entries: Sequence[Raw]) -> bytes:
        """Return a dictionary made of these entries; empty where they do not make one."""
        return await result_of(self._submit(_trained, entries))

    def use(self, dictionary: bytes) -> None:
        """Compress with a dictionary from now on."""
        self._dictionary = dictionary

    async def close(self) -> None:
        """End them; what they are at is given up after its portion."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def _submit(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> "asyncio.Future[T]":
        # What starts here inherits what is blocked: a terminal sends its interrupt to all, and the gateway ends us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return asyncio.wrap_future(self._pool.submit(call, *args, **named))
        except BrokenProcessPool:
            raise BrokenOffError(_LOST) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def result_of(work: "asyncio.Future[T]") -> T:
    """Return what was made. Raises BrokenOffError where the process that made it ended."""
    try:
        return await work
    except BrokenProcessPool:
        raise BrokenOffError(_LOST) from None


# In the processes.

_ENCODER: list[Encoder] = []
_USED: list[bytes] = [b""]


def _begin(encoder: Encoder) -> None:
    os.nice(NICENESS)
    threading.Thread(target=_end_with_the_gateway, daemon=True).start()
    _ENCODER.append(encoder)


def _end_with_the_gateway() -> None:
    """Waits until the gateway is gone: killed, it cannot say so, and we would wait for work and hold its keys."""
    gateway = parent_process()
    assert gateway is not None
    connection.wait([gateway.sentinel])
    os._exit(1)


def _encoded(dictionary: bytes, number: int, entries: Sequence[Raw]) -> Encoded:
    if dictionary != _USED[0]:
        _ENCODER[0].use(dictionary)
        _USED[0] = dictionary
    return _ENCODER[0].encoded(number, entries)


def _trained(entries: Sequence[Raw]) -> bytes:
    return train(_ENCODER[0].samples(entries))
