"""Runs: made, read, changed by the table of `policies.runs`, and purged.

Rules that always hold:
- Whoever changes a run has its row locked (`get` with `lock`) before anything that belongs to it.
- A change of state goes through `move` and nowhere else; what a person did, and every change but the turns between
  ready and running, is in the audit rows of the same transaction.
- A submitted file has partitions of its own for items and results, which go with it.
"""

import json
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from gateway.records import GATEWAY, RETENTION_S, Counts, NewRun, RunRecord, takes_over
from gateway.store.interface import DelayedError, StateError, StoreError
from gateway.store.postgres.lines import Side
from policies.model import RunKind, RunState
from policies.runs import ENDED, may_change

COLUMNS = (
    "id, part, public_id, kind, name, author, route, client, state, reason, changed_by, changed_at, created_at, "
    "priority, not_before, max_attempts, options, wrapped_key, dictionary, received, total, done, rejected, failed, "
    "in_doubt, attempts, started_at, ended_at, purge_after"
)
PURGE_SLICE = 2000
"""Rows deleted in one transaction: well below 50 ms."""
DROP_S = 60.0
"""Dropping gigabytes may take so long; nobody waits for it but the purge."""

_CREATE = f"""
insert into run (public_id, kind, name, author, route, client, state, changed_by, changed_at, created_at, priority,
  not_before, max_attempts, options, day, idempotency_key, wrapped_key)
values ($1, $2, $3, $4, $5, $6, 'loading', $4, gateway_now(), gateway_now(), $7, $8, $9, $10, $11, $12, $13)
on conflict (author, idempotency_key) where idempotency_key <> '' do nothing returning {COLUMNS}"""  # noqa: S608 - a constant

_MOVE = f"""
update run set state = $2, reason = $3, changed_by = $4, changed_at = gateway_now(),
  started_at = case when $5 then gateway_now() else started_at end,
  ended_at = case when $6 then gateway_now() else ended_at end,
  purge_after = case when $6 then gateway_now() + $7 * interval '1 second' else purge_after end
where id = $1 returning {COLUMNS}"""  # noqa: S608 - a constant

_COUNTED = """
insert into counted (run_id, writer, number) values ($1, $2, $3)
on conflict (run_id, writer) do update set number = excluded.number where counted.number < excluded.number
returning number"""


class RunsSide(Side):
    """The side of the store that keeps runs."""

    async def create_run(self, new: NewRun) -> RunRecord:
        """Make a run, or return the one that the author made with the same idempotency key."""
        _check_priority(new.priority)
        async with self._lines.shared.transaction() as connection:
            row = await connection.fetchrow(
                _CREATE,
                *(new.public_id, new.kind.value, new.name, new.author, new.route, new.client, new.priority),
                *(new.not_before, new.max_attempts, json.dumps(dict(new.options)), str(new.options.get("day", ""))),
                *(new.idempotency_key, new.wrapped_key),
            )
            if row is None:
                row = await connection.fetchrow(
                    f"select {COLUMNS} from run where author = $1 and idempotency_key = $2",  # noqa: S608 - a constant
                    new.author,
                    new.idempotency_key,
                )
                assert row is not None  # it was in the way
                return record(row)
            if new.kind is RunKind.FILE:
                await _make_partitions(connection, int(row["id"]))
            await audit(connection, new.author, "create run", new.public_id, new.name)
            return record(row)

    async def set_dictionary(self, run_id: int, sealed: bytes) -> bytes:
        """Give a run its dictionary, once; return the one that it has now."""
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if run.wrapped_key is None:
                raise StateError(f"Run {run.public_id} is purged: make a new one.")
            if run.dictionary is not None:
                return run.dictionary
            await connection.execute("update run set dictionary = $2 where id = $1", run_id, sealed)
            return sealed

    async def run(self, public_id: str) -> RunRecord | None:
        """Return a run."""
        async with self._lines.shared.statement() as connection:
            row = await connection.fetchrow(f"select {COLUMNS} from run where public_id = $1", public_id)  # noqa: S608 - a constant
        return None if row is None else record(row)

    async def runs(self, states: Sequence[RunState] = (), *, after: int = 0, limit: int = 100) -> Sequence[RunRecord]:
        """Return runs with an id above `after`, oldest first; of these states, or all."""
        async with self._lines.shared.statement() as connection:
            rows = await connection.fetch(
                f"select {COLUMNS} from run where id > $1 and (cardinality($2::text[]) = 0 or state = any ($2)) "  # noqa: S608 - a constant
                "order by id limit $3",
                *(after, [state.value for state in states], limit),
            )
        return [record(row) for row in rows]

    async def async_run(self, client: str, route: str, day: str) -> RunRecord | None:
        """Return the newest async run of this client, route and day."""
        async with self._lines.shared.statement() as connection:
            row = await connection.fetchrow(
                f"select {COLUMNS} from run where kind = 'async' and client = $1 and route = $2 and day = $3 "  # noqa: S608 - a constant
                "order by id desc limit 1",
                *(client, route, day),
            )
        return None if row is None else record(row)

    async def change_state(
        self, run_id: int, to: RunState, *, author: str, reason: str, expected: Sequence[RunState] = ()
    ) -> RunRecord:
        """Change a run's state by the table of `policies.runs`; `expected`: only from one of these."""
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if expected and run.state not in expected:
                wanted = " or ".join(state.value for state in expected)
                raise StateError(
                    f"Run {run.public_id} is {run.state.value}{_why(run)}, not {wanted}: look at it again first."
                )
            return await move(connection, run, to, author, reason)

    async def set_priority(self, run_id: int, priority: int, *, author: str) -> RunRecord:
        """Change whose turn it is first."""
        _check_priority(priority)
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if run.state in ENDED:
                raise StateError(f"Run {run.public_id} is {run.state.value}: its priority means nothing any more.")
            await connection.execute("update run set priority = $2 where id = $1", run_id, priority)
            await audit(connection, author, "set priority", run.public_id, f"{run.priority} -> {priority}")
            return await get(connection, run_id)

    async def count(
        self, run_id: int, *, done: int, rejected: int, failed: int, attempts: int, by: tuple[str, int]
    ) -> RunRecord:
        """Add to the counts (and the total) of a client-driven run, once."""
        if min(done, rejected, failed, attempts) < 0:
            raise StoreError("Counts only grow.")
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if run.kind is not RunKind.CLIENT:
                raise StateError(
                    f"Run {run.public_id} is not client-driven: its items are counted as they are settled."
                )
            if await connection.fetchval(_COUNTED, run_id, *by) is None:
                return run
            row = await connection.fetchrow(
                "update run set done = done + $2, rejected = rejected + $3, failed = failed + $4, "  # noqa: S608 - a constant
                f"total = total + $2 + $3 + $4, attempts = attempts + $5 where id = $1 returning {COLUMNS}",
                *(run_id, done, rejected, failed, attempts),
            )
            assert row is not None  # it is locked
            return record(row)

    async def to_purge(self, now: datetime) -> Sequence[RunRecord]:
        """Return ended runs whose retention is over, and those whose purge was broken off."""
        async with self._lines.shared.statement() as connection:
            rows = await connection.fetch(
                f"select {COLUMNS} from run where (wrapped_key is not null or purging) "  # noqa: S608 - a constant
                "and (purge_after <= $1 or purging) order by id",
                now,
            )
        return [record(row) for row in rows]

    async def purge(self, run_id: int, *, author: str) -> RunRecord:
        """Drop the run's key, then its rows. Broken off, it is completed by the next one."""
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if run.state not in ENDED:
                raise StateError(f"Run {run.public_id} is {run.state.value}: cancel it first, or wait for its end.")
            if run.wrapped_key is not None:
                await connection.execute(
                    "update run set wrapped_key = null, dictionary = null, purging = true where id = $1", run_id
                )
                await connection.execute("delete from batch where run_id = $1", run_id)
                await connection.execute("delete from counted where run_id = $1", run_id)
                await audit(connection, author, "purge run", run.public_id)
            part: int = await connection.fetchval("select part from run where id = $1", run_id)
            found = await connection.fetch("select id from lane where run_id = $1 order by id", run_id)
        spans = [(row["id"] << 32, (row["id"] + 1) << 32) for row in found]
        # Items before results: a call that was in progress may still end, and settles only what there is.
        for table in ("returned", "handle") if part else ("returned", "handle", "item", "result"):
            for lo, hi in spans:
                await self._delete_slices(table, lo, hi)
        for table in ("item", "result") if part else ():
            await self._drop(f"{table}_{part}")
        async with self._lines.shared.transaction() as connection:
            await connection.execute("update run set purging = false where id = $1", run_id)
            return await get(connection, run_id)

    async def _delete_slices(self, table: str, lo: int, hi: int) -> None:
        of_part = "part = 0 and " if table in ("result", "item") else ""
        lowest = f"select min(id) from {table} where {of_part}id >= $1 and id < $2"  # noqa: S608 - names from above
        delete = f"delete from {table} where {of_part}id >= $1 and id < $2"  # noqa: S608 - names from above
        while True:
            async with self._lines.shared.transaction() as connection:
                first = await connection.fetchval(lowest, lo, hi)
                if first is None:
                    return
                lo = min(first + PURGE_SLICE, hi)
                await connection.execute(delete, first, lo)

    async def _drop(self, table: str) -> None:
        # Emptied first, alone: that takes long, and locks nothing of the others. What follows locks the parent, for a
        # moment; where a backup holds it, it gives up soon, since all others would queue behind, and the next purge
        # completes it. Both outlast what makes an autovacuum give way (`deadlock_timeout`, 1 s).
        for statement, patience in ((f"truncate {table}", "20s"), (f"drop table {table}", "1500ms")):
            async with self._lines.shared.transaction(DROP_S) as connection:
                await connection.execute(
                    f"set local statement_timeout = '{DROP_S}s'; set local lock_timeout = '{patience}'"
                )
                if await connection.fetchval("select to_regclass($1) is not null", table):
                    try:
                        await connection.execute(statement)
                    except asyncpg.LockNotAvailableError as error:
                        raise DelayedError(
                            "The purge is not over: another program (a backup?) holds the tables. The run's key is "
                            "gone; the rest is completed by itself when that program has ended."
                        ) from error


async def _make_partitions(connection: asyncpg.Connection, number: int) -> None:
    await connection.execute(f"update run set part = {number} where id = {number}")  # noqa: S608 - numbers
    # Made apart and attached: `create table … partition of` locks the parent against everybody who reads it.
    for table in ("item", "result"):
        await connection.execute(
            f"create table {table}_{number} (like {table} including storage including constraints)"
        )
        await connection.execute(f"alter table {table} attach partition {table}_{number} for values in ({number})")
    await connection.execute(
        f"create unique index item_{number}_key on item_{number} (key_tag) where key_tag is not null"
    )


async def get(connection: asyncpg.Connection, run_id: int, *, lock: bool = False) -> RunRecord:
    """Return a run. Raises StoreError when there is none."""
    row = await connection.fetchrow(
        f"select {COLUMNS} from run where id = $1{' for no key update' if lock else ''}",  # noqa: S608 - constants
        run_id,
    )
    if row is None:
        raise StoreError(f"There is no run {run_id}. `bcss-gateway runs list` shows those that exist.")
    return record(row)


async def move(connection: asyncpg.Connection, run: RunRecord, to: RunState, author: str, reason: str) -> RunRecord:
    """Change a locked run's state by the table."""
    if not (may_change(run.state, to) or takes_over(run, to, author)):
        raise StateError(f"Run {run.public_id} is {run.state.value}{_why(run)} and cannot become {to.value}.")
    first_start = to is RunState.RUNNING and run.started_at is None
    row = await connection.fetchrow(
        _MOVE, *(run.id, to.value, reason, author, first_start, to in ENDED, _retention_s(run))
    )
    turn = author == GATEWAY and {run.state, to} == {RunState.READY, RunState.RUNNING}
    if first_start or not turn:  # else every pause for want of a slot would be a row
        await audit(connection, author, f"run {to.value}", run.public_id, reason)
    assert row is not None  # it is locked
    return record(row)


async def audit(connection: asyncpg.Connection, author: str, action: str, subject: str, detail: str = "") -> None:
    """Write who changed what."""
    await connection.execute(
        "insert into audit (at, author, action, subject, detail) values (gateway_now(), $1, $2, $3, $4)",
        *(author, action, subject, detail),
    )


def record(row: asyncpg.Record) -> RunRecord:
    """Return a row of `COLUMNS` as what it is."""
    plain = {
        name: row[name]
        for name in (
            *("id", "public_id", "name", "author", "route", "client", "reason", "changed_by", "changed_at", "priority"),
            *("created_at", "not_before", "max_attempts", "wrapped_key", "dictionary", "received", "total", "attempts"),
            *("started_at", "ended_at", "purge_after"),
        )
    }
    return RunRecord(
        **plain,
        kind=RunKind(row["kind"]),
        state=RunState(row["state"]),
        options=json.loads(row["options"]),
        counts=Counts(row["done"], row["rejected"], row["failed"], row["in_doubt"]),
    )


def _retention_s(run: RunRecord) -> float:
    said = run.options.get("retention_s", RETENTION_S)
    return float(said) if isinstance(said, int | float) else RETENTION_S


def _check_priority(priority: int) -> None:
    if not 0 <= priority <= 9:
        raise StoreError(f"A priority is 0 to 9, not {priority}; lower goes first.")


def _why(run: RunRecord) -> str:
    return f" ({run.changed_by}: {run.reason})" if run.reason else ""
