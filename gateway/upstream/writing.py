"""The half of a connection to an upstream that writes: real-time requests at once, bulk ones past the guard.

Rules that always hold:
- `send_guarded` asks before every send to the kernel, and gives the kernel no more than it takes at once: nothing of
  the request waits in a buffer that would leave the process after the answer to the question has changed.
- `wrote` is true once a byte may have left, and stays so until the next exchange begins.
- Who waits for room is woken when there is some, and when the connection ends.

Never decides to repeat anything.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from gateway.upstream.tls import Tls
from gateway.upstream.troubles import BrokenAnswerError, GuardClosedError, UpstreamTimeoutError

PIECE = 65_536  #: bytes of a bulk request that are encrypted between two questions to the guard
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ORDERLY_CLOSE = struct.pack("ii", 0, 0)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)


class WritingHalf(asyncio.BufferedProtocol):
    """What `gateway.upstream.connection` writes with."""

    def __init__(self, sock: socket.socket, tls: Tls | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._tls = tls
        self._transport: asyncio.Transport
        self._drained: asyncio.Future[None] | None = None
        self._paused_writing = False
        self._is_bulk = False
        self.closed = False
        self.wrote = False  #: a byte of the request may have left

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """Wake who waits for room in the transport's buffer."""
        self._paused_writing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def send(self, *pieces: bytes | memoryview) -> None:
        """Send octets of a real-time request; what the kernel does not take waits in the transport (see `drained`)."""
        if self.closed:
            raise BrokenAnswerError("the connection was closed before the request was sent", bytes_written=self.wrote)
        self.wrote = True
        if self._tls is not None:
            pieces = tuple([self._tls.encrypt(piece) for piece in pieces])
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    async def drained(self) -> None:
        """Wait until the transport has room."""
        while self._paused_writing and not self.closed:
            self._drained = self._loop.create_future()
            await self._drained

    async def send_guarded(self, data: bytes, may_send: Callable[[], bool]) -> None:
        """Send bytes of a bulk request, asking before each send to the kernel.

        Raises:
            GuardClosedError: it may not be sent, and no byte of the request was.
            UpstreamTimeoutError: it may not be sent on, midway. The caller must `abort`.
            BrokenAnswerError: the connection ended.
        """
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            while self._transport.get_write_buffer_size() and not self.closed:  # TLS's own: key updates, alerts
                await self._kernel_takes_more()
            if self._tls is not None:  # a record that is sealed is counted: it must be sent
                self._ask(may_send)
                piece = self._tls.encrypt(piece)
            await self._push(piece, may_send)

    async def _push(self, data: bytes, may_send: Callable[[], bool]) -> None:
        rest = memoryview(data)
        while rest:
            self._ask(may_send)
            try:
                sent = self._sock.send(rest)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                what = f"the connection broke while the request was sent ({type(error).__name__})"
                raise BrokenAnswerError(what, bytes_written=self.wrote) from error
            self.wrote = self.wrote or sent > 0
            rest = rest[sent:]
            if rest:
                await self._kernel_takes_more()

    def _ask(self, may_send: Callable[[], bool]) -> None:
        if self.closed:
            raise BrokenAnswerError("the connection ended while the request was sent", bytes_written=self.wrote)
        if not may_send():
            if not self.wrote:
                raise GuardClosedError
            raise UpstreamTimeoutError("the slot's time was over before the request was sent whole", bytes_written=True)

    async def _kernel_takes_more(self) -> None:
        # The loop lets nobody watch a descriptor that it has given a transport; but a second one for the same socket.
        twin = self._sock.dup()
        self._drained = ready = self._loop.create_future()
        self._loop.add_writer(twin.fileno(), self.resume_writing)
        try:
            await ready
        finally:
            self._loop.remove_writer(twin.fileno())
            twin.close()

    def mark_bulk(self, call_timeout: float) -> None:
        """Have an abort drop what the kernel still holds, and a dead peer be found out, while a call is in flight."""
        self._is_bulk = True
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if _USER_TIMEOUT is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(call_timeout * 1000))

    def unmark_bulk(self) -> None:
        """Take back what `mark_bulk` set, before the connection serves another call."""
        self._is_bulk = False
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY_CLOSE)
            if _USER_TIMEOUT is not None:
                self._sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, 0)
