"""A pool of connections to one upstream, and where that upstream is.

Rules that always hold:
- The connection kept last is used first; one that the upstream has closed is never used; one is kept for
  `keep_alive` seconds only, since servers close idle ones and a POST cannot be repeated.
- There are never more than `connections` at a time, those being dialled included; who waits for one is served in
  turn, and for no longer than connecting may take.

What a call does with its connection is `gateway.upstream.exchange`'s.
"""

import asyncio
import socket
import ssl
from collections import deque
from dataclasses import dataclass

import aiohappyeyeballs

from gateway.config import UpstreamSettings
from gateway.lending import Lender
from gateway.upstream.connection import Connection
from gateway.upstream.exchange import Exchange, Outbound
from gateway.upstream.tls import Tls, client_context
from gateway.upstream.troubles import UnreachableError, UpstreamError
from policies.model import Clock, Slot


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Where an upstream is and how long it may take, in seconds."""

    host: str
    port: int
    context: ssl.SSLContext | None = None
    server_name: str = ""
    connect_timeout: float = 10.0
    first_byte_timeout: float = 120.0
    total_timeout: float = 600.0
    call_timeout: float = 30.0
    keep_alive: float = 4.0
    connections: int = 256


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """How many connections there are."""

    idle: int
    in_use: int
    up: bool  #: the last attempt to connect succeeded


class Upstream:
    """A pool of connections to one upstream."""

    def __init__(self, target: UpstreamTarget, clock: Clock) -> None:
        self.target = target
        self.clock = clock
        self.loop = asyncio.get_running_loop()  # kept: in Python 3.11 each call of it is a system call (getpid)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._dialling = 0
        self._buffer = Lender()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._woken = 0  # of those, who have not come yet for what they were woken for
        self._sweeper: asyncio.TimerHandle | None = None
        self._watched: set[Exchange] = set()
        self._watcher: asyncio.TimerHandle | None = None
        self._tick_s = min(1.0, min(target.first_byte_timeout, target.total_timeout) / 20)
        self._is_up = True
        self._is_retired = False

    def send(self, outbound: Outbound, *, slot: Slot | None) -> "Exchange":
        """Return the exchange of a request, to be entered with `async with`, which yields the answer once its header
        is there.

        Raises, on entering:
            UpstreamError: no answer; one of its kinds says why.
            GuardClosedError: the slot's guard said no before the first byte.
        """
        return Exchange(self, outbound, slot)

    def statistics(self) -> ConnectionStatistics:
        """Return how many connections there are."""
        return ConnectionStatistics(len(self._idle), len(self._open) - len(self._idle), self._is_up)

    def retire(self) -> None:
        """Keep no connection any more: those in use run to their end. Another pool has taken over."""
        self._is_retired = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def close(self) -> None:
        """Drop every connection, in use or not."""
        for timer in (self._sweeper, self._watcher):
            if timer is not None:
                timer.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # the transports say goodbye in the loop's next turn

    # Connections, for exchanges.

    def kept(self) -> Connection | None:
        """Return the connection that was kept last, if one is left that nobody uses, and that nobody was woken for."""
        while len(self._idle) > self._woken:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def quiet(self) -> Connection | None:
        """Return the same, if besides nothing waits to be read on it. What does is the upstream's end, or belongs to no
        answer: nobody is to use such a connection, not even a turn of the loop later."""
        connection = self.kept()
        if connection is not None and not connection.quiet:
            connection.close()
            return None
        return connection

    async def connection(self) -> Connection:
        """Return a connection that nobody uses: the one kept last, or a new one.

        Raises:
            UnreachableError, TlsError: there is none to be had.
        """
        if (connection := self.kept()) is not None:
            return connection
        if len(self._open) + self._dialling >= self.target.connections:
            return await self._next_free()
        return await self._dial()

    def keep(self, connection: Connection) -> None:
        """Take a connection back after an exchange that ended in order."""
        if self._is_retired:
            connection.close()
            return
        loop = self.loop
        connection.idle_since = loop.time()
        self._idle.append(connection)
        self._wake_waiter()
        if self._sweeper is None:
            self._sweeper = loop.call_later(self.target.keep_alive, self._sweep)

    async def _next_free(self) -> Connection:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        comes = False
        try:
            async with asyncio.timeout(self.target.connect_timeout):
                await waiter
            comes = True
        except TimeoutError:
            raise UnreachableError(
                f"all {self.target.connections} connections are in use; raise `connections`, or find what holds them"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled():
                self._woken -= 1
                if not comes:
                    self._wake_waiter()
        return await self.connection()

    def _wake_waiter(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._woken += 1
                return

    async def _dial(self) -> Connection:
        target = self.target
        self._dialling += 1
        connection: Connection | None = None
        try:
            async with asyncio.timeout(target.connect_timeout):
                connection = await self._connected()
                await connection.secured
            self._is_up = True
        except UpstreamError:  # the TLS handshake failed, or broke off
            self._is_up = False
            raise
        except TimeoutError:
            self._is_up = False
            what = f"no connection to {target.host}:{target.port} within {target.connect_timeout:g} s"
            raise UnreachableError(f"{what}; is this host's address registered there, and the port open?") from None
        except OSError as error:
            self._is_up = False
            what = error.strerror or type(error).__name__
            raise UnreachableError(f"no connection to {target.host}:{target.port}: {what}") from error
        finally:
            self._dialling -= 1
            if connection is not None and (not connection.secured.done() or connection.secured.exception()):
                connection.abort()
            if connection is None:
                self._wake_waiter()
        return connection

    async def _connected(self) -> Connection:
        target = self.target
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=0.25)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            tls = Tls(target.context, target.server_name or target.host) if target.context is not None else None
            _, connection = await loop.create_connection(
                lambda: Connection(sock, tls, self._over, self._buffer), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        self._open.add(connection)
        return connection

    # Time: one timer looks after all real-time exchanges, since a timer of the loop's own costs each 1 us.

    def watch(self, exchange: Exchange) -> None:
        """Tell an exchange when its `deadline` (the loop's clock) is over, at most a twentieth of a timeout late."""
        self._watched.add(exchange)
        if self._watcher is None:
            self._watcher = self.loop.call_later(self._tick_s, self._look)

    def unwatch(self, exchange: Exchange) -> None:
        """Watch it no more. Harmless when it is not watched."""
        self._watched.discard(exchange)

    def _look(self) -> None:
        self._watcher = None
        now = self.loop.time()
        for exchange in [one for one in self._watched if one.deadline <= now]:
            self._watched.discard(exchange)
            exchange.time_is_over()
        if self._watched:
            self._watcher = self.loop.call_later(self._tick_s, self._look)

    def _over(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake_waiter()

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        stale = [one for one in self._idle if loop.time() - one.idle_since >= self.target.keep_alive]
        for connection in stale:
            self._idle.remove(connection)
            connection.close()
        if self._idle:
            due = self._idle[0].idle_since + self.target.keep_alive
            self._sweeper = loop.call_at(due, self._sweep)


def target_of(settings: UpstreamSettings) -> UpstreamTarget:
    """Make the target that a configuration describes. Raises OSError or ssl.SSLError when a file cannot be used."""
    context = None
    if settings.uses_tls:
        password = settings.key_password.get_secret_value() if settings.key_password is not None else None
        context = client_context(ca=settings.ca, certificate=settings.certificate, key=settings.key, password=password)
    return UpstreamTarget(
        host=settings.host,
        port=settings.port,
        context=context,
        server_name=settings.server_name or "",
        connect_timeout=settings.connect_timeout,
        first_byte_timeout=settings.first_byte_timeout,
        total_timeout=settings.total_timeout,
        call_timeout=settings.call_timeout,
        keep_alive=settings.keep_alive,
        connections=settings.connections,
    )
