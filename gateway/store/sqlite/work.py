"""Execution: which lanes have work, and ranges of it claimed and handed out.

Rules that always hold: a position is claimed once, by moving its lane's cursor; a returned item is in one batch at the
most; nothing is written for an item that waits.
"""

import json
from collections.abc import Sequence

from gateway.records import GATEWAY, ONLY_DOUBT, Batch, LaneKey, LaneWork, RunRecord, StoredItem
from gateway.store.interface import StoreError
from gateway.store.sqlite.runs import get, move
from gateway.store.sqlite.thread import Transaction
from policies.model import RunKind, RunState

_GOING = (RunState.READY, RunState.RUNNING)
_LANE = """
select l.lane_id, l.run_id, r.public_id, l.route, l.sources, l.repeatable, l.service, r.priority, l.total - l.next,
  (select count(*) from returned w where w.lane_id = l.lane_id and w.batch_id is null
   and (w.due <= :now or w.due - w.delay > :now)) as due,
  (select count(*) from batch b where b.lane_id = l.lane_id) as in_batches, l.total
from lane l join run r using (run_id)
"""
# The second condition: the clock was stepped back since, for nothing is due later than its own delay from now.


def lanes(tx: Transaction, run_id: int) -> Sequence[tuple[LaneWork, int]]:
    """Return a run's lanes with their totals."""
    get(tx, run_id)
    rows = tx.db.execute(_LANE + "where l.run_id = :run order by l.lane_id", {"now": tx.now, "run": run_id})
    return [(_lane_work(row), row[11]) for row in rows]


def work(tx: Transaction, now: int) -> Sequence[LaneWork]:
    """Return the lanes that have something left."""
    rows = tx.db.execute(
        _LANE  # noqa: S608 - a constant
        + "where r.state in ('ready', 'running') and (r.not_before is null or r.not_before <= :now) "
        "and (l.next < l.total or exists (select 1 from returned w where w.lane_id = l.lane_id and w.batch_id is null)"
        " or exists (select 1 from batch b where b.lane_id = l.lane_id)) order by r.priority, l.run_id, l.lane_id",
        {"now": now},
    )
    return [_lane_work(row) for row in rows]


def claim(tx: Transaction, lane_id: int, holder: str, size: int, window: int) -> Batch | None:
    """Move the cursor."""
    row = tx.db.execute("select run_id, next, total from lane where lane_id = ?", (lane_id,)).fetchone()
    if row is None:
        raise StoreError(f"There is no lane {lane_id}.")
    run_id, lo, total = row
    hi = min(lo + size, total)
    run = get(tx, run_id)
    if lo >= hi or run.state not in _GOING:
        return None
    tx.db.execute("update lane set next = ? where lane_id = ?", (hi, lane_id))
    return _batch(tx, run, lane_id, holder, lo, hi, min(lo + max(window, 0), hi), again=False)


def claim_returned(tx: Transaction, lane_id: int, holder: str, size: int, armed: bool) -> Batch | None:
    """Claim those whose time has come, oldest first."""
    rows = tx.db.execute(
        "select id, run_id from returned where lane_id = ?1 and batch_id is null and (due <= ?2 or due - delay > ?2) "
        "order by due, id limit ?3",
        (lane_id, tx.now, size),
    ).fetchall()
    if not rows:
        return None
    run = get(tx, rows[0][1])
    if run.state not in _GOING:
        return None
    positions = [row[0] & 0xFFFFFFFF for row in rows]
    lo, hi = min(positions), max(positions) + 1
    batch = _batch(tx, run, lane_id, holder, lo, hi, hi if armed else lo, again=True)
    tx.db.executemany("update returned set batch_id = ? where id = ?", [(batch.batch_id, row[0]) for row in rows])
    return batch


def fetch(tx: Transaction, batch: Batch) -> Sequence[StoredItem]:
    """Return what of a batch is still to be sent."""
    if batch.again:
        rows = tx.db.execute(
            "select i.id, i.seq, i.sealed, w.attempts from returned w join item i using (id) where w.batch_id = ? "
            "order by i.id",
            (batch.batch_id,),
        )
    else:
        rows = tx.db.execute(
            "select i.id, i.seq, i.sealed, 0 from item i where i.id >= ? and i.id < ? "
            "and not exists (select 1 from result r where r.id = i.id) "
            "and not exists (select 1 from returned w where w.id = i.id) order by i.id",
            (batch.lane_id << 32 | batch.lo, batch.lane_id << 32 | batch.hi),
        )
    return [StoredItem(row[0] >> 32, row[0] & 0xFFFFFFFF, row[1], row[2], row[3]) for row in rows]


def rest(tx: Transaction, run_id: int, may_complete: bool) -> RunRecord:
    """Say how a run stands that nobody works on."""
    run = get(tx, run_id)
    if run.state not in _GOING or run.kind is RunKind.CLIENT:
        return run
    if tx.db.execute("select 1 from batch where run_id = ? limit 1", (run_id,)).fetchone():
        return run
    if run.waiting == 0 and run.counts.in_doubt and may_complete:
        return move(tx, run, RunState.PAUSED, GATEWAY, ONLY_DOUBT)
    if run.waiting == 0 and may_complete:
        return move(tx, run, RunState.COMPLETED, GATEWAY, "every item is settled")
    return move(tx, run, RunState.READY, GATEWAY, "") if run.state is RunState.RUNNING else run


def _batch(
    tx: Transaction, run: RunRecord, lane_id: int, holder: str, lo: int, hi: int, armed: int, *, again: bool
) -> Batch:
    token = 1  # there is no takeover: a batch has one holder for its whole life
    batch_id = tx.db.execute(
        "insert into batch (lane_id, run_id, holder, token, lo, hi, armed, again) values (?, ?, ?, ?, ?, ?, ?, ?)",
        (lane_id, run.id, holder, token, lo, hi, armed, int(again)),
    ).lastrowid
    assert batch_id is not None
    if run.state is RunState.READY:
        move(tx, run, RunState.RUNNING, GATEWAY, "")
    return Batch(batch_id, lane_id, run.id, token, lo, hi, armed, again)


def _lane_work(row: tuple[int, int, str, str, str, int, str, int, int, int, int, int]) -> LaneWork:
    lane_id, run_id, public_id, route, sources, repeatable, service, priority, unclaimed, due, in_batches, _ = row
    key = LaneKey(route, tuple(json.loads(sources)), bool(repeatable), service)
    return LaneWork(lane_id, run_id, public_id, key, priority, unclaimed, due, in_batches)
