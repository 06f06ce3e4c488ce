"""What is read of settled items: pages in the order of submission, one by its place, the place of a handle.

Rules that always hold: a page costs what it holds, however large the run is. Never changes anything.
"""

from collections.abc import Sequence
from typing import Any

from gateway.records import ItemRecord, RunRecord
from gateway.store.interface import StoreError
from gateway.store.sqlite.runs import get
from gateway.store.sqlite.settling import STATES
from gateway.store.sqlite.thread import Transaction, to_instant
from policies.model import ItemState


def items(
    tx: Transaction,
    run_id: int,
    states: Sequence[ItemState],
    after: int,
    limit: int,
    bodies: bool,
    requests: bool,
) -> Sequence[ItemRecord]:
    """Return a page of settled items."""
    get(tx, run_id)
    unsettled = [state.value for state in states if state not in STATES]
    if unsettled:
        raise StoreError(f"Only settled items are listed, not those that are {' or '.join(unsettled)}.")
    # One ordered walk over the index for each state, merged: sorting would read the whole run.
    walk = "select seq, id from result where run_id = :run and seq > :after and state = "
    wanted = sorted({STATES.index(state) for state in states or STATES})
    page = " union all ".join(f"{walk}{state}" for state in wanted)
    rows = tx.db.execute(
        f"with page as ({page} order by seq limit :limit) "  # noqa: S608 - numbers of states
        f"select {_columns(bodies, requests)} from page join result r using (id) join item i using (id) "
        "join lane l on l.lane_id = r.id >> 32 order by page.seq",
        {"run": run_id, "after": after, "limit": limit},
    )
    return [_record(row) for row in rows]


def item_at(tx: Transaction, lane_id: int, position: int) -> ItemRecord | None:
    """Return one settled item."""
    row = tx.db.execute(
        f"select {_columns(bodies=True, requests=False)} from result r join item i using (id) "  # noqa: S608 - constants
        "join lane l on l.lane_id = r.id >> 32 where r.id = ?",
        (lane_id << 32 | position,),
    ).fetchone()
    return None if row is None else _record(row)


def find_handle(tx: Transaction, handle: str) -> tuple[RunRecord, int, int] | None:
    """Return where a handle points."""
    row = tx.db.execute(
        "select l.run_id, h.id from handle h join lane l on l.lane_id = h.id >> 32 where h.handle = ?", (handle,)
    ).fetchone()
    return None if row is None else (get(tx, row[0]), row[1] >> 32, row[1] & 0xFFFFFFFF)


def _columns(bodies: bool, requests: bool) -> str:
    answer, request = "r.sealed" if bodies else "x''", "i.sealed" if requests else "x''"
    return (
        "r.seq, r.id, r.state, r.attempts, r.status, r.code, r.took_ms, r.at, l.service, "
        f"{answer}, i.sealed_key, {request}"
    )


def _record(row: tuple[Any, ...]) -> ItemRecord:
    seq, item_id, state, attempts, status, code, took_ms, at, service, answer, sealed_key, request = row
    return ItemRecord(
        seq=seq,
        lane_id=item_id >> 32,
        position=item_id & 0xFFFFFFFF,
        state=STATES[state],
        attempts=attempts,
        status=status,
        code=code,
        took_ms=took_ms,
        at=to_instant(at),
        service=service,
        sealed_answer=answer,
        sealed_key=sealed_key or b"",
        sealed_request=request,
    )
