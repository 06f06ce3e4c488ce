"""One thread that owns the connection: what is asked is done there in turn, each in one transaction.

Rules that always hold:
- What returned is on disk (WAL, synchronous=FULL); what raised had no effect.
- A caller who is cancelled leaves; what it asked for is carried out all the same.
- SQLite's errors leave as `StoreDownError` (it may work again: disk full, locked, I/O) or `StoreError` (it will not),
  with what to do next.

Never decides what is read or written.
"""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Concatenate, ParamSpec, TypeVar, cast

from gateway.store.interface import StoreError
from policies.model import Clock, StoreDownError

P = ParamSpec("P")
T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
BUSY_MS = 2000
"""For so long another program's lock is waited for."""
_PRAGMAS = (
    f"busy_timeout = {BUSY_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "cache_size = -65536",  # 64 MiB
    "temp_store = MEMORY",
    "wal_autocheckpoint = 16000",  # 64 MiB: pages of key tags that a load touches again and again are copied back once
    "secure_delete = FAST",  # a purged key's octets are overwritten, not only unlinked
)


def to_us(instant: datetime) -> int:
    """Return an instant as microseconds since 1970."""
    return (instant - EPOCH) // _MICROSECOND


def span_us(seconds: float) -> int:
    """Return a span as microseconds."""
    return round(seconds * 1_000_000)


def to_instant(us: int) -> datetime:
    """Return microseconds since 1970 as an instant, in UTC."""
    return EPOCH + us * _MICROSECOND


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a piece of work gets: the connection, inside a transaction, and the time."""

    db: sqlite3.Connection
    now: int  #: the store's clock, microseconds since 1970


class StoreThread:
    """The thread. `start` before anything else, `close` when done."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="sqlite", daemon=True)
        self._closing = False
        self._connection: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Open the file; make it when it is missing, readable by its owner only."""
        self._thread.start()
        try:
            await self._submit(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what was asked, and let go of the file. Harmless when repeated."""
        if not self._closing:
            closed = self._submit(self._close)
            self._closing = True
            self._queue.put(None)
            await asyncio.shield(closed)
            self._thread.join()

    async def write(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Carry out work that may change something."""
        return await self.ask(lambda db: self._transact(db, "BEGIN IMMEDIATE", lambda tx: work(tx, *args, **kwargs)))

    async def read(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Carry out work that only reads."""
        return await self.ask(lambda db: self._transact(db, "BEGIN", lambda tx: work(tx, *args, **kwargs)))

    async def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out work outside any transaction."""
        if self._closing:
            raise StoreDownError("The store is closed: the gateway is stopping.")
        return await self._submit(lambda: work(self._open_connection()))

    # On the event loop.

    def _submit(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        answer: asyncio.Future[T] = self._loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.cancelled():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast("T", result))

        def carry_out() -> None:
            result, error = None, None
            try:
                result = work()
            except sqlite3.Error as cause:
                error = _told(cause, self._path)
            except Exception as cause:  # noqa: BLE001 - it belongs to the caller, who waits for it on the loop
                error = cause
            with suppress(RuntimeError):  # the loop is gone, and the caller with it
                self._loop.call_soon_threadsafe(settle, result, error)

        self._queue.put(carry_out)
        return answer

    # On the thread.

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def _open(self) -> None:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            what = f"{self._path}: cannot be opened ({error.strerror})"
            raise StoreDownError(f"{what}. Give the gateway's user the file and its directory.") from None
        self._connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=256)
        for pragma in _PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}").fetchall()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreDownError("The store is not open.")
        return self._connection

    def _transact(self, db: sqlite3.Connection, begin: str, work: Callable[[Transaction], T]) -> T:
        db.execute(begin)
        try:
            result = work(Transaction(db, to_us(self._clock.wall())))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite itself may have rolled back already
                db.execute("ROLLBACK")
            raise
        return result


def _told(error: sqlite3.Error, path: Path) -> Exception:
    """Return what is said of an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            what = f"{path}: no room on the disk. Make room there; nothing was half written, and it goes on by itself."
            return StoreDownError(what)
        case sqlite3.SQLITE_IOERR:
            what = (
                f"{path}: the disk reports an error ({name}). Look at the disk, its free space and the process's "
                "limits; nothing was half written, and it goes on by itself once the disk works."
            )
            return StoreDownError(what)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            what = f"{path}: another program holds the database. Find it (fuser {path}) and end it."
            return StoreDownError(what)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            what = f"{path}: cannot be opened for writing ({name}). Give the gateway's user the file and its directory."
            return StoreDownError(what)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            what = (
                f"{path}: the database is damaged ({name}). Stop the gateway, keep the file for analysis, and restore "
                "the last copy, or start with an empty store."
            )
            return StoreError(what)
        case _:
            return StoreError(f"{path}: {name}: {error}. This is a defect of the gateway: report it.")
