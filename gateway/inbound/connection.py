"""A client's connection: one call after the other, and the way back. How it reads: `gateway.inbound.reading`.

Of our own, because the guard, the octets and the parked calls are what this product is for: aiohttp's server in this
place cost a third of a call's CPU and three times the memory of a parked one (measured), and lost the octets behind an
`Upgrade` that it ignored.

Rules that always hold:
- A client that closes, or half-closes, its side counts as gone: its call is cancelled, wherever it is.
- Pipelined requests are answered in their order, one at a time, the next once the client has taken the last answer.
- A call begins when all that came with its header was read: at once if it need not wait before it goes on, else as a
  task of the listener's group.
- A connection that is closed with a request's body unread lingers, so that the client gets to read why.

Never decides what becomes of a call.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, cast

from gateway.inbound.reading import Known, ReadingHalf
from gateway.inbound.request import Head, Inbound, reset_on_close, subject_of
from gateway.inbound.turns import BEGIN_S
from gateway.lending import LARGE

if TYPE_CHECKING:
    from gateway.inbound.listener import Listener

MAX_PIPELINED = 16
"""Requests behind the one in progress that are read before reading pauses."""
LINGER_S = 2.0
"""How long a connection that is closed early still swallows what the client sends."""
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 67\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\nThe gateway has too many connections open. Try again in 5 seconds.\n"
)


class Work(Protocol):
    """What carries a call: a task, or what does without one."""

    def cancel(self) -> object:
        """Give the call up: its client has gone."""


class Connection(ReadingHalf):
    """A client connection. Made by `Listener`."""

    __slots__ = (
        "_drained",
        "_on_drained",
        "_queued",
        "_unbegun",
        "_work",
        "_writing_paused",
        "memory",
        "on_more_body",
        "peer",
        "subject",
    )

    def __init__(self, listener: "Listener") -> None:
        super().__init__(listener)
        self._unbegun = False  # the current call is to begin once all that came was read
        self._queued: deque[Inbound] | None = None  # pipelined behind it
        self._work: Work | None = None
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._on_drained: Callable[[], None] | None = None
        self.on_more_body: Callable[[], None] | None = None  #: called when more of the current call's body has come
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
        # not wait for the books that are kept behind it. TLS in both loops takes an empty buffer for a full one at 0,
        # and never tells that it has room: an answer in pieces stood still for ever.
        has_tls = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if has_tls else 0, low=0)
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
        if self._work is not None:
            self._work.cancel()
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
        if self._work is not None:
            self._work.cancel()
        if self._transport is not None:
            self._transport.abort()

    # Reading.

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Lend the listener's buffer: what is received is read at once, so all connections share it."""
        return self._listener.buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came: now, or when there is time for it."""
        if (known := self._recognised(nbytes)) is not None:
            self._take_again(known)
            return
        data = self._listener.buffer.view[:nbytes]
        if self._current is not None or not self._listener.crowd.keeps(self, data):
            self.take(data)
        else:
            self._known = None

    def take(self, data: memoryview | bytes) -> None:
        """Read what came, and begin a call if its header was in it."""
        if self._closing or self._fault is not None:
            return
        if self._current is None:
            self._listener.idle.pop(self, None)
        begins = self._current is None and not self._midway
        self._read(data)
        if self._unbegun:
            if begins and self._current is not None and self._current.body_is_here:
                self._remember(data, self._current)
            self._begin_now()
        elif self.on_more_body is not None:
            self.on_more_body()

    def _take_again(self, known: Known) -> None:
        listener = self._listener
        listener.idle.pop(self, None)
        self._current = inbound = Inbound(self, listener.limits, known.head)
        body = listener.buffer.view[len(known.octets) : known.size]
        if len(body) >= LARGE:
            listener.buffer.lend()
            inbound.feed(body)
        elif body:
            inbound.feed(bytes(body))
        inbound.finish()
        self._begin_now()

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
        self.memory = None
        if not self._queued:
            self.rest_reading()

    # One call after the other.

    def _taken(self, head: Head) -> Inbound:
        inbound = Inbound(self, self._listener.limits, head)
        if self._current is None:
            self._begin(inbound)
        else:
            self._enqueue(inbound)
        return inbound

    def _begin(self, inbound: Inbound) -> None:
        self._current = inbound
        listener = self._listener
        if listener.is_mass(inbound.target):
            listener.turns.do(BEGIN_S, self._begin_in_turn)
        else:
            self._unbegun = True

    def _begin_in_turn(self) -> bool:
        """Begin the call whose turn has come, unless its client has gone."""
        if self._transport is None or self._current is None:
            return False
        self.carry_on(self._current, self._listener.handler)
        return True

    def _begin_now(self) -> None:
        self._unbegun = False
        inbound = self._current
        if inbound is None or self._closing:
            return
        try:
            if self._listener.at_once(inbound):
                return
        except Exception as error:  # noqa: BLE001  # as in `_serve`
            self.defective(inbound, error)
        else:
            self.carry_on(inbound, self._listener.handler)

    def carried_by(self, work: Work) -> None:
        """Note what carries the current call: it is cancelled when the client goes. It says `over` in the end."""
        self._work = work

    def carry_on(self, inbound: Inbound, handler: Callable[[Inbound], Awaitable[bool]]) -> asyncio.Task[None]:
        """Have a task take the current call to its end."""
        self._work = task = self._listener.tasks.create_task(self._serve(inbound, handler))
        return task

    def _enqueue(self, inbound: Inbound) -> None:
        if self._queued is None:
            self._queued = deque()
        self._queued.append(inbound)
        if len(self._queued) == MAX_PIPELINED:
            self.hold_reading()

    async def _serve(self, inbound: Inbound, handler: Callable[[Inbound], Awaitable[bool]]) -> None:
        try:
            goes_on = await handler(inbound)
        except Exception as error:  # noqa: BLE001  # the last stop: it is reported, and the caller gets an answer
            self.defective(inbound, error)
        else:
            self.over(inbound, goes_on=goes_on)
        finally:
            if self._current is inbound:  # cancelled
                self._work = self._current = None

    def defective(self, inbound: Inbound, error: Exception) -> None:
        """End a call that met a defect: it is reported, and the caller gets an answer."""
        self._listener.on_defect(error)
        if inbound.sent:
            self.reset()
        else:
            self.write(self._listener.on_malformed(500, ""))
        self.over(inbound, goes_on=False)

    def over(self, inbound: Inbound, *, goes_on: bool) -> None:
        """End the current call, and begin the next one. `goes_on`: the connection may."""
        self._work = self._current = self.on_more_body = None
        self._next(inbound, goes_on=goes_on)

    def _next(self, before: Inbound, *, goes_on: bool) -> None:
        if self._transport is None or self._closing:
            return
        if not goes_on and before.body_is_here:
            self.close()
        elif not (goes_on and before.body_is_here):
            self._linger()
        elif self._writing_paused:
            self._wait_until_taken(before)
        elif self._queued:
            if len(self._queued) == MAX_PIPELINED:
                self.go_on_reading()
            self._begin(self._queued.popleft())
            if self._unbegun:
                self._begin_now()
        elif self._fault is not None:
            self._say_fault()
        elif self._header_timer is None:
            self._listener.now_idle(self)

    def _wait_until_taken(self, before: Inbound) -> None:
        """Begin nothing more, and read nothing, until the client has taken its answer: others would fill memory."""

        def taken() -> None:
            self.go_on_reading()
            self._listener.idle.pop(self, None)
            if self._current is None:
                self._next(before, goes_on=True)

        self.hold_reading()
        self._listener.now_idle(self)
        self._on_drained = taken

    # Writing.

    def write(self, data: bytes | memoryview | list[bytes | memoryview]) -> bool:
        """Write octets, or pieces of them; return whether there is somebody to write to."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if type(data) is list:
            transport.writelines(data)
        else:
            transport.write(cast("bytes | memoryview", data))
        return True

    def pause_writing(self) -> None:
        """Note that the client does not take what was written."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Note that it does again, or never will."""
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if (on_drained := self._on_drained) is not None:
            self._on_drained = None
            on_drained()

    def is_slow(self, on_drained: Callable[[], None]) -> bool:
        """Say whether the client has not taken what was written; if so, `on_drained` is called when it has."""
        if self._writing_paused:
            self._on_drained = on_drained
        return self._writing_paused

    async def drained(self) -> bool:
        """Wait until the client has taken what was written; return whether it is still there."""
        if self._writing_paused:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        return self._transport is not None
