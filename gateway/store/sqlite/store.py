"""The store's interface over SQLite: each method is one piece of work for the thread.

Rules that always hold: see `gateway.store.interface`. The file is one process's; `data_dir`'s lock sees to that.
Nothing is decided here.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from gateway.records import (
    AuditRow,
    Batch,
    BatchSighting,
    Controls,
    InterruptionRecord,
    ItemRecord,
    LaneWork,
    Loaded,
    NewItem,
    NewRun,
    Recovered,
    RunRecord,
    Settled,
    Settlement,
    StoredItem,
)
from gateway.store.interface import DelayedError
from gateway.store.migrating import Migration, migrations, pending
from gateway.store.sqlite import controls, loading, results, runs, settling, work
from gateway.store.sqlite.thread import BUSY_MS, StoreThread, Transaction, to_us
from policies.model import Clock, ItemState, RunState

READER_MS = 200
"""For so long a purge waits for whoever reads the log."""
SLICES_PER_COPY = 16
"""How often a purge has the log copied back, a few MB at a time, lest one commit does it for all."""


async def open_sqlite(path: Path, clock: Clock) -> "SqliteStore":
    """Open the store in this file; make it when it is missing. `migrate` it before its first use."""
    thread = StoreThread(path, clock)
    await thread.start()
    return SqliteStore(thread)


class SqliteStore:
    """The store. Made by `open_sqlite`; `close` when done."""

    def __init__(self, thread: StoreThread) -> None:
        self._thread = thread

    # Life.

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema to what this program knows."""
        return await self._thread.write(_migrate, migrations("sqlite"))

    async def close(self) -> None:
        """Let go of the file."""
        await self._thread.close()

    # Submission.

    async def create_run(self, new: NewRun) -> RunRecord:
        """Make a run, or return the one with the same idempotency key."""
        return await self._thread.write(runs.create, new)

    async def set_dictionary(self, run_id: int, sealed: bytes) -> bytes:
        """Give a run its dictionary, once."""
        return await self._thread.write(runs.set_dictionary, run_id, sealed)

    async def add_items(
        self, run_id: int, items: Sequence[NewItem], *, received: int | None, places: bool = False
    ) -> Loaded:
        """Add items, each once by its key tag."""
        return await self._thread.write(loading.add, run_id, items, received, places)

    # Runs.

    async def run(self, public_id: str) -> RunRecord | None:
        """Return a run."""
        return await self._thread.read(runs.find, public_id)

    async def runs(self, states: Sequence[RunState] = (), *, after: int = 0, limit: int = 100) -> Sequence[RunRecord]:
        """Return runs, oldest first."""
        return await self._thread.read(runs.listed, states, after, limit)

    async def change_state(
        self, run_id: int, to: RunState, *, author: str, reason: str, expected: Sequence[RunState] = ()
    ) -> RunRecord:
        """Change a run's state by the table."""
        return await self._thread.write(runs.change_state, run_id, to, author, reason, expected)

    async def set_priority(self, run_id: int, priority: int, *, author: str) -> RunRecord:
        """Change whose turn it is first."""
        return await self._thread.write(runs.set_priority, run_id, priority, author)

    async def lanes(self, run_id: int) -> Sequence[tuple[LaneWork, int]]:
        """Return a run's lanes, each with its total of items."""
        return await self._thread.read(work.lanes, run_id)

    # Execution.

    async def work(self, now: datetime) -> Sequence[LaneWork]:
        """Return the lanes in which something is left."""
        return await self._thread.read(work.work, to_us(now))

    async def claim(self, lane_id: int, holder: str, *, size: int, window: int) -> Batch | None:
        """Claim positions that nobody has claimed."""
        return await self._thread.write(work.claim, lane_id, holder, size, window)

    async def claim_returned(self, lane_id: int, holder: str, *, size: int, armed: bool = True) -> Batch | None:
        """Claim returned items whose time has come."""
        return await self._thread.write(work.claim_returned, lane_id, holder, size, armed)

    async def fetch(self, batch: Batch) -> Sequence[StoredItem]:
        """Return what of a batch is still to be sent."""
        return await self._thread.read(work.fetch, batch)

    async def settle(self, settlement: Settlement) -> Settled:
        """Write results, returned items and marks."""
        return await self._thread.write(settling.settle, settlement)

    async def renew_batches(self, holder: str) -> None:
        """Raise the renewal number of every batch of this process."""
        await self._thread.write(settling.renew, holder)

    async def batches(self) -> Sequence[BatchSighting]:
        """Return every batch."""
        return await self._thread.read(settling.sightings)

    async def recover(self, sighting: BatchSighting, *, delay_s: float) -> Recovered | None:
        """End a batch that still stands as sighted."""
        return await self._thread.write(settling.recover, sighting, delay_s)

    async def rest(self, run_id: int, *, may_complete: bool) -> RunRecord:
        """Say that this process has nothing of the run in hand."""
        return await self._thread.write(work.rest, run_id, may_complete)

    async def count(
        self, run_id: int, *, done: int, rejected: int, failed: int, attempts: int, by: tuple[str, int]
    ) -> RunRecord:
        """Add to the counts of a client-driven run, once."""
        return await self._thread.write(runs.count, run_id, done, rejected, failed, attempts, by)

    # Results.

    async def items(
        self,
        run_id: int,
        states: Sequence[ItemState] = (),
        *,
        after: int = -1,
        limit: int = 1000,
        bodies: bool = False,
        requests: bool = False,
    ) -> Sequence[ItemRecord]:
        """Return settled items, in the order of submission."""
        return await self._thread.read(results.items, run_id, states, after, limit, bodies, requests)

    async def item_at(self, lane_id: int, position: int) -> ItemRecord | None:
        """Return one settled item with its answer."""
        return await self._thread.read(results.item_at, lane_id, position)

    async def decide(self, run_id: int, seq: int, decision: str, *, author: str, reason: str) -> RunRecord:
        """Settle an item in doubt by a person's word."""
        return await self._thread.write(settling.decide, run_id, seq, decision, author, reason)

    async def purge(self, run_id: int, *, author: str) -> RunRecord:
        """Drop the run's key, and then in slices what it sealed, so that nobody waits long for the thread."""
        await self._thread.write(runs.begin_purge, run_id, author)
        slices = 0
        while await self._thread.write(runs.purge_slice, run_id):
            slices += 1
            if slices % SLICES_PER_COPY == 0:
                await self._thread.ask(_copy_back)
        await self._thread.ask(_empty_log)
        return await self._thread.write(runs.end_purge, run_id)

    async def to_purge(self, now: datetime) -> Sequence[RunRecord]:
        """Return ended runs whose retention is over."""
        return await self._thread.read(runs.due_for_purge, to_us(now))

    # Async answers.

    async def find_handle(self, handle: str) -> tuple[RunRecord, int, int] | None:
        """Return the run, lane and position of a handle."""
        return await self._thread.read(results.find_handle, handle)

    async def async_run(self, client: str, route: str, day: str) -> RunRecord | None:
        """Return the async run of this client, route and day."""
        return await self._thread.read(runs.async_run, client, route, day)

    # Holds and interruptions.

    async def controls(self) -> Controls:
        """Return what stands against bulk."""
        return await self._thread.write(controls.controls)

    async def hold(self, scope: str, *, author: str, reason: str) -> Controls:
        """Stop bulk."""
        return await self._thread.write(controls.hold, scope, author, reason)

    async def unhold(self, scope: str, *, author: str, reason: str) -> Controls:
        """End a hold."""
        return await self._thread.write(controls.unhold, scope, author, reason)

    async def interrupt(self, source: str, *, reason: str, cool_s: float) -> InterruptionRecord:
        """Note an interruption that begins now."""
        return await self._thread.write(controls.interrupt, source, reason, cool_s)

    async def restart_ramp(self, source: str) -> Controls:
        """Let the ramp of a source begin again."""
        return await self._thread.write(controls.restart_ramp, source)

    async def end_interruption(self, source: str, *, author: str, reason: str, skip: bool) -> Controls:
        """Forget an interruption, or end its cool-down early."""
        return await self._thread.write(controls.end_interruption, source, author, reason, skip)

    # Audit.

    async def audit(self, *, after: int = 0, limit: int = 100) -> Sequence[AuditRow]:
        """Return who changed what."""
        return await self._thread.read(controls.audit_rows, after, limit)

    async def note(self, author: str, action: str, subject: str, detail: str = "") -> None:
        """Write an audit row."""
        await self._thread.write(runs.audit, author, action, subject, detail)


def _migrate(tx: Transaction, steps: Sequence[Migration]) -> tuple[int, int]:
    """Carry out what the file lacks, under SQLite's write lock."""
    tx.db.execute(
        "create table if not exists schema_version "
        "(version integer primary key, name text not null, at integer not null) strict"
    )
    (before,) = tx.db.execute("select coalesce(max(version), 0) from schema_version").fetchone()
    for step in pending(steps, before):
        for statement in _statements(step.sql):
            tx.db.execute(statement)
        tx.db.execute("insert into schema_version values (?, ?, ?)", (step.version, step.name, tx.now))
    return before, max(before, len(steps))


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements: SQLite's own way of running one commits first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _copy_back(db: sqlite3.Connection) -> None:
    """Copy the write-ahead log back while it is short."""
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _empty_log(db: sqlite3.Connection) -> None:
    """Copy the write-ahead log back and cut it: a purged key must not live on there."""
    db.execute(f"PRAGMA busy_timeout = {READER_MS}").fetchall()  # all others wait for this thread
    try:
        ((is_read, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}").fetchall()
    if is_read:
        raise DelayedError(
            "The purge is not over: another program (a backup?) reads the database, so its log still has what was "
            "purged. It is completed by itself when that program has ended."
        )
