"""One client connection and one request on it: what aiohttp's low-level server leaves to us.

`Connection` is aiohttp's `RequestHandler` (its parser, keep-alive and pipelining) with bounds it does not bring: time
and size of a request's header, number of connections, and answers of ours for what its parser refuses. `Inbound` is
what the handler gets in place of aiohttp's `BaseRequest`: the target's octets as they came (yarl would rewrite
`%c3`, `%7E`, `//`, dot segments and an empty `?`), raw header fields, and a body that is read with a bound on its pace.

Rules that always hold:
- A client that closes, or half-closes, its side counts as gone: the handler is cancelled.
- `Expect: 100-continue` is answered at once, before anything else is decided.
- Bodies stay as they are: compressed stays compressed, chunk boundaries and trailers are dropped with the chunking.
- Every answer is written by `answer` and its companions as ready bytes: no Date, Server or Content-Type is added.

Never decides what becomes of a call. Written against aiohttp 3.14: `tests/gateway/proxy/test_inbound.py` holds it to
that.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 67\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\nThe gateway has too many connections open. Try again in 5 seconds.\n"
)


class ClientGoneError(ConnectionError):
    """The client closed, or reset, its connection before the call was done."""


class SlowBodyError(Exception):
    """The body came slower than the configured pace, or stopped coming."""


class BodyTooLargeError(Exception):
    """The body is larger than it may be for this class of traffic. `so_far` is what was read of it."""

    def __init__(self, so_far: bytes) -> None:
        super().__init__()
        self.so_far = so_far


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how much a client may take. Times in seconds, sizes in bytes."""

    header_time: float = 10.0
    idle_time: float = 75.0
    body_grace: float = 10.0  #: a body may stand still for so long before its pace counts
    body_pace: float = 1024.0  #: bytes a second, on average over a whole body
    connections: int = 12_000
    head_size: int = 65_536


class Done:
    """Tells aiohttp that the answer has been written, and whether the connection goes on."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, _request: "Inbound") -> None:
        """Do nothing: the answer is on its way."""

    async def write_eof(self) -> None:
        """Do nothing: the answer is on its way."""


class Inbound:
    """A request as it came. Takes the place of aiohttp's BaseRequest, whose URL, headers and cookies we do not need."""

    __slots__ = ("_bounds", "_task", "connection", "content", "message", "sent")

    def __init__(
        self, message: RawRequestMessage, content: StreamReader, connection: "Connection", bounds: Bounds
    ) -> None:
        self.message = message
        self.content = content
        self.connection = connection
        self.sent = 0  #: bytes of the answer written so far
        self._bounds = bounds
        self._task: Any = None  # set and cleared by aiohttp

    # What aiohttp asks of a request.

    def _finish(self) -> None:
        """Have nothing to tidy up."""

    def _cancel(self, exc: BaseException) -> None:
        if self.content is not EMPTY_PAYLOAD:
            self.content.set_exception(exc)

    # What the handler asks.

    @property
    def target(self) -> bytes:
        """The request target, octet for octet."""
        return self.message.path.encode("utf-8", "surrogateescape")

    @property
    def speaks_11(self) -> bool:
        """Whether the client understands chunked answers and 1xx."""
        return self.message.version >= (1, 1)

    @property
    def body_is_here(self) -> bool:
        """Whether the whole body has arrived (true also when there is none)."""
        return self.content.is_eof()

    @property
    def has_body(self) -> bool:
        """Whether the request carries a body at all."""
        return self.content is not EMPTY_PAYLOAD

    def take(self) -> bytes:
        """Return what has arrived of the body and was not taken yet."""
        return b"" if self.content is EMPTY_PAYLOAD else self.content.read_nowait()

    def invite_body(self) -> None:
        """Answer `Expect: 100-continue` (RFC 9110 section 10.1.1). Clients such as PHP's curl and .NET wait for it."""
        if self.speaks_11 and not self.body_is_here and (transport := self.connection.transport) is not None:
            transport.write(_CONTINUE)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            SlowBodyError: it came slower than `body_pace` after `body_grace`.
        """
        loop = asyncio.get_running_loop()
        started, received = loop.time(), 0
        while not self.content.at_eof():
            allowed = started + self._bounds.body_grace + received / self._bounds.body_pace
            try:
                async with asyncio.timeout_at(allowed):
                    data = await self.content.readany()
            except TimeoutError:
                raise SlowBodyError from None
            received += len(data)
            if data:
                yield data

    async def read(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            BodyTooLargeError: it is larger than `limit` bytes; the rest was not read.
            SlowBodyError: as for `chunks`.
        """
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            size += len(data)
            parts.append(data)
            if size > limit:
                raise BodyTooLargeError(b"".join(parts))
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        """Write bytes of the answer.

        Raises:
            ClientGoneError: there is nobody to write to.
        """
        transport = self.connection.transport
        if transport is None or transport.is_closing():
            raise ClientGoneError
        self.sent += len(data)
        transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken what was written, so that a slow reader does not fill memory."""
        if self.connection.writing_paused:
            await self.connection.drained()

    def cut(self) -> None:
        """Reset the connection, so that a cut answer cannot be taken for a whole one, not even one without a length."""
        if (transport := self.connection.transport) is not None:
            if (sock := transport.get_extra_info("socket")) is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()


Handler = Callable[[Inbound], Awaitable[Done]]


def subject_of(certificate: Mapping[str, Any]) -> str:
    """Write the subject of a certificate as `ssl` returns it: `CN=payroll,O=Example` (RFC 4514)."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    names = [(short.get(kind, kind), value) for part in certificate.get("subject", ()) for kind, value in part]
    return ",".join(f"{kind}={value}" for kind, value in reversed(names))


class Connection(RequestHandler):
    """A client connection, with a bound on the time that a request's header may take."""

    __slots__ = (
        "_admitted",
        "_body",
        "_bounds",
        "_header_size",
        "_header_timer",
        "_on_defect",
        "_on_malformed",
        "peer",
        "subject",
    )

    def __init__(self, listener: "Listener", **options: Any) -> None:
        super().__init__(listener, **options)
        self._bounds = listener.bounds
        self._on_malformed = listener.on_malformed
        self._on_defect = listener.on_defect
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_size = 0
        self._body: StreamReader = EMPTY_PAYLOAD  # of the latest request
        self._admitted = False
        self.peer = ""  #: the client's address
        self.subject = ""  #: the subject of its TLS certificate, verified by the handshake, or empty

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        listener = cast("Listener", self._manager)
        if len(listener.connections) > self._bounds.connections:
            listener.on_refused_connection()
            cast(asyncio.Transport, transport).write(_OVERLOADED)
            self.force_close()
            return
        self._admitted = True
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.subject = subject_of(transport.get_extra_info("peercert") or {})

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the handler (aiohttp does) and the header's timer."""
        self._forget_header()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; bound the time between a header's first byte and its end."""
        if not self._admitted:
            return
        is_body = not self._body.is_eof()  # asked before: these bytes may end it, and its handler may not have begun
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]
        if is_body or self._messages or self._request_in_progress:
            self._forget_header()
        elif data:
            self._header_size += len(data)
            if self._header_size > self._bounds.head_size:
                self._refuse_header(431, "The request's header is too large.")
            elif self._header_timer is None:
                self._header_timer = self._loop.call_later(
                    self._bounds.header_time, self._refuse_header, 408, "The request's header took too long to arrive."
                )

    def eof_received(self) -> None:
        """Count a half-closed client as gone: closing cancels its call (asyncio closes when this returns None)."""

    def _process_keepalive(self) -> None:
        if self._header_timer is None:  # else a request is coming, and its own time is running
            super()._process_keepalive()

    def _forget_header(self) -> None:
        self._header_size = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse_header(self, status: int, why: str) -> None:
        if self.transport is not None and not self._request_in_progress:
            self.transport.write(self._on_malformed(status, why))
            self.force_close()

    async def drained(self) -> None:
        """Wait until the transport takes more. Raises ConnectionError when the client is gone."""
        await self._drain_helper()

    def handle_error(
        self,
        request: Any,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # aiohttp's signature; its text quotes the request
    ) -> Any:
        """Answer what the parser refused (400) and what we did not foresee (500), in our own words.

        aiohttp's message may hold personal data, being a quotation: only the kind of the fault is passed on.
        """
        inbound = cast(Inbound, request)
        kind = type(exc).__name__ if exc is not None else ""
        if status >= 500:
            self._on_defect(exc)
        if inbound.sent:
            inbound.cut()
            raise ClientGoneError
        inbound.write(self._on_malformed(status, kind))
        return Done(keep_alive=False)


class Listener(web.Server):
    """Makes a `Connection` for each client of one address.

    Args:
        on_malformed: writes the whole answer to what is not a readable request, from a status and the kind of fault.
        on_defect: is told of an exception that nobody foresaw.
    """

    def __init__(
        self,
        handler: Handler,
        bounds: Bounds,
        *,
        on_malformed: Callable[[int, str], bytes],
        on_defect: Callable[[BaseException | None], None],
        on_refused_connection: Callable[[], None],
    ) -> None:
        super().__init__(cast(Any, handler), request_factory=cast(Any, self._make_inbound), handler_cancellation=True)
        self.bounds = bounds
        self.on_malformed = on_malformed
        self.on_defect = on_defect
        self.on_refused_connection = on_refused_connection

    def _make_inbound(
        self, message: RawRequestMessage, content: StreamReader, connection: Connection, *_: Any
    ) -> Inbound:
        return Inbound(message, content, connection, self.bounds)

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self.bounds.idle_time,
            access_log=None,
            max_line_size=self.bounds.head_size,
            max_field_size=self.bounds.head_size,
            lingering_time=2.0,
            auto_decompress=False,
        )
