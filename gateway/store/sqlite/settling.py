"""Settling: results, returned items and marks written in one go; what a dead process left; a person's word.

Rules that always hold:
- The first result of an item stays; a result takes the item off the returned. That an earlier sending is in doubt is
  no news once a person has decided to repeat it: a settlement may come twice, when its answer was lost.
- A run's counts change with its rows. Its attempts are the sum of those of its settled and returned items.
- Nobody's call is forgotten: a result that comes when its item has been given to another process has, besides its own
  attempts, those made since, and the one that the other may be at.
- Every claimed position is in its batch, among the returned, or settled: a batch with anything left does not end.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.records import (
    GATEWAY,
    ONLY_DOUBT,
    BatchSighting,
    Recovered,
    Result,
    Returned,
    RunRecord,
    Settled,
    Settlement,
)
from gateway.store.interface import StateError, StoreError
from gateway.store.sqlite.runs import audit, get, move
from gateway.store.sqlite.thread import Transaction, span_us
from policies.model import ItemState, RunState
from policies.runs import ENDED

STATES = (ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT)
"""How an item ended, by the number that is stored."""
IN_DOUBT = STATES.index(ItemState.IN_DOUBT)
MAYBE_SENT = "maybe_sent"
"""The code of an item whose process died when it may have been sent."""

_INSERT_RESULT = """
insert into result (id, run_id, state, seq, attempts, status, code, took_ms, at, sealed)
select i.id, l.run_id, ?3, i.seq, ?4, ?5, ?6, ?7, ?8, ?9 from lane l join item i on i.id = ?1
where l.lane_id = ?2 and ?1 < (l.lane_id << 32) + l.next
on conflict do nothing returning run_id
"""
_IS_REPEATED = "select 1 from returned where id = ? and why = 'repeat' and batch_id is not ?"
"""A person has decided that the item is sent again, and this batch is not the one that does so."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A batch as it stands."""

    lane_id: int
    run_id: int
    lo: int
    hi: int
    armed: int
    again: int  #: 1: of returned items


class _Books:
    """What is to be added to the counts of each run."""

    def __init__(self) -> None:
        self._states: dict[int, Counter[int]] = {}
        self._attempts: Counter[int] = Counter()

    def settled(self, run_id: int, state: int, attempts: int) -> None:
        self._states.setdefault(run_id, Counter())[state] += 1
        self._attempts[run_id] += attempts

    def attempted(self, run_id: int, attempts: int) -> None:
        self._attempts[run_id] += attempts

    def write(self, tx: Transaction) -> None:
        for run_id in {*self._states, *self._attempts}:
            by = self._states.get(run_id, Counter())
            tx.db.execute(
                "update run set done = done + ?, rejected = rejected + ?, failed = failed + ?, "
                "in_doubt = in_doubt + ?, attempts = attempts + ? where run_id = ?",
                (by[0], by[1], by[2], by[3], self._attempts[run_id], run_id),
            )


def settle(tx: Transaction, settlement: Settlement) -> Settled:
    """Write what a group commit holds."""
    named = {one.batch_id for one in settlement.results} | {one.batch_id for one in settlement.returned}
    named |= {*settlement.armed, *settlement.finished}
    held = {batch_id: batch for batch_id in named if (batch := _held(tx, batch_id, settlement.holder))}
    books = _Books()
    touched = {batch.run_id for batch in held.values()}
    stored = 0
    for result in settlement.results:
        run_id = _write_result(tx, result, books)
        if run_id is not None:
            stored += 1
            touched.add(run_id)
    for returned in settlement.returned:
        if batch := held.get(returned.batch_id):  # what a lost batch returns, `recover` has returned already
            _write_returned(tx, returned, batch, books)
    for batch_id, mark in settlement.armed.items():
        if batch_id in held:
            tx.db.execute("update batch set armed = max(armed, min(?, hi)) where batch_id = ?", (mark, batch_id))
    for batch_id in settlement.finished:
        if batch_id in held:
            _finish(tx, batch_id, held[batch_id])
    books.write(tx)
    return Settled(
        states={run_id: _state(tx, run_id) for run_id in touched},
        lost=frozenset(named - held.keys()),
        stored=stored,
    )


def renew(tx: Transaction, holder: str) -> None:
    """Raise the renewal numbers."""
    tx.db.execute("update batch set renewal = renewal + 1 where holder = ?", (holder,))


def sightings(tx: Transaction) -> list[BatchSighting]:
    """Return every batch."""
    rows = tx.db.execute("select batch_id, holder, token, renewal from batch order by batch_id")
    return [BatchSighting(*row) for row in rows]


def recover(tx: Transaction, sighting: BatchSighting, delay_s: float) -> Recovered | None:
    """End a batch of which nobody will say more."""
    row = tx.db.execute(
        "select b.lane_id, b.run_id, b.lo, b.hi, b.armed, b.again, l.repeatable from batch b "
        "join lane l using (lane_id) where b.batch_id = ? and b.holder = ? and b.token = ? and b.renewal = ?",
        (sighting.batch_id, sighting.holder, sighting.token, sighting.renewal),
    ).fetchone()
    if row is None:
        return None
    batch, repeatable = _Held(*row[:6]), bool(row[6])
    books = _Books()
    again = in_doubt = 0
    for item_id, attempts in _left(tx, sighting.batch_id, batch):
        maybe_sent = (item_id & 0xFFFFFFFF) < batch.armed
        if maybe_sent and not repeatable:
            values = (item_id, batch.lane_id, IN_DOUBT, attempts + 1, 0, MAYBE_SENT, 0, tx.now, b"")
            tx.db.execute(_INSERT_RESULT, values).fetchall()
            tx.db.execute("delete from returned where id = ?", (item_id,))
            books.settled(batch.run_id, IN_DOUBT, 1)
            in_doubt += 1
        else:
            delay = span_us(delay_s) if maybe_sent else 0
            tx.db.execute(
                "insert into returned (id, lane_id, run_id, attempts, due, delay, why) values (?, ?, ?, ?, ?, ?, ?) "
                "on conflict (id) do update set attempts = excluded.attempts, due = excluded.due, "
                "delay = excluded.delay, why = excluded.why, batch_id = null",
                (
                    item_id,
                    batch.lane_id,
                    batch.run_id,
                    attempts + maybe_sent,
                    tx.now + delay,
                    delay,
                    MAYBE_SENT if maybe_sent else "not_sent",
                ),
            )
            books.attempted(batch.run_id, int(maybe_sent))
            again += 1
    tx.db.execute("delete from batch where batch_id = ?", (sighting.batch_id,))
    books.write(tx)
    return Recovered(again=again, in_doubt=in_doubt)


def decide(tx: Transaction, run_id: int, seq: int, decision: str, author: str, reason: str) -> RunRecord:
    """Settle an item in doubt by a person's word."""
    run = get(tx, run_id)
    row = tx.db.execute(
        "select id, attempts from result where run_id = ? and state = ? and seq = ?", (run_id, IN_DOUBT, seq)
    ).fetchone()
    if row is None:
        raise StateError(f"Item {seq} of run {run.public_id} is not in doubt: look at its results.")
    item_id, attempts = row
    match decision:
        case "repeat":
            if run.state in ENDED:
                raise StateError(
                    f"Run {run.public_id} is {run.state.value}: nothing of it is sent any more. Decide `accept` or "
                    "`fail`, or make a new run of the item."
                )
            tx.db.execute("delete from result where id = ?", (item_id,))
            tx.db.execute(
                "insert into returned (id, lane_id, run_id, attempts, due, delay, why) values (?, ?, ?, ?, ?, 0, ?)",
                (item_id, item_id >> 32, run_id, attempts, tx.now, "repeat"),
            )
            tx.db.execute("update run set in_doubt = in_doubt - 1 where run_id = ?", (run_id,))
        case "accept" | "fail":
            column = "done" if decision == "accept" else "failed"
            state = STATES.index(ItemState(column))
            tx.db.execute("update result set state = ?, at = ? where id = ?", (state, tx.now, item_id))
            tx.db.execute(
                f"update run set in_doubt = in_doubt - 1, {column} = {column} + 1 where run_id = ?",  # noqa: S608 - one of two
                (run_id,),
            )
        case _:
            raise StoreError(f"A decision is `repeat`, `accept` or `fail`, not {decision!r}.")
    audit(tx, author, f"decide {decision}", f"{run.public_id}/{seq}", reason)
    paused_for_it = run.state is RunState.PAUSED and (run.changed_by, run.reason) == (GATEWAY, ONLY_DOUBT)
    if paused_for_it and run.counts.in_doubt == 1:
        return move(tx, run, RunState.READY, author, "nothing is in doubt any more")
    return get(tx, run_id)


def _held(tx: Transaction, batch_id: int, holder: str) -> _Held | None:
    row = tx.db.execute(
        "select lane_id, run_id, lo, hi, armed, again from batch where batch_id = ? and holder = ?", (batch_id, holder)
    ).fetchone()
    return None if row is None else _Held(*row[:6])


def _write_result(tx: Transaction, result: Result, books: _Books) -> int | None:
    if result.state not in STATES:
        raise StoreError(f"{result.state.value} does not settle an item.")
    item_id = result.lane_id << 32 | result.position
    state = STATES.index(result.state)
    if state == IN_DOUBT and tx.db.execute(_IS_REPEATED, (item_id, result.batch_id)).fetchone():
        return None
    waits = tx.db.execute("select attempts, batch_id from returned where id = ?", (item_id,)).fetchone()
    known, batch_id = waits or (0, None)
    is_late = batch_id not in (None, result.batch_id)
    attempts = max(result.attempts, known + is_late)
    values = (item_id, result.lane_id, state, attempts)
    rest = (result.status, result.code, result.took_ms, tx.now, result.sealed)
    row = tx.db.execute(_INSERT_RESULT, (*values, *rest)).fetchall()
    if not row:
        return None
    if waits:
        tx.db.execute("delete from returned where id = ?", (item_id,))
    run_id: int = row[0][0]
    books.settled(run_id, state, attempts - known)
    return run_id


def _write_returned(tx: Transaction, returned: Returned, batch: _Held, books: _Books) -> None:
    if returned.lane_id != batch.lane_id or not batch.lo <= returned.position < batch.hi:
        raise StoreError(
            f"Position {returned.position} of lane {returned.lane_id} is not in batch {returned.batch_id}."
        )
    item_id = returned.lane_id << 32 | returned.position
    delay = span_us(max(returned.delay_s, 0.0))
    due = tx.now + delay
    if batch.again:
        before = tx.db.execute(
            "select attempts from returned where id = ? and batch_id = ?", (item_id, returned.batch_id)
        ).fetchone()
        if before is None:
            return  # it has a result, or was returned already
        tx.db.execute(
            "update returned set attempts = ?, due = ?, delay = ?, why = ?, batch_id = null where id = ?",
            (returned.attempts, due, delay, returned.why, item_id),
        )
        books.attempted(batch.run_id, returned.attempts - before[0])
    else:
        written = tx.db.execute(
            "insert into returned (id, lane_id, run_id, attempts, due, delay, why) select ?1, ?2, ?3, ?4, ?5, ?6, ?7 "
            "where not exists (select 1 from result where id = ?1) on conflict do nothing",
            (item_id, batch.lane_id, batch.run_id, returned.attempts, due, delay, returned.why),
        ).rowcount
        if written:
            books.attempted(batch.run_id, returned.attempts)


def _left(tx: Transaction, batch_id: int, batch: _Held) -> Iterable[tuple[int, int]]:
    """Return what of a batch is neither settled nor returned, with the attempts made before."""
    if batch.again:
        return tx.db.execute("select id, attempts from returned where batch_id = ? order by id", (batch_id,)).fetchall()
    return tx.db.execute(
        "select i.id, 0 from item i where i.id >= ? and i.id < ? "
        "and not exists (select 1 from result r where r.id = i.id) "
        "and not exists (select 1 from returned w where w.id = i.id) order by i.id",
        (batch.lane_id << 32 | batch.lo, batch.lane_id << 32 | batch.hi),
    ).fetchall()


def _finish(tx: Transaction, batch_id: int, batch: _Held) -> None:
    left = len(list(_left(tx, batch_id, batch)))
    if left:
        raise StateError(f"Batch {batch_id} cannot end: {left} of its items are neither settled nor returned.")
    tx.db.execute("delete from batch where batch_id = ?", (batch_id,))


def _state(tx: Transaction, run_id: int) -> RunState:
    (state,) = tx.db.execute("select state from run where run_id = ?", (run_id,)).fetchone()
    return RunState(state)
