"""Held connections to PostgreSQL, and what their errors mean.

A line is one connection, used by one transaction at a time and made again when it broke. Each thing that must not wait
for another has its own line: results have one, slots have one, the rest shares a few.

Rules that always hold:
- Everything has a time limit, the wait for the line and for a connection included. When it is over, the connection is
  dropped, since nobody knows what is still on it.
- A transaction that did not end with a commit is rolled back: by us, or by the server that sees its connection gone.
- After a failed connection nobody tries again for a while (doubling, capped); until then the answer is immediate.
- Commits are durable, whatever the server's default is (`synchronous_commit`).
- No message tells the password.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg

from gateway.store.interface import StoreError
from policies.model import Clock, StoreDownError

LONGEST_PAUSE_S = 2.0
"""Between attempts to connect: a lease allows several of them."""
FIRST_PAUSE_S = 0.05
PATIENCE = 1.5
"""The server ends a statement by itself so many time limits after it began: ours has passed by then."""

LISTENER_CHECK_S = 10.0

DOWN: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
    asyncpg.InvalidCachedStatementError,  # another gateway changed the schema; a new connection knows it
)
_NO_CONNECTION: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError, *DOWN)
_NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError)


class Line:
    """One held connection."""

    def __init__(self, url: str, clock: Clock, timeout_s: float) -> None:
        self.waiting = 0  #: who uses it or waits for it
        self._url = url
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._pause_s = 0.0
        self._not_before = 0.0
        self._failure = ""
        self._listening: asyncpg.Connection | None = None
        self._asked_at = 0.0
        self._closed = False

    @property
    def is_there(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    @property
    def rests(self) -> bool:
        """Whether a connection could not be made, and is not tried again for a while."""
        return not self.is_there and self._clock.boot() < self._not_before

    @asynccontextmanager
    async def statement(self, timeout_s: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """Lend the connection for one statement, which is a transaction of its own."""
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s), self._lock:
                connection = await self._connected()
                try:
                    yield connection
                except BaseException:
                    self.drop()
                    raise
        except Exception as error:
            raise _meaning(error) from error
        finally:
            self.waiting -= 1

    @asynccontextmanager
    async def transaction(self, timeout_s: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """Lend the connection for one transaction. It commits when the block ends, and is rolled back when it raises.

        A `StoreError` of the block is its caller's affair: the connection stays.
        """
        refused: StoreError | None = None
        async with self.statement(timeout_s) as connection:
            await connection.execute("begin")
            try:
                yield connection
            except StoreError as error:
                refused = error
                await connection.execute("rollback")
            else:
                await connection.execute("commit")
        if refused is not None:
            raise refused

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Have `heard` called when there is a notification, or when the connection is lost. Harmless when repeated:
        then it asks now and again whether the server is still there, since a listener would never notice."""
        now = self._clock.boot()
        known = self._connection if self._connection is self._listening else None
        if known is not None and not known.is_closed() and now - self._asked_at < LISTENER_CHECK_S:
            return
        async with self.statement() as connection:
            self._asked_at = now
            if connection is self._listening:
                await connection.execute("select 1")
                return
            await connection.add_listener(channel, lambda *_: heard())
            connection.add_termination_listener(lambda *_: heard())
            self._listening = connection

    async def close(self) -> None:
        """Let go of the connection, for good."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None and not self._lock.locked():
            with suppress(*DOWN, asyncpg.InterfaceError):
                await connection.close(timeout=1.0)
        if connection is not None:
            connection.terminate()

    def drop(self) -> None:
        """Drop the connection; the next use makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _connected(self) -> asyncpg.Connection:
        if self._closed:
            raise StoreDownError("the store is closed: the gateway is stopping.")
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._connection = None
        if self._clock.boot() < self._not_before:
            raise StoreDownError(self._failure)
        try:
            connection = await asyncpg.connect(
                # A little less than our caller's limit: so a server that does not answer is known to those who wait.
                self._url,
                timeout=self._timeout_s * 0.9,
                server_settings=_session(self._timeout_s),
            )
        except _NO_CONNECTION as error:
            self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
            self._not_before = self._clock.boot() + self._pause_s
            self._failure = f"PostgreSQL cannot be reached ({_told(error)}). Look at `store.url` and at the server."
            raise StoreDownError(self._failure) from error
        self._pause_s = 0.0
        self._connection = connection
        return connection


def _session(timeout_s: float) -> dict[str, str]:
    return {
        "application_name": "bcss-gateway",
        "timezone": "UTC",
        "synchronous_commit": "on",
        "statement_timeout": f"{timeout_s * PATIENCE:.3f}s",
        # Before our own limit: whoever waits for a lock then knows that nothing happened.
        "lock_timeout": f"{timeout_s * 0.8:.3f}s",
        # A frozen client must not hold the others up for longer than they wait.
        "idle_in_transaction_session_timeout": f"{max(1.0, timeout_s / 2):.3f}s",
        # Plans for these very values: the partition is known, and stale statistics cannot make a claim scan a table.
        "plan_cache_mode": "force_custom_plan",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "jit": "off",
    }


def _meaning(error: Exception) -> Exception:
    """Return what an error means to whoever asked."""
    if isinstance(error, (StoreError, StoreDownError)):
        return error
    if isinstance(error, TimeoutError):
        return StoreDownError("PostgreSQL did not answer in time (`store.timeout`). Look at its load and the network.")
    if isinstance(error, DOWN):
        return StoreDownError(f"PostgreSQL did not do it ({_told(error)}). It is tried again.")
    if isinstance(error, asyncpg.InterfaceError) and "clos" in str(error):
        return StoreDownError(f"The connection to PostgreSQL was lost ({_told(error)}). It is made again.")
    if isinstance(error, _NO_SCHEMA):
        return StoreError(f"The database lacks something ({_told(error)}): run `bcss-gateway store migrate`.")
    return error


def _told(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Lines:
    """The lines of runs: one for claims and results, a few for the rest."""

    def __init__(self, settling: Line, shared: tuple[Line, ...]) -> None:
        self.settling = settling
        self._shared = shared

    @property
    def shared(self) -> Line:
        """Return the line that is asked for least, one that is there rather than one that has to be made first: so one
        that cannot be made (the server takes no more connections) stops nothing while others are there."""
        return min(self._shared, key=lambda line: (line.rests, line.waiting, not line.is_there))

    def all(self) -> tuple[Line, ...]:
        """Return every line."""
        return (self.settling, *self._shared)


class Side:
    """What the sides of the store have: the lines of runs."""

    _lines: Lines
