"""One connection to an upstream: HTTP/1.1 answers by llhttp. What it writes, and how: `gateway.upstream.writing`.

Rules that always hold:
- A byte that belongs to no answer that was asked for (on an idle connection, behind an answer's end) ends the
  connection, and reaches nobody.
- Contradictions in an answer's framing (RFC 9112 section 6.3) are a broken answer: Content-Length twice, or beside
  Transfer-Encoding, bad chunks, a header without end.
- Nothing is raised inside a callback of the event loop: trouble goes to whoever waits, a defect to the loop's handler.

Never decides to repeat anything, and knows no pool.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import cast

import httptools

from gateway.lending import LARGE, MOST_OF_HEAD, Lender
from gateway.upstream.answer import Answer, framing
from gateway.upstream.tls import Tls
from gateway.upstream.troubles import BrokenAnswerError, UnreachableError, UpstreamError, tls_trouble
from gateway.upstream.writing import WritingHalf

MAX_HEAD = 65_536  #: bytes of an answer's header: as Envoy and nginx bound it, an order above what any stack sends
_OVERSIZE = "its header is larger than 64 KiB"


class Connection(WritingHalf):
    """A connection, one exchange at a time. `on_over` is called once, when it has ended."""

    def __init__(
        self, sock: socket.socket, tls: Tls | None, on_over: Callable[["Connection"], None], buffer: Lender
    ) -> None:
        super().__init__(sock, tls)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._buffer = buffer
        self._on_over = on_over
        self._parser = httptools.HttpResponseParser(self)
        self.secured: asyncio.Future[None] = self._loop.create_future()
        self.idle_since = 0.0
        # The exchange under way.
        self.answer: Answer | None = None
        self.handed_out = False  #: somebody has looked at the answer
        self.reusable = False  #: the answer ended in order, and the upstream keeps the connection
        self._on_news: Callable[[], None] | None = None
        self._once = True
        self._on_complete: Callable[[], None] | None = None
        self._bodiless = self._discarding = False
        self._until_end = False  # the body ends with the connection
        self._fields: list[tuple[bytes, bytes]] = []
        self._reason, self._head_size, self._body_size = b"", 0, 0
        self._left = 0  # octets of a large body that come next, past llhttp, which has read its header
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
            self._tell()
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
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if self.closed:
            return
        data: memoryview | bytes = self._buffer.view[:nbytes]
        if self._tls is not None:
            try:
                data = self._decrypted(self._tls, data)
            except ssl.SSLError as error:
                self._tls_failed(self._tls, error)
                return
            if self._tls.closed_in_order:
                self._transport.close()
        if data:
            self._parse(data)

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

    @property
    def usable(self) -> bool:
        """Whether a request may be written: the connection has not ended, and is not about to."""
        return not (self.closed or self._transport.is_closing())

    @property
    def quiet(self) -> bool:
        """Whether nothing waits to be read: not the upstream's end either, which the loop may find out a turn later."""
        return not self._poll.poll(0)

    # Reading.

    def begin(
        self, *, bodiless: bool, on_news: Callable[[], None], once: bool, on_complete: Callable[[], None]
    ) -> Answer:
        """Expect an answer. `bodiless`: HEAD was asked.

        `on_complete` is called when its last byte has come; `on_news` once its header is there, or never will be, and
        all was read that came with it, and from then on when there is more of it, or will be no more, unless `once`.
        """
        self.answer = answer = Answer(self._pause_reading, self._resume_reading)
        self._on_news, self._once = on_news, once
        self._on_complete = on_complete
        self._bodiless = bodiless
        self.handed_out = self.wrote = self.reusable = self._discarding = self._until_end = False
        self._head_size = self._left = 0
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
        """Expect nothing any more. What nobody took of an answer may have stopped the reading."""
        if self.answer is not None:
            self.answer.take_pieces()
        self.answer = self._on_news = self._on_complete = None

    def fail(self, trouble: UpstreamError) -> None:
        """Tell whoever waits for the answer that it will not come, or not whole."""
        if self.answer is not None and not self.answer.complete and self.answer.trouble is None:
            self.answer.fail(trouble)
            self._tell()

    def _tell(self) -> None:
        on_news = self._on_news
        if self._once:
            self._on_news = None
        if on_news is not None:
            on_news()

    def _parse(self, data: bytes | memoryview) -> None:
        answer = self.answer
        if answer is None or answer.complete:
            self._surplus()
            return
        if not answer.status:
            self._head_size += len(data)
        try:
            self._feed(answer, data)
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
        elif answer.status and self._on_news is not None:
            # After the whole: its end may give a slot to the next call. Such calls go out before any answer that came
            # at the same time is relayed (else half a millisecond of each slot's time is lost, measured).
            if self._is_bulk:
                self._loop.call_soon(self._on_news)
                self._on_news = None
            else:
                self._tell()

    def _feed(self, answer: Answer, data: bytes | memoryview) -> None:
        had_head = answer.status
        if self._left:
            data = self._pass(data)
        elif len(data) >= LARGE and not had_head:
            head = bytes(data[:MOST_OF_HEAD]).find(b"\r\n\r\n") + 4
            self._parser.feed_data(data[:head])
            self._measure(answer)
            data = self._pass(data[head:]) if self._left else data[head:]
        if data:
            self._parser.feed_data(data)
            if not had_head:
                self._measure(answer)

    def _measure(self, answer: Answer) -> None:
        """Note how much is to come of a large body whose length is known: it need not go through llhttp."""
        if answer.length is not None and answer.has_body and not (answer.complete or self._fault or self._left):
            left = answer.length - self._body_size
            self._left = left if left >= LARGE else 0

    def _pass(self, data: bytes | memoryview) -> bytes | memoryview:
        """Take what comes of a large body as it is; return what is behind its end."""
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        if len(piece) >= LARGE and isinstance(piece, memoryview) and not self._discarding:
            self._buffer.lend()
            self.on_body(piece)
        elif piece:
            self.on_body(bytes(piece))
        if not self._left:
            self._complete()
            self._parser = httptools.HttpResponseParser(self)
        return rest

    def _broken(self, what: str) -> None:
        self.fail(BrokenAnswerError(f"the upstream's answer cannot be used: {what}", bytes_written=True))
        self.abort()

    def _surplus(self) -> None:
        """End a connection on which too much came. The answer before it stands if somebody has seen it."""
        if self.answer is not None and not self.handed_out:
            self.answer.complete = False
            self.fail(BrokenAnswerError("the upstream sent more than one answer", bytes_written=True))
            self.abort()
        else:
            self.abort()
            self._tell()  # the end of the answer that stands may have come with the surplus

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
        self._body_size = 0
        answer.has_body = not self._bodiless and status not in (204, 304)
        self._until_end = answer.has_body and length is None and not has_coding
        if self._bodiless:
            self._complete()

    def on_body(self, data: bytes | memoryview) -> None:
        """Take a piece of the body; what HEAD is answered with should have none, and has none for anybody."""
        self._body_size += len(data)
        if self.answer is not None and not (self.answer.complete or self._discarding or self._fault):
            self.answer.feed(data)

    def on_message_complete(self) -> None:
        """Complete the answer; an interim one (1xx) is over, and forgotten."""
        if self.answer is not None and self.answer.status and not self._fault:
            self._complete()
