"""One call to an upstream on one connection, and what becomes of a bulk call's slot.

Rules that always hold:
- A request is written once. Only when a kept connection turns out to be closed before a byte was written is another
  taken.
- A bulk call needs a `Slot`; its guard is asked before every send. The slot is settled when the source cannot be
  working on the call: the answer's last byte has come, or no byte of the request was written. After a reset, a
  timeout, a guard that said no midway, and an intermediary's 502 or 504, it stays unsettled.
- A bulk call whose caller goes away once its request is written is read on, and forgotten: the answer's end settles
  the slot. A real-time call whose caller goes away is aborted.
- A connection is kept only after an exchange that ended in order on both sides.

Nothing is invented: what goes out is the caller's header, and `Transfer-Encoding` where the body has no known length.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from gateway.upstream.answer import SMALL, Answer
from gateway.upstream.connection import Connection
from gateway.upstream.troubles import BrokenAnswerError, GuardClosedError, UpstreamError, UpstreamTimeoutError
from policies.model import Slot

if TYPE_CHECKING:
    from gateway.upstream.pool import Upstream

_GAVE_UP = (502, 504)
"""Statuses by which an intermediary says that it gave up: the source behind it may still be working."""


@dataclass(slots=True)
class Outbound:
    """A request as it goes out. At most one of `body`, `pieces` and `stream` is used; none of them: no body."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]  #: end-to-end fields, in order and case
    body: bytes | None = None
    pieces: list[bytes | memoryview] | None = (
        None  #: a body as it came, real-time only: joining it would copy it once more
    )
    stream: AsyncIterator[bytes] | None = None
    chunked: bool = False  #: the client sent it chunked; else `headers` carry its Content-Length
    written: bytes | None = None  #: what `head` returns, where somebody has kept it

    def head(self) -> bytes:
        """Write the request line and header."""
        if self.written is not None:
            return self.written
        lines = b"".join([b"%s: %s\r\n" % field for field in self.headers])
        framing = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (self.method, self.target, lines, framing)

    def framed(self, data: bytes) -> bytes:
        """Frame a piece of the body."""
        if not self.chunked:
            return data
        return b"%x\r\n%s\r\n" % (len(data), data) if data else b""

    @property
    def end(self) -> bytes:
        """What follows the body."""
        return b"0\r\n\r\n" if self.chunked else b""


class Exchange:
    """One request and its answer. An async context manager; made by `Upstream.send`."""

    __slots__ = (
        "_connection",
        "_group",
        "_head",
        "_outbound",
        "_pump",
        "_slot",
        "_timer",
        "_upstream",
        "_written",
        "answer",
        "deadline",
    )

    def __init__(self, upstream: "Upstream", outbound: Outbound, slot: Slot | None) -> None:
        self._upstream = upstream
        self._outbound = outbound
        self._slot = slot
        self._connection: Connection
        self.answer: Answer | None = None  #: once the request is on its way
        self._head: asyncio.Future[None] | None = None  # done when the header is there, or never will be
        self._written = False  # the whole request
        self._timer: asyncio.TimerHandle | None = None
        self.deadline = 0.0  #: of a real-time exchange, by the loop's clock
        self._group: asyncio.TaskGroup | None = None
        self._pump: asyncio.Task[None] | None = None

    def start(self, connection: Connection, on_news: Callable[[], None]) -> None:
        """Send a real-time request that is here whole, without waiting, and not entering the exchange.

        `on_news` is called once the answer's header is there, or never will be, and all was read that came with it.
        Then either the exchange is to be entered, or the answer `handed_out`, and the exchange left by `leave`; until
        then `on_news` is called when there is more of the answer, or will be no more.
        """
        self._begin(connection, on_news, once=False)
        try:
            self._send_whole(connection)
        except UpstreamError as trouble:
            connection.fail(trouble)

    async def __aenter__(self) -> Answer:
        """Send the request, unless `start` did; return the answer when its header is there."""
        try:
            if self.answer is not None:
                return self.handed_out(self.answer)
            return await self._exchange(self._upstream.kept() or await self._free_connection())
        except BaseException:
            await self._leave(answered=False)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave."""
        await self._leave(answered=kind is None)

    async def _free_connection(self) -> Connection:
        connection = await self._upstream.connection()
        while not connection.usable:  # it ended while this task was being woken: not a byte was written
            connection = await self._upstream.connection()
        return connection

    async def _exchange(self, connection: Connection) -> Answer:
        self._head = head = self._upstream.loop.create_future()
        answer = self._begin(connection, self._head_is_there, once=True)
        if self._outbound.stream is not None:
            await self._start_pump()
        elif self._slot is None:
            self._send_whole(connection)
        else:
            await self._send_bulk(connection, answer)
        await head
        return self.handed_out(answer)

    def _begin(self, connection: Connection, on_news: Callable[[], None], *, once: bool) -> Answer:
        self._connection = connection
        bodiless = self._outbound.method == b"HEAD"
        self.answer = connection.begin(bodiless=bodiless, on_news=on_news, once=once, on_complete=self._completed)
        if self._slot is not None:
            connection.mark_bulk(self._upstream.target.call_timeout)
        self._arm(self._upstream.target.first_byte_timeout)
        return self.answer

    def _head_is_there(self) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def handed_out(self, answer: Answer) -> Answer:
        """Hand out an answer whose header is there; what is left of it has its own time.

        Raises:
            UpstreamError: there is none.
        """
        if answer.trouble is not None:
            raise answer.trouble
        self._connection.handed_out = True
        if self._slot is None and not answer.complete:
            self._arm(self._upstream.target.total_timeout)
        return answer

    # Sending.

    async def _send_bulk(self, connection: Connection, answer: Answer) -> None:
        try:
            await connection.send_guarded(self._whole(), self._may_send)
        except UpstreamError:
            if not answer.complete:  # else it was refused for its size, say: the rest is not asked for
                raise
        else:
            self._written = True

    def _may_send(self) -> bool:
        assert self._slot is not None
        answer = self._connection.answer
        if answer is not None and answer.complete:
            return False
        return self._slot.may_start(self._upstream.clock.boot())

    def _whole(self) -> bytes:
        outbound = self._outbound
        body = outbound.body if outbound.pieces is None else b"".join(outbound.pieces)
        if body is None:
            return outbound.head()
        return b"".join((outbound.head(), outbound.framed(body), outbound.end))

    def _send_whole(self, connection: Connection) -> None:
        outbound = self._outbound
        if outbound.pieces is not None and not outbound.chunked and sum(map(len, outbound.pieces)) > SMALL:
            connection.send(outbound.head(), *outbound.pieces)
            outbound.pieces = None  # they may hold buffers that others wait to receive into
        else:
            connection.send(self._whole())
        self._written = True

    async def _start_pump(self) -> None:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._pump = self._group.create_task(self._stream_out())

    async def _stream_out(self) -> None:
        """Send a body as it comes. What goes wrong is told to whoever waits for the answer."""
        connection, outbound = self._connection, self._outbound
        assert outbound.stream is not None
        try:
            await self._send_piece(outbound.head())
            async for data in outbound.stream:
                await self._send_piece(outbound.framed(data))
            await self._send_piece(outbound.end)
            self._written = True
        except GuardClosedError as closed:
            self._pump_failed(closed)
        except UpstreamError as trouble:
            connection.fail(trouble)
        except Exception as error:  # noqa: BLE001  # the client's body broke off: the caller's own error goes to the caller
            self._pump_failed(error)

    def _pump_failed(self, error: Exception) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        else:
            trouble = BrokenAnswerError("the request's body broke off while it was answered", bytes_written=True)
            self._connection.fail(trouble)

    async def _send_piece(self, data: bytes) -> None:
        if not data:
            return
        if self._slot is None:
            self._connection.send(data)
            await self._connection.drained()
        else:
            await self._connection.send_guarded(data, self._may_send)

    # Time.

    def _arm(self, realtime_s: float) -> None:
        upstream = self._upstream
        if self._slot is None:
            self.deadline = upstream.loop.time() + realtime_s
            upstream.watch(self)
        else:
            seconds = upstream.target.call_timeout
            self._timer = upstream.loop.call_later(seconds, self._too_late, upstream.clock.boot() + seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._upstream.unwatch(self)

    def _too_late(self, due: float) -> None:
        # The loop's clock stands while the machine is suspended, so by the boot clock it can only be later than due.
        left = due - self._upstream.clock.boot()
        if left > 0.001:
            self._timer = self._upstream.loop.call_later(left, self._too_late, due)
        else:
            self.time_is_over()

    def time_is_over(self) -> None:
        """End the exchange: its time is over."""
        connection = self._connection
        what = "the answer" if connection.answer is not None and connection.answer.status else "an answer"
        connection.fail(UpstreamTimeoutError(f"{what} did not come in time", bytes_written=connection.wrote))
        connection.abort()

    # The end.

    def _completed(self) -> None:
        """The answer's last byte has come (called by the connection)."""
        self._disarm()
        answer = self._connection.answer
        if self._slot is not None and answer is not None and answer.status not in _GAVE_UP:
            self._slot.settle()
        if self._pump is not None:
            self._pump.cancel()
        if not self._written:
            self._connection.resume_writing()  # whoever waits to send on need not

    async def _leave(self, *, answered: bool) -> None:
        if self._group is not None and self._pump is not None:
            self._pump.cancel()
            group, self._group = self._group, None
            await group.__aexit__(None, None, None)
        if self.answer is not None:
            self.leave(answered=answered)

    def leave(self, *, answered: bool) -> None:
        """Keep the connection, or end it, or let a bulk answer come in by itself. `answered`: nothing went wrong."""
        connection = self._connection
        answer = connection.answer
        if self._slot is not None and not connection.wrote:
            self._slot.settle()
        complete = answer is not None and answer.complete
        # Once the guard said yes, TLS may have sealed what was not sent: its records are counted.
        asked = self._slot is not None and self._slot.started_at is not None
        untouched = not (connection.wrote or connection.closed or answered or complete or asked)
        if (complete and self._written and connection.reusable) or untouched:
            self._give_back()
        elif not complete and self._slot is not None and self._written and not connection.closed:
            self._read_on()
        else:
            self._stop()

    def _give_back(self) -> None:
        connection = self._connection
        self._disarm()
        connection.end()
        if connection.closed:
            return
        if self._slot is not None:
            connection.unmark_bulk()
        self._upstream.keep(connection)

    def _read_on(self) -> None:
        """Let the answer come in by itself: its end settles the slot, its time still runs."""
        connection = self._connection
        settle = self._completed

        def completed() -> None:
            settle()
            if connection.reusable:
                self._give_back()
            else:
                connection.abort()

        connection.on_complete_from_now(completed)
        connection.discard()

    def _stop(self) -> None:
        self._disarm()
        answer = self._connection.answer
        in_order = answer is not None and answer.complete and self._written
        self._connection.end()
        if not self._connection.closed:
            if in_order:
                self._connection.close()
            else:
                self._connection.abort()
