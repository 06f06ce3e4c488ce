"""The half of a client's connection that reads: requests by llhttp, strictly; bounds on time, size and number.

Rules that always hold:
- llhttp reads strictly: Content-Length twice, or beside Transfer-Encoding, signs, lists and overflow, bare CR or LF,
  folded lines, NUL, white space before a colon, odd chunk sizes are answered with 400, and the connection closes.
- A request's header has its time and its size; so has a body (`gateway.inbound.request`).
- Pipelined requests are handed on in their order; of those not begun a bounded number is read.
- An offer to upgrade is ignored, and nothing behind it is lost.
- A line and header that are the same to the octet as those before on this connection are read as those were, without
  llhttp: sound, since it is at a message's beginning both times, and nothing but `Content-Length` frames the body.

Never decides what becomes of a call, and never quotes what it read.
"""

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httptools

from gateway.inbound.request import BrokenBodyError, Head, Inbound, without_offer
from gateway.lending import LARGE, MOST_OF_HEAD

if TYPE_CHECKING:
    from gateway.inbound.listener import Listener

MOST_REMEMBERED = 4096
"""Octets of a line and header that are remembered, or anything made of them, for each connection."""
_GIVES_UP = 8
"""Requests in a row that began anew, after which a connection's are not remembered: its client has identifiers in its
headers, say, and remembering costs 2 us."""
_TLS = "it looks like TLS, and this port speaks plain HTTP; call it with http://, or configure `tls` for it"


class Known(NamedTuple):
    """How the last request began, which came in one piece."""

    octets: bytes  #: its line and header
    size: int  #: octets with its body
    head: Head


class ReadingHalf(asyncio.BufferedProtocol):
    """What `gateway.inbound.connection` reads with, and tells what it read."""

    __slots__ = (
        "_closing",
        "_current",
        "_fault",
        "_fields",
        "_header_timer",
        "_holds",
        "_known",
        "_left",
        "_listener",
        "_midway",
        "_news",
        "_offer",
        "_parser",
        "_receiving",
        "_target",
        "_transport",
        "_unread",
    )

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._offer: bytes | None = None  # the request line of a request that offers to upgrade
        self._midway = False  # in a message
        self._known: Known | None = None  # what the last request began with
        self._news = 0  # how often in a row a request began otherwise than the one before
        self._left = 0  # octets of a large body that come next, past llhttp, which has read its header
        self._unread = 0  # octets since something was understood: a header, chunk sizes or trailers without end
        self._receiving: Inbound | None = None  # whose body is coming
        self._current: Inbound | None = None  # whose answer is awaited
        self._header_timer: asyncio.TimerHandle | None = None
        self._fault: tuple[int, str] | None = None  # what is wrong with what came behind the requests so far
        self._closing = False  # nothing more is understood
        self._holds = 0  # reasons why reading pauses

    # What the other half does.

    def _taken(self, head: Head) -> Inbound:
        """Take a request whose header has come."""
        raise NotImplementedError

    def _say_fault(self) -> None:
        """Answer what is no request."""
        raise NotImplementedError

    def reset(self) -> None:
        """End at once, with a reset."""
        raise NotImplementedError

    # What came.

    def _read(self, data: memoryview | bytes) -> None:
        if self._left:
            data = self._pass(data)
        elif len(data) >= LARGE and not self._midway:
            head = bytes(data[:MOST_OF_HEAD]).find(b"\r\n\r\n") + 4
            self._feed(data[:head])
            self._measure()
            data = self._pass(data[head:]) if self._left else data[head:]
        if data and self._fault is None and not self._closing:
            measures = not self._left and self._receiving is None
            self._feed(data)
            if measures:
                self._measure()
        if self._unread > self._listener.limits.head_size and self._fault is None:
            self._unreadable(431, "its header is too large")
        elif self._receiving is None and self._unread and self._header_timer is None:
            time = self._listener.limits.header_time
            self._header_timer = asyncio.get_running_loop().call_later(time, self._header_is_late)

    def _feed(self, data: memoryview | bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
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

    def _measure(self) -> None:
        """Note how much is to come of a large body whose length is known: it need not go through llhttp."""
        inbound = self._receiving
        if inbound is not None and (length := inbound.head.length) is not None and length - inbound.size >= LARGE:
            self._left = length - inbound.size

    def _pass(self, data: memoryview | bytes) -> memoryview | bytes:
        """Take what comes of a large body as it is; return what is behind its end."""
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        if self._receiving is not None and piece:
            if len(piece) >= LARGE and isinstance(piece, memoryview):
                self._listener.buffer.lend()
                self._receiving.feed(piece)
            else:
                self._receiving.feed(bytes(piece))
        if not self._left:
            self._parser = httptools.HttpRequestParser(self)
            self.on_message_complete()
        return rest

    def _recognised(self, nbytes: int) -> Known | None:
        """Return how the request begins that has come whole, if it begins as the last one did."""
        known = self._known
        if known is None or nbytes != known.size or not self._listener.buffer.octets.startswith(known.octets):
            return None
        if self._midway or self._current is not None or self._closing or self._fault is not None:
            return None
        self._unread = self._news = 0  # unread are empty lines, at the most
        if self._header_timer is not None:
            self._forget_header()
        return known

    def _remember(self, data: memoryview | bytes, inbound: Inbound) -> None:
        """Remember the head of a request which came whole, and with which `data` begins."""
        self._known = None
        self._news += 1
        if self._news > _GIVES_UP:
            return
        head, octets = inbound.head, bytes(data[: len(data) - inbound.size])
        if len(octets) > MOST_REMEMBERED or not head.keeps_alive:
            return
        if octets.find(b"\r\n\r\n") + 4 != len(octets) or octets[:1] in b"\r\n":
            return  # something else came with it
        if (head.length or 0) == inbound.size:
            self._known = Known(octets, len(data), head)

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

    def rest_reading(self) -> None:
        """Do without a parser until more comes, if it is between two requests."""
        if not self._midway:
            self._parser = self._known = None
            self._fields = []

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
        self._midway = True
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
        speaks_11, keeps_alive = parser.get_http_version() != "1.0", parser.should_keep_alive()
        self._receiving = self._taken(
            Head(parser.get_method(), self._target, self._fields, speaks_11=speaks_11, keeps_alive=keeps_alive)
        )
        self._unread = 0
        if self._header_timer is not None:
            self._forget_header()

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
        self._midway = False
        self._unread = 0
        if self._receiving is not None:
            self._receiving.finish()
            self._receiving = None
