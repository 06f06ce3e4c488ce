"""One connection to an upstream: HTTP/1.1 answers by llhttp, writes that the guard can stand before.

Rules that always hold:
- A byte that belongs to no answer that was asked for (on an idle connection, behind an answer's end) ends the
  connection, and reaches nobody.
- Contradictions in an answer's framing (RFC 9112 section 6.3) are a broken answer: Content-Length twice, or beside
  Transfer-Encoding, bad chunks, a header without end.
- `send_guarded` asks before every send to the kernel, and gives the kernel no more than it takes at once: nothing of
  the request waits in a buffer that would leave the process after the answer to the question has changed.
- Nothing is raised inside a callback of the event loop: trouble goes to whoever waits, a defect to the loop's handler.

Never decides to repeat anything, and knows no pool.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast

import httptools

from gateway.upstream.answer import Answer, framing
from gateway.upstream.tls import Tls
from gateway.upstream.troubles import (
    BrokenAnswerError,
    GuardClosedError,
    UnreachableError,
    UpstreamError,
    UpstreamTimeoutError,
    tls_trouble,
)

MAX_HEAD = 65_536  #: bytes of an answer's header: as Envoy and nginx bound it, an order above what any stack sends
_OVERSIZE = "its header is larger than 64 KiB"
PIECE = 65_536  #: bytes of a bulk request that are encrypted between two questions to the guard
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ORDERLY_CLOSE = struct.pack("ii", 0, 0)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)


class Connection(asyncio.BufferedProtocol):
    """A connection, one exchange at a time. `on_over` is called once, when it has ended."""

    def __init__(
        self, sock: socket.socket, tls: Tls | None, on_over: Callable[["Connection"], None], buffer: memoryview
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._tls = tls
        self._buffer = buffer
        self._on_over = on_over
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._drained: asyncio.Future[None] | None = None
        self._paused_writing = False
        self.secured: asyncio.Future[None] = self._loop.create_future()
        self.closed = False
        self.idle_since = 0.0
        # The exchange under way.
        self.answer: Answer | None = None
        self.head: asyncio.Future[None] | None = None  #: done when the header is there, or never will be
        self.handed_out = False  #: somebody has looked at the answer
        self.wrote = False  #: a byte of the request may have left
        self.reusable = False  #: the answer ended in order, and the upstream keeps the connection
        self._on_complete: Callable[[], None] | None = None
        self._bodiless = self._is_bulk = self._discarding = False
        self._until_end = False  # the body ends with the connection
        self._fields: list[tuple[bytes, bytes]] = []
        self._reason, self._head_size = b"", 0
        self._fault = ""  # what a callback of the parser found wrong

    # The life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; with TLS, by its handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)  # what is written goes to the kernel at once
        if self._tls is not None:
            self._transport.write(self._tls.handshake())
        else:
            self.secured.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever waits is told; a body that lasts until the end is complete, if the end was an orderly one."""
        self.closed = True
        in_order = exc is None and (self._tls is None or self._tls.closed_in_order)
        if self._until_end and in_order and self.answer is not None and not self.answer.complete:
            self._complete()
        what = "reset" if exc is not None else "closed"
        why = f"the connection was {what} before the answer was complete"
        self.fail(BrokenAnswerError(why, bytes_written=self.wrote))
        if not self.secured.done():
            self.secured.set_exception(UnreachableError(f"the connection was {what} during the TLS handshake"))
            self.secured.exception()  # whoever dialled may be gone
        self.resume_writing()
        self._on_over(self)

    def eof_received(self) -> None:
        """Close: a peer that will send no more is of no use (None closes the transport)."""

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Lend the pool's buffer: what is received is read at once, so all connections share it."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if self.closed:
            return
        data: memoryview | bytes = self._buffer[:nbytes]
        if self._tls is not None:
            try:
                data = self._decrypted(self._tls, data)
            except ssl.SSLError as error:
                self._tls_failed(self._tls, error)
                return
        if data:
            self._parse(data)
        if self._tls is not None and self._tls.closed_in_order:
            self._transport.close()

    def _decrypted(self, tls: Tls, data: bytes | memoryview) -> bytes:
        if not tls.established:
            reply = tls.handshake(data)
            if reply:
                self._transport.write(reply)
            if not tls.established:
                return b""
            if not self.secured.done():
                self.secured.set_result(None)
            data = b""  # what came behind the handshake is in the session's memory
        plain = tls.decrypt(data)
        if own := tls.pending():
            self._transport.write(own)
        return plain

    def _tls_failed(self, tls: Tls, error: ssl.SSLError) -> None:
        trouble = tls_trouble(error, bytes_written=self.wrote)
        if not self.secured.done():
            self.secured.set_exception(trouble)
            self.secured.exception()  # whoever dialled may be gone
        self.fail(trouble)
        if alert := tls.pending():
            self._transport.write(alert)
        self._transport.close()

    def abort(self) -> None:
        """End at once: what the kernel still holds of a bulk request is dropped (`mark_bulk`), no answer is whole."""
        self.reusable, self.closed, self._until_end = False, True, False
        self._transport.abort()

    def close(self) -> None:
        """End in order."""
        self.reusable, self.closed = False, True
        self._transport.close()

    # Reading.

    def begin(self, *, bodiless: bool, on_complete: Callable[[], None]) -> Answer:
        """Expect an answer; `on_complete` is called when its last byte has come. `bodiless`: HEAD was asked."""
        self.answer = answer = Answer(self._pause_reading, self._resume_reading)
        self.head = self._loop.create_future()
        self._on_complete = on_complete
        self._bodiless = bodiless
        self.handed_out = self.wrote = self.reusable = self._discarding = self._until_end = False
        self._head_size = 0
        return answer

    def discard(self) -> None:
        """Read on to the answer's end and forget it: its caller is gone, and the source may still be working."""
        self._discarding = self.handed_out = True
        if self.answer is not None:
            self.answer.take()
        self._resume_reading()

    def on_complete_from_now(self, on_complete: Callable[[], None]) -> None:
        """Call `on_complete` instead of what `begin` was given."""
        self._on_complete = on_complete

    def end(self) -> None:
        """Expect nothing any more."""
        self.answer = self.head = self._on_complete = None

    def fail(self, trouble: UpstreamError) -> None:
        """Tell whoever waits for the answer that it will not come, or not whole."""
        if self.answer is not None and not self.answer.complete and self.answer.trouble is None:
            self.answer.fail(trouble)
            _resolve(self.head)

    def _parse(self, data: bytes | memoryview) -> None:
        answer = self.answer
        if answer is None or answer.complete:
            self._surplus()
            return
        if not answer.status:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fault = "it switches protocols, which nobody asked for"
        except httptools.HttpParserError:
            self._fault = self._fault or "it is not HTTP as RFC 9112 defines it"
        if answer.complete and self._fault:
            self._surplus()
        elif self._fault:
            self._broken(self._fault)
        elif not answer.status and self._head_size > MAX_HEAD:
            self._broken(_OVERSIZE)
        elif answer.status and self.head is not None and not self.head.done():
            # After the whole: its end may give a slot to the next call. Such calls go out before any answer that came
            # at the same time is relayed (else half a millisecond of each slot's time is lost, measured).
            if self._is_bulk:
                self._loop.call_soon(_resolve, self.head)
            else:
                _resolve(self.head)

    def _broken(self, what: str) -> None:
        self.fail(BrokenAnswerError(f"the upstream's answer cannot be used: {what}", bytes_written=True))
        self.abort()

    def _surplus(self) -> None:
        """End a connection on which too much came. The answer before it stands if somebody has seen it."""
        if self.answer is not None and not self.handed_out:
            self.answer.complete = False
            self.fail(BrokenAnswerError("the upstream sent more than one answer", bytes_written=True))
        self.abort()

    def _complete(self) -> None:
        answer, on_complete = self.answer, self._on_complete
        if answer is None or answer.complete or answer.trouble is not None:
            return
        # What HEAD is answered with may announce a body that does not come: the parser would wait for it.
        self.reusable = not self._bodiless and not self._until_end and self._parser.should_keep_alive()
        answer.complete = True
        if on_complete is not None:
            try:
                on_complete()  # before this answer is relayed: it may give a slot to the next call
            except Exception as error:  # noqa: BLE001  # else llhttp takes it for a fault of the answer
                self._loop.call_exception_handler({"message": "a defect", "exception": error})
        answer.finish()

    def _pause_reading(self) -> None:
        if not self.closed and not self._discarding:
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self.closed:
            self._transport.resume_reading()

    # What llhttp says. Exceptions would be lost in it, so faults are noted.

    def on_message_begin(self) -> None:
        """Begin a message; behind a complete answer nothing may begin."""
        self._fields = []
        self._reason = b""
        if self.answer is None or self.answer.complete:
            self._fault = "more than one answer"

    def on_status(self, reason: bytes) -> None:
        """Take (a part of) the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """Take a field."""
        self._fields.append((name, value or b""))

    def on_headers_complete(self) -> None:
        """Take an answer's header, unless it is an interim one."""
        answer = self.answer
        status = self._parser.get_status_code()
        if answer is None or answer.complete or status < 200:
            return
        if self._head_size > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in self._fields) > MAX_HEAD:
            self._fault = _OVERSIZE
            return
        length, has_coding, self._fault = framing(self._fields)
        if self._fault:
            return
        answer.status = status
        answer.reason = self._reason
        answer.http_minor = 0 if self._parser.get_http_version() == "1.0" else 1
        answer.headers = self._fields
        answer.length = length
        answer.has_body = not self._bodiless and status not in (204, 304)
        self._until_end = answer.has_body and length is None and not has_coding
        if self._bodiless:
            self._complete()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.answer is not None and not self._discarding and not self._fault:
            self.answer.feed(data)

    def on_message_complete(self) -> None:
        """Complete the answer; an interim one (1xx) is over, and forgotten."""
        if self.answer is not None and self.answer.status and not self._fault:
            self._complete()

    # Writing.

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """Wake who waits for room in the transport's buffer."""
        self._paused_writing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def send(self, *pieces: bytes) -> None:
        """Send octets of a real-time request; what the kernel does not take waits in the transport (see `drained`)."""
        if self.closed:
            raise BrokenAnswerError("the connection was closed before the request was sent", bytes_written=self.wrote)
        self.wrote = True
        if self._tls is not None:
            pieces = tuple(map(self._tls.encrypt, pieces))
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


def _resolve(head: asyncio.Future[None] | None) -> None:
    if head is not None and not head.done():
        head.set_result(None)
