"""One request as it came: octets of target and header, a body that is read with bounds, and the way back.

The handler's side of `gateway.inbound.connection`. Bodies stay as they are: compressed stays compressed; chunk
boundaries and trailers are dropped with the chunking.

Rules that always hold:
- What has arrived of a body and was not taken is bounded (`HIGH_WATER`): beyond, the connection stops reading.
- A body that breaks off, breaks the rules of its framing or comes too slowly is told apart, and never looks whole.
- Every answer is written as ready bytes: no Date, Server or Content-Type is added.

Never decides what becomes of a call.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.config import Limits

if TYPE_CHECKING:
    from gateway.inbound.connection import Connection

HIGH_WATER = 256 * 1024
"""Bytes of a body that may wait to be taken, besides what the kernel holds."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGoneError(ConnectionError):
    """The client closed, or reset, its connection before the call was done."""


class SlowBodyError(Exception):
    """The body came slower than the configured pace, or stopped coming."""


class BrokenBodyError(Exception):
    """The body does not follow its framing (RFC 9112 section 7.1), so where it ends is not known."""


class BodyTooLargeError(Exception):
    """The body is larger than it may be for this class of traffic. `so_far` is what was read of it."""

    def __init__(self, so_far: bytes) -> None:
        super().__init__()
        self.so_far = so_far


@dataclass(slots=True)
class Head:
    """A request's line and header. Requests share it whose octets are the same: nothing changes it."""

    method: bytes
    target: bytes  #: octet for octet
    fields: list[tuple[bytes, bytes]]  #: in order and case
    speaks_11: bool  #: the client understands chunked answers and 1xx
    keeps_alive: bool  #: the client wants its connection to go on

    @property
    def length(self) -> int | None:
        """Octets of the body by `Content-Length`; None: it has none, or is chunked. llhttp has seen to it that there is
        one of them at the most, and that it is a number."""
        length = None
        for name, value in self.fields:
            lower = name.lower()
            if lower == b"transfer-encoding":
                return None
            if lower == b"content-length":
                length = int(value)
        return length


_NOTHING = Head(b"", b"", [], speaks_11=True, keeps_alive=False)


class Inbound:
    """A request. Made by the connection when its header is there; the body may still be coming."""

    __slots__ = (
        "_broken",
        "_has_come",
        "_is_invited",
        "_limits",
        "_parts",
        "_paused",
        "_size",
        "_wakeup",
        "body_is_here",
        "connection",
        "head",
        "keeps_alive",
        "method",
        "sent",
        "speaks_11",
        "target",
    )

    def __init__(self, connection: "Connection", limits: Limits, head: Head) -> None:
        self.connection = connection
        self.head = head
        self.method = head.method
        self.target = head.target
        self.speaks_11 = head.speaks_11
        self.keeps_alive = head.keeps_alive
        self.body_is_here = False  #: the whole body has arrived (true also when there is none)
        self.sent = 0  #: bytes of the answer written so far
        self._limits = limits
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        self._has_come = False
        self._is_invited = False
        self._paused = False
        self._broken: Exception | None = None
        self._wakeup: asyncio.Future[None] | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the fields in their order and case."""
        return self.head.fields

    # The connection's side.

    def feed(self, data: bytes | memoryview) -> None:
        """Take a piece of the body."""
        self._parts.append(data)
        self._size += len(data)
        self._has_come = True
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self.connection.hold_reading()
        self._wake()

    def finish(self) -> None:
        """Note that the whole body is here."""
        self.body_is_here = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Note that the rest of the body will not come."""
        if not self.body_is_here:
            self._broken = error
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    # The body.

    @property
    def size(self) -> int:
        """Octets that have arrived of the body and were not taken yet."""
        return self._size

    @property
    def has_body(self) -> bool:
        """Whether the request carries octets of a body (a chunked one may be empty)."""
        return self._has_come or not self.body_is_here

    def invite_body(self) -> None:
        """Answer `Expect: 100-continue` (RFC 9110 section 10.1.1). Clients such as PHP's curl and .NET wait for it."""
        if self.speaks_11 and not (self.body_is_here or self._has_come or self._is_invited):
            self._is_invited = True
            self.connection.write(_CONTINUE)

    def take(self) -> bytes:
        """Return what has arrived of the body and was not taken yet; never waits."""
        return b"".join(self.take_pieces())

    def take_pieces(self) -> list[bytes | memoryview]:
        """Return the same as it came, in pieces: joining 200 kB would copy them once more."""
        parts, self._parts = self._parts, []
        self._size = 0
        if self._paused:
            self._paused = False
            self.connection.go_on_reading()
        return parts

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            SlowBodyError: it came slower than `body_pace` after `body_grace`.
            BrokenBodyError: it is not framed as it should be.
        """
        started, received = asyncio.get_running_loop().time(), 0
        while True:
            if data := self.take():
                received += len(data)
                yield data
            elif self.body_is_here:
                return
            elif self._broken is not None:
                raise self._broken
            else:
                allowed = started + self._limits.body_grace + received / self._limits.body_pace
                if not await self._more_until(allowed):
                    raise SlowBodyError

    async def read(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            BodyTooLargeError: it is larger than `limit` bytes; the rest was not read.
            SlowBodyError, BrokenBodyError: as for `chunks`.
        """
        if self.body_is_here and self._size <= limit:
            return self.take()
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            size += len(data)
            parts.append(data)
            if size > limit:
                raise BodyTooLargeError(b"".join(parts))
        return b"".join(parts)

    async def read_up_to(self, limit: int) -> tuple[bytes, AsyncIterator[bytes] | None]:
        """Read the whole body, and return it with None; of one larger than `limit` bytes its beginning, and the whole
        as a stream.

        Raises:
            SlowBodyError, BrokenBodyError: as for `chunks`.
        """
        try:
            return await self.read(limit), None
        except BodyTooLargeError as too_large:
            return too_large.so_far, self._after(too_large.so_far)

    async def _after(self, beginning: bytes) -> AsyncIterator[bytes]:
        yield beginning
        async for data in self.chunks():
            yield data

    async def _more_until(self, deadline: float) -> bool:
        """Wait for a wake-up; return whether it came before `deadline` (the loop's clock)."""
        loop = asyncio.get_running_loop()
        self._wakeup = wakeup = loop.create_future()
        late = False

        def ring() -> None:
            nonlocal late
            late = True
            self._wake()

        timer = loop.call_at(deadline, ring)
        try:
            await wakeup
        finally:
            self._wakeup = None
            timer.cancel()
        return not late

    # The answer.

    def rest(self) -> None:
        """Take as little memory as can be while the call waits: nothing more of the header will be asked."""
        self.head = _NOTHING
        self.connection.rest()

    def write(self, *pieces: bytes | memoryview) -> None:
        """Write octets of the answer.

        Raises:
            ClientGoneError: there is nobody to write to.
        """
        if not self.connection.write(pieces[0] if len(pieces) == 1 else list(pieces)):
            raise ClientGoneError
        self.sent += sum(map(len, pieces))

    async def drain(self) -> None:
        """Wait until the client has taken what was written, so that a slow reader does not fill memory.

        Raises:
            ClientGoneError: it will not take it any more.
        """
        if not await self.connection.drained():
            raise ClientGoneError

    def cut(self) -> None:
        """Reset the connection, so that a cut answer cannot be taken for a whole one, not even one without a length."""
        self.connection.reset()


def reset_on_close(sock: socket.socket) -> None:
    """Make the next close of a socket a reset (RST), which drops what the kernel still holds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def subject_of(certificate: Mapping[str, Any]) -> str:
    """Write the subject of a certificate as `ssl` returns it: `CN=payroll,O=Example` (RFC 4514)."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    names = [(short.get(kind, kind), value) for part in certificate.get("subject", ()) for kind, value in part]
    return ",".join(f"{kind}={value}" for kind, value in reversed(names))


def without_offer(line: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return the header of a request that offers to upgrade, without the offer, to be read again.

    The offer is ignored (RFC 9110 section 7.8), but llhttp takes what follows such a header for the other protocol, the
    request's own body included.
    """
    lines = [line]
    for name, value in fields:
        lower = name.lower()
        if lower == b"connection":
            value = b", ".join(one for one in map(bytes.strip, value.split(b",")) if one.lower() != b"upgrade")
        if lower != b"upgrade":
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join((*lines, b"\r\n"))
