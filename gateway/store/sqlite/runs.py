"""Runs: made, read, changed by the table of `policies.runs`, and purged.

Rules that always hold: a change of state goes through `move` and nowhere else; what a person did, and every change but
the turns between ready and running, is in the audit rows of the same transaction.
"""

import json
from collections.abc import Sequence
from typing import Any

from gateway.records import GATEWAY, RETENTION_S, Counts, NewRun, RunRecord, takes_over
from gateway.store.interface import StateError, StoreError
from gateway.store.sqlite.thread import Transaction, span_us, to_instant, to_us
from policies.model import RunKind, RunState
from policies.runs import ENDED, may_change

_COLUMNS = (
    "run_id, public_id, kind, name, author, route, client, state, reason, changed_by, changed_at, created_at, "
    "priority, not_before, max_attempts, options, wrapped_key, dictionary, received, total, "
    "done, rejected, failed, in_doubt, attempts, started_at, ended_at, purge_after"
)
PURGE_SLICE = 2000
"""Rows deleted in one transaction: well below 50 ms."""


def create(tx: Transaction, new: NewRun) -> RunRecord:
    """Make a run, or find it by its idempotency key."""
    if new.idempotency_key:
        row = tx.db.execute(
            "select run_id from run where author = ? and idempotency_key = ? and idempotency_key <> ''",
            (new.author, new.idempotency_key),
        ).fetchone()
        if row:
            return get(tx, row[0])
    values = {
        "public_id": new.public_id,
        "kind": new.kind.value,
        "name": new.name,
        "author": new.author,
        "route": new.route,
        "client": new.client,
        "day": str(new.options.get("day", "")),
        "state": RunState.LOADING.value,
        "reason": "",
        "changed_by": new.author,
        "changed_at": tx.now,
        "created_at": tx.now,
        "priority": _priority(new.priority),
        "not_before": None if new.not_before is None else to_us(new.not_before),
        "max_attempts": new.max_attempts,
        "options": json.dumps(dict(new.options)),
        "idempotency_key": new.idempotency_key,
        "wrapped_key": new.wrapped_key,
    }
    run_id = tx.db.execute(
        f"insert into run ({', '.join(values)}) values ({', '.join('?' * len(values))})",  # noqa: S608 - names from above
        tuple(values.values()),
    ).lastrowid
    assert run_id is not None
    audit(tx, new.author, "create run", new.public_id, new.name)
    return get(tx, run_id)


def get(tx: Transaction, run_id: int) -> RunRecord:
    """Return a run. Raises StoreError when there is none."""
    row = tx.db.execute(f"select {_COLUMNS} from run where run_id = ?", (run_id,)).fetchone()  # noqa: S608 - a constant
    if row is None:
        raise StoreError(f"There is no run {run_id}. `bcss-gateway runs list` shows those that exist.")
    return _record(row)


def find(tx: Transaction, public_id: str) -> RunRecord | None:
    """Return a run by its public name."""
    row = tx.db.execute(f"select {_COLUMNS} from run where public_id = ?", (public_id,)).fetchone()  # noqa: S608 - a constant
    return None if row is None else _record(row)


def listed(tx: Transaction, states: Sequence[RunState], after: int, limit: int) -> Sequence[RunRecord]:
    """Return runs, oldest first."""
    among = f"and state in ({', '.join('?' * len(states))})" if states else ""
    rows = tx.db.execute(
        f"select {_COLUMNS} from run where run_id > ? {among} order by run_id limit ?",  # noqa: S608 - place holders
        (after, *(state.value for state in states), limit),
    )
    return [_record(row) for row in rows]


def async_run(tx: Transaction, client: str, route: str, day: str) -> RunRecord | None:
    """Return the newest async run of a client, route and day."""
    row = tx.db.execute(
        f"select {_COLUMNS} from run "  # noqa: S608 - a constant
        "where kind = 'async' and client = ? and route = ? and day = ? order by run_id desc limit 1",
        (client, route, day),
    ).fetchone()
    return None if row is None else _record(row)


def set_dictionary(tx: Transaction, run_id: int, sealed: bytes) -> bytes:
    """Set it, if there is none yet; return the one there is."""
    run = get(tx, run_id)
    if run.wrapped_key is None:
        raise StateError(f"Run {run.public_id} is purged: make a new one.")
    if run.dictionary is not None:
        return run.dictionary
    tx.db.execute("update run set dictionary = ? where run_id = ?", (sealed, run_id))
    return sealed


def change_state(
    tx: Transaction, run_id: int, to: RunState, author: str, reason: str, expected: Sequence[RunState]
) -> RunRecord:
    """Change a state for somebody."""
    run = get(tx, run_id)
    if expected and run.state not in expected:
        wanted = " or ".join(state.value for state in expected)
        raise StateError(f"Run {run.public_id} is {run.state.value}{_why(run)}, not {wanted}: look at it again first.")
    return move(tx, run, to, author, reason)


def move(tx: Transaction, run: RunRecord, to: RunState, author: str, reason: str) -> RunRecord:
    """Change a state by the table."""
    if not (may_change(run.state, to) or takes_over(run, to, author)):
        raise StateError(f"Run {run.public_id} is {run.state.value}{_why(run)} and cannot become {to.value}.")
    first_start = to is RunState.RUNNING and run.started_at is None
    tx.db.execute(
        "update run set state = ?, reason = ?, changed_by = ?, changed_at = ?, started_at = coalesce(started_at, ?) "
        "where run_id = ?",
        (to.value, reason, author, tx.now, tx.now if first_start else None, run.id),
    )
    if to in ENDED:
        tx.db.execute(
            "update run set ended_at = ?, purge_after = ? where run_id = ?",
            (tx.now, tx.now + span_us(_retention_s(run)), run.id),
        )
    turn = author == GATEWAY and {run.state, to} == {RunState.READY, RunState.RUNNING}
    if first_start or not turn:  # else every pause for want of a slot would be a row
        audit(tx, author, f"run {to.value}", run.public_id, reason)
    return get(tx, run.id)


def set_priority(tx: Transaction, run_id: int, priority: int, author: str) -> RunRecord:
    """Change whose turn it is."""
    run = get(tx, run_id)
    if run.state in ENDED:
        raise StateError(f"Run {run.public_id} is {run.state.value}: its priority means nothing any more.")
    tx.db.execute("update run set priority = ? where run_id = ?", (_priority(priority), run_id))
    audit(tx, author, "set priority", run.public_id, f"{run.priority} -> {priority}")
    return get(tx, run_id)


_COUNTED = """
insert into counted (run_id, writer, number) values (?, ?, ?)
on conflict (run_id, writer) do update set number = excluded.number where counted.number < excluded.number"""


def count(
    tx: Transaction, run_id: int, done: int, rejected: int, failed: int, attempts: int, by: tuple[str, int]
) -> RunRecord:
    """Add to the counts of a client-driven run, unless that has been done."""
    run = get(tx, run_id)
    if run.kind is not RunKind.CLIENT:
        raise StateError(f"Run {run.public_id} is not client-driven: its items are counted as they are settled.")
    if min(done, rejected, failed, attempts) < 0:
        raise StoreError("Counts only grow.")
    if not tx.db.execute(_COUNTED, (run_id, *by)).rowcount:
        return run
    tx.db.execute(
        "update run set done = done + ?, rejected = rejected + ?, failed = failed + ?, total = total + ?, "
        "attempts = attempts + ? where run_id = ?",
        (done, rejected, failed, done + rejected + failed, attempts, run_id),
    )
    return get(tx, run_id)


def due_for_purge(tx: Transaction, now: int) -> Sequence[RunRecord]:
    """Return ended runs whose time is over, and those whose purge was broken off."""
    rows = tx.db.execute(
        f"select {_COLUMNS} from run where (wrapped_key is not null or purging = 1) "  # noqa: S608 - a constant
        "and (purge_after <= ? or purging = 1) order by run_id",
        (now,),
    )
    return [_record(row) for row in rows]


def begin_purge(tx: Transaction, run_id: int, author: str) -> None:
    """Drop the key: from here on nobody reads what is left. Deletes what is small at once."""
    run = get(tx, run_id)
    if run.state not in ENDED:
        raise StateError(f"Run {run.public_id} is {run.state.value}: cancel it first, or wait for its end.")
    if run.wrapped_key is None:
        return  # purged, or begun: then what follows completes it
    tx.db.execute("update run set wrapped_key = null, dictionary = null, purging = 1 where run_id = ?", (run_id,))
    tx.db.execute("delete from batch where run_id = ?", (run_id,))
    tx.db.execute("delete from counted where run_id = ?", (run_id,))
    audit(tx, author, "purge run", run.public_id)


def purge_slice(tx: Transaction, run_id: int) -> bool:
    """Delete some rows; return whether any are left."""
    gone = tx.db.execute(
        "delete from client_key where run_id = ?1 and key_tag in "
        "(select key_tag from client_key where run_id = ?1 limit ?2)",
        (run_id, PURGE_SLICE),
    ).rowcount
    if gone:
        return True
    for (lane_id,) in tx.db.execute("select lane_id from lane where run_id = ?", (run_id,)).fetchall():
        lo, hi = lane_id << 32, (lane_id + 1) << 32
        for table in ("returned", "handle", "result", "item"):  # those that refer to items first
            some = f"select id from {table} where id >= ? and id < ? order by id limit ?"  # noqa: S608 - a name from above
            gone = tx.db.execute(f"delete from {table} where id in ({some})", (lo, hi, PURGE_SLICE)).rowcount  # noqa: S608 - names
            if gone:
                return True
    return False


def end_purge(tx: Transaction, run_id: int) -> RunRecord:
    """Note that nothing of it is left, in the log neither."""
    tx.db.execute("update run set purging = 0 where run_id = ?", (run_id,))
    return get(tx, run_id)


def audit(tx: Transaction, author: str, action: str, subject: str, detail: str = "") -> None:
    """Write who changed what."""
    tx.db.execute(
        "insert into audit (at, author, action, subject, detail) values (?, ?, ?, ?, ?)",
        (tx.now, author, action, subject, detail),
    )


def _retention_s(run: RunRecord) -> float:
    said = run.options.get("retention_s", RETENTION_S)
    return float(said) if isinstance(said, int | float) else RETENTION_S


def _priority(priority: int) -> int:
    if not 0 <= priority <= 9:
        raise StoreError(f"A priority is 0 to 9, not {priority}; lower goes first.")
    return priority


def _why(run: RunRecord) -> str:
    return f" ({run.changed_by}: {run.reason})" if run.reason else ""


def _record(row: tuple[Any, ...]) -> RunRecord:
    return RunRecord(
        id=row[0],
        public_id=row[1],
        kind=RunKind(row[2]),
        name=row[3],
        author=row[4],
        route=row[5],
        client=row[6],
        state=RunState(row[7]),
        reason=row[8],
        changed_by=row[9],
        changed_at=to_instant(row[10]),
        created_at=to_instant(row[11]),
        priority=row[12],
        not_before=None if row[13] is None else to_instant(row[13]),
        max_attempts=row[14],
        options=json.loads(row[15]),
        wrapped_key=row[16],
        dictionary=row[17],
        received=row[18],
        total=row[19],
        counts=Counts(*row[20:24]),
        attempts=row[24],
        started_at=None if row[25] is None else to_instant(row[25]),
        ended_at=None if row[26] is None else to_instant(row[26]),
        purge_after=None if row[27] is None else to_instant(row[27]),
    )
