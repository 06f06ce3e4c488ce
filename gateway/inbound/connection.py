"""A client's connection: requests by llhttp, strictly; bounds on time, size and number; one call after the other.

Of our own, because the guard, the octets and the parked calls are what this product is for: aiohttp's server in this
place cost a third of a call's CPU and three times the memory of a parked one (measured), and lost the octets behind an
`Upgrade` that it ignored.

Rules that always hold:
- llhttp reads strictly: Content-Length twice, or beside Transfer-Encoding, signs, lists and overflow, bare CR or LF,
  folded lines, NUL, white space before a colon, odd chunk sizes are answered with 400, and the connection closes.
- A request's header has its time and its size, an idle connection its time; so has a body (`gateway.inbound.request`).
- A client that closes, or half-closes, its side counts as gone: the handler is cancelled, wherever it is.
- Pipelined requests are answered in their order, one at a time; of those not begun a bounded number is read.
- An offer to upgrade is ignored, and nothing behind it is lost.
- A connection that is closed with a request's body unread lingers, so that the client gets to read why.

Never decides what becomes of a call, and never quotes what it read.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from gateway.inbound.request import BrokenBodyError, Inbound, reset_on_close, subject_of, without_offer
from gateway.inbound.turns import BEGIN_S

if TYPE_CHECKING:
    from gateway.inbound.listener import Listener

MAX_PIPELINED = 16
"""Requests behind the one in progress that are read before reading pauses."""
_TLS = "it looks like TLS, and this port speaks plain HTTP; call it with http://, or configure `tls` for it"
LINGER_S = 2.0
"""How long a connection that is closed early still swallows what the client sends."""
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 67\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\nThe gateway has too many connections open. Try again in 5 seconds.\n"
)


class Connection(asyncio.BufferedProtocol):
    """A client connection. Made by `Listener`."""

    __slots__ = (
        "_closing",
        "_current",
        "_drained",
        "_fault",
        "_fields",
        "_header_timer",
        "_holds",
        "_listener",
        "_offer",
        "_parser",
        "_queued",
        "_receiving",
        "_sock_paused",
        "_target",
        "_task",
        "_transport",
        "_unread",
        "_writing_paused",
        "memory",
        "peer",
        "subject",
    )

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._offer: bytes | None = None  # the request line of a request that offers to upgrade
        self._unread = 0  # octets since something was understood: a header, chunk sizes or trailers without end
        self._receiving: Inbound | None = None  # whose body is coming
        self._current: Inbound | None = None  # whose handler runs
        self._queued: deque[Inbound] | None = None  # pipelined behind it
        self._task: asyncio.Task[None] | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._fault: tuple[int, str] | None = None  # what is wrong with what came behind the requests so far
        self._closing = False  # nothing more is understood
        self._holds = 0  # reasons why reading pauses
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self.memory: object = None  #: what the handler wants to know again at the next call
        self.peer = ""  #: the client's address
        self.subject = ""  #: the subject of its TLS certificate, verified by the handshake, or empty

    # The life of the connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        listener = self._listener
        listener.connections.add(self)
        if len(listener.connections) > listener.limits.connections:
            listener.on_refused_connection()
            self._closing = True
            self._transport.write(_OVERLOADED)
            self._transport.close()
            return
        # An answer goes to the kernel when it is written, not at the end of the loop's turn: whoever waits for it does
        # not wait for the books that are kept behind it.
        self._transport.set_write_buffer_limits(0)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        if (certificate := transport.get_extra_info("peercert")) is not None:
            self.subject = subject_of(certificate)
        listener.now_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended makes no difference
        """Cancel the call in progress; forget those behind it."""
        self._transport = None
        self._closing = True
        listener = self._listener
        listener.connections.discard(self)
        listener.idle.pop(self, None)
        listener.crowd.forget(self)
        self._forget_header()
        self._queued = self._parser = None  # the parser refers to this connection: no work for the garbage collector
        if self._task is not None:
            self._task.cancel()
        self.resume_writing()

    def eof_received(self) -> None:
        """Count a half-closed client as gone: closing cancels its call (asyncio closes when this returns None)."""

    def close(self) -> None:
        """Close after what was written."""
        self._closing = True
        self._forget_header()
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """End at once, with a reset."""
        self._closing = True
        if self._transport is not None:
            if (sock := self._transport.get_extra_info("socket")) is not None:
                reset_on_close(sock)
            self._transport.abort()

    def cancel(self) -> None:
        """End at once, call in progress included: the gateway stops."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # Reading.

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Lend the listener's buffer: what is received is read at once, so all connections share it."""
        return self._listener.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came: now, or when there is time for it."""
        data = self._listener.buffer[:nbytes]
        if self._current is not None or not self._listener.crowd.keeps(self, data):
            self.take(data)

    def take(self, data: memoryview | bytes) -> None:
        """Parse what came."""
        if self._closing or self._fault is not None:
            return
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        if self._current is None:
            self._listener.idle.pop(self, None)
        self._unread += len(data)
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._without_offer() + bytes(data[offer.args[0] :])
                self._parser = httptools.HttpRequestParser(self)
                continue
            except httptools.HttpParserCallbackError as error:
                self._listener.on_defect(error.__context__ or error)
                self.reset()
            except httptools.HttpParserError as error:
                self._unreadable(400, _TLS if data[:1] == b"\x16" else str(error))
            break
        if self._unread > self._listener.limits.head_size and self._fault is None:
            self._unreadable(431, "its header is too large")
        elif self._receiving is None and self._unread and self._header_timer is None:
            time = self._listener.limits.header_time
            self._header_timer = asyncio.get_running_loop().call_later(time, self._header_is_late)

    def _without_offer(self) -> bytes:
        line, self._offer = self._offer, None
        return without_offer(line, self._fields) if line is not None else b""

    def _header_is_late(self) -> None:
        self._header_timer = None
        if self._current is None:
            self._unreadable(408, "its header took too long to arrive")

    def _forget_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _unreadable(self, status: int, why: str) -> None:
        """Answer what is no request, once the requests before it have been answered."""
        self._fault = (status, why)
        self._forget_header()
        if self._receiving is not None:
            self._receiving.fail(BrokenBodyError(why))
            self._receiving = None
        elif self._current is None:
            self._say_fault()

    def _say_fault(self) -> None:
        assert self._fault is not None
        self.write(self._listener.on_malformed(*self._fault))
        self._linger()

    def _linger(self) -> None:
        """Close, but let the client read first: unread octets would make the close a reset, and the answer be lost."""
        self._closing = True
        if (transport := self._transport) is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
            self._holds = 0
            transport.resume_reading()
            asyncio.get_running_loop().call_later(LINGER_S, self.close)
        else:
            transport.close()

    def rest(self) -> None:
        """Do without a parser until more comes: a call that waits for long needs none."""
        if self._receiving is None and not self._unread and not self._queued:
            self._parser = None

    def hold_reading(self) -> None:
        """Stop reading until `go_on_reading` was called as often."""
        self._holds += 1
        if self._holds == 1 and self._transport is not None:
            self._transport.pause_reading()

    def go_on_reading(self) -> None:
        """Read on."""
        self._holds = max(0, self._holds - 1)
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # What llhttp says. Exceptions would be lost in it.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._target = b""
        self._fields = []

    def on_url(self, part: bytes) -> None:
        """Take (a part of) the target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """Take a field; trailers come here too, and are dropped."""
        if self._receiving is None:
            self._fields.append((name, value or b""))

    def on_headers_complete(self) -> None:
        """Take a request: its handler begins, unless another is in progress."""
        parser, listener = self._parser, self._listener
        if parser is None or self._closing or self._fault is not None:
            return
        if self._unread > listener.limits.head_size:  # may be too large; counted only then
            size = sum(len(name) + len(value) + 4 for name, value in self._fields) + len(self._target)
            if size > listener.limits.head_size:
                self._unreadable(431, "its header is too large")
                return
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            self._offer = b"%s %s HTTP/1.1" % (parser.get_method(), self._target)
            return
        inbound = Inbound(
            self,
            listener.limits,
            parser.get_method(),
            self._target,
            self._fields,
            speaks_11=parser.get_http_version() != "1.0",
            keeps_alive=parser.should_keep_alive(),
        )
        self._receiving = inbound
        self._unread = 0
        if self._header_timer is not None:
            self._forget_header()
        if self._current is None:
            self._begin(inbound)
        else:
            self._enqueue(inbound)

    def on_chunk_header(self) -> None:
        """Note that a chunk's size was understood."""
        self._unread = 0

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._unread = 0
        if self._receiving is not None:
            self._receiving.feed(data)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._unread = 0
        if self._receiving is not None:
            self._receiving.finish()
            self._receiving = None

    # One call after the other.

    def _begin(self, inbound: Inbound) -> None:
        self._current = inbound
        listener = self._listener
        if listener.is_mass(inbound.target):
            listener.turns.do(BEGIN_S, self._begin_current)
        else:
            self._task = listener.tasks.create_task(self._serve(inbound))

    def _begin_current(self) -> bool:
        """Begin the call whose turn has come, unless its client has gone."""
        if self._transport is None or self._current is None:
            return False
        self._task = self._listener.tasks.create_task(self._serve(self._current))
        return True

    def _enqueue(self, inbound: Inbound) -> None:
        if self._queued is None:
            self._queued = deque()
        self._queued.append(inbound)
        if len(self._queued) == MAX_PIPELINED:
            self.hold_reading()

    async def _serve(self, inbound: Inbound) -> None:
        goes_on = False
        try:
            goes_on = await self._listener.handler(inbound)
        except Exception as error:  # noqa: BLE001  # the last stop: it is reported, and the caller gets an answer
            self._listener.on_defect(error)
            if inbound.sent:
                self.reset()
            else:
                self.write(self._listener.on_malformed(500, ""))
        finally:
            self._task = self._current = None
        self._next(inbound, goes_on=goes_on)

    def _next(self, before: Inbound, *, goes_on: bool) -> None:
        if self._transport is None or self._closing:
            return
        if not goes_on and before.body_is_here:
            self.close()
        elif not (goes_on and before.body_is_here):
            self._linger()
        elif self._queued:
            if len(self._queued) == MAX_PIPELINED:
                self.go_on_reading()
            self._begin(self._queued.popleft())
        elif self._fault is not None:
            self._say_fault()
        elif self._header_timer is None:
            self._listener.now_idle(self)

    # Writing.

    def write(self, data: bytes | list[bytes]) -> bool:
        """Write octets, or pieces of them; return whether there is somebody to write to."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if type(data) is list:
            transport.writelines(data)
        else:
            transport.write(cast(bytes, data))
        return True

    def pause_writing(self) -> None:
        """Note that the client does not take what was written."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Note that it does again, or never will."""
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drained(self) -> bool:
        """Wait until the client has taken what was written; return whether it is still there."""
        if self._writing_paused:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        return self._transport is not None
