"""An upstream's answer as it comes: read by one side, filled by the connection on the other, bounded in between.

Rules that always hold: what was received is handed out once, in order; when more than `HIGH_WATER` waits to be
taken, the connection stops reading; a break midway is raised to whoever reads on, never hidden behind an orderly end.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from gateway.upstream.troubles import UpstreamError

SMALL = 16_384
"""Octets up to which joining pieces is cheaper than giving the kernel several."""
HIGH_WATER = 256 * 1024
"""Bytes of an answer that may wait for a slow client, besides what the kernel holds."""


class Answer:
    """Status, header and body of an answer. `headers` are as received: order, case, repetitions, hop-by-hop ones
    too."""

    __slots__ = (
        "_pause",
        "_paused",
        "_resume",
        "_size",
        "_waiting",
        "_wakeup",
        "complete",
        "has_body",
        "headers",
        "http_minor",
        "length",
        "reason",
        "status",
        "trouble",
    )

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.status = 0
        self.reason = b""
        self.http_minor = 1
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None  #: Content-Length; None: chunked, or until the connection ends
        self.has_body = True
        self.complete = False  #: the last byte has come from the upstream
        self.trouble: UpstreamError | None = None  #: why it will not be complete
        self._waiting: list[bytes | memoryview] = []
        self._size = 0
        self._paused = False
        self._pause = pause
        self._resume = resume
        self._wakeup: asyncio.Future[None] | None = None

    def take(self) -> bytes:
        """Return what has come of the body and was not taken yet; never waits."""
        return b"".join(self.take_pieces())

    def take_pieces(self) -> list[bytes | memoryview]:
        """Return the same in the pieces in which it came."""
        pieces, self._waiting = self._waiting, []
        self._size = 0
        if self._paused:
            self._paused = False
            self._resume()
        return pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            UpstreamError: it broke off; what had come before was yielded.
        """
        while True:
            if data := self.take():
                yield data
            elif self.trouble is not None:
                raise self.trouble
            elif self.complete:
                return
            else:
                self._wakeup = asyncio.get_running_loop().create_future()
                try:
                    await self._wakeup
                finally:
                    self._wakeup = None

    # The connection's side.

    def feed(self, data: bytes | memoryview) -> None:
        """Take a piece of the body."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def finish(self) -> None:
        """Note that the last byte has come."""
        self.complete = True
        self._wake()

    def fail(self, trouble: UpstreamError) -> None:
        """Note that there will be no more."""
        self.trouble = trouble
        self._wake()

    def drop(self) -> None:
        """Forget what was received: nobody will read it."""
        self._waiting.clear()
        self._size = 0

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def framing(fields: list[tuple[bytes, bytes]]) -> tuple[int | None, bool, str]:
    """Return an answer's Content-Length, whether it has a transfer coding, and what is wrong with them: then it must
    not be relayed (RFC 9112 section 6.3)."""
    names = [name.lower() for name, _ in fields]
    if names.count(b"content-length") == 1 and b"transfer-encoding" not in names:  # most are so
        return int(fields[names.index(b"content-length")][1]), False, ""
    lengths = [value for (_, value), name in zip(fields, names, strict=True) if name == b"content-length"]
    codings = [value.lower() for (_, value), name in zip(fields, names, strict=True) if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        return None, bool(codings), "its length is said twice"
    if codings and codings != [b"chunked"]:
        return None, True, "its transfer coding is not chunked"
    return None, bool(codings), ""
