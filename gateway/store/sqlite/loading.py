"""Submission: items go into their lanes, each once, and are never changed again.

Rules that always hold: a lane has no holes; an item whose key tag the run knows is not added; totals equal rows.
"""

import json
import sqlite3
from collections.abc import Sequence

from gateway.records import LaneKey, Loaded, NewItem, RunRecord, is_paused_for_doubt
from gateway.store.interface import StateError, StoreError
from gateway.store.sqlite.runs import get, move
from gateway.store.sqlite.thread import Transaction
from policies.model import RunKind, RunState
from policies.runs import ENDED


def add(tx: Transaction, run_id: int, items: Sequence[NewItem], received: int | None, places: bool) -> Loaded:
    """Add items, each once."""
    run = _may_grow(tx, run_id)
    if received is None:
        numbered = [(item.seq, item) for item in items]
        read = run.received + len(items)
    else:
        numbered = [(item.seq, item) for item in items if item.seq >= run.received]
        read = max(run.received, received)
        if any(seq >= read for seq, _ in numbered):
            raise StoreError(f"Items with numbers from {received} on are not among the {received} that were received.")
    fresh = _new_to(tx, run_id, numbered)
    where = _place(tx, run_id, fresh)
    tx.db.execute(
        "update run set received = ?, total = total + ? where run_id = ?",
        (read, len(fresh), run_id),
    )
    if run.kind is RunKind.ASYNC and (run.state is RunState.LOADING or is_paused_for_doubt(run)):
        move(tx, run, RunState.READY, run.author, "")
    told = {item.seq: at for (_, item), at in zip(fresh, where, strict=True)} if places else {}
    return Loaded(added=len(fresh), duplicates=len(items) - len(fresh), received=read, places=told)


def _may_grow(tx: Transaction, run_id: int) -> RunRecord:
    run = get(tx, run_id)
    if run.kind is RunKind.CLIENT:
        raise StateError(f"Run {run.public_id} is client-driven: its calls are counted, and nothing of it is stored.")
    grows = run.state is RunState.LOADING or (run.kind is RunKind.ASYNC and run.state not in ENDED)
    if not grows:
        raise StateError(f"Run {run.public_id} is {run.state.value}: nothing can be added to it. Make a new run.")
    return run


def _new_to(tx: Transaction, run_id: int, numbered: list[tuple[int, NewItem]]) -> list[tuple[int, NewItem]]:
    """Note the key tags; return the items that the run did not know."""
    tags = [(run_id, item.key_tag) for _, item in numbered if item.key_tag]
    if not tags:
        return numbered
    tx.db.execute("savepoint tags")
    try:  # nearly always all are new, and one statement for all is three times as fast
        tx.db.executemany("insert into client_key values (?, ?)", tags)
    except sqlite3.IntegrityError:
        tx.db.execute("rollback to tags")
        insert = "insert into client_key values (?, ?) on conflict do nothing"
        return [
            (seq, item)
            for seq, item in numbered
            if not item.key_tag or tx.db.execute(insert, (run_id, item.key_tag)).rowcount
        ]
    finally:
        tx.db.execute("release tags")
    return numbered


def _place(tx: Transaction, run_id: int, fresh: list[tuple[int, NewItem]]) -> list[tuple[int, int]]:
    """Write items behind those of their lanes; return where each went."""
    lanes: dict[LaneKey, list[int]] = {}
    rows: list[tuple[int, int, bytes | None, bytes]] = []
    where: list[tuple[int, int]] = []
    handles: list[tuple[str, int]] = []
    for seq, item in fresh:
        lane = lanes.get(item.lane)
        if lane is None:
            lane = lanes[item.lane] = _lane(tx, run_id, item.lane)
        lane_id, position = lane
        lane[1] += 1
        row_id = lane_id << 32 | position
        rows.append((row_id, seq, item.sealed_key or None, item.sealed))
        where.append((lane_id, position))
        if item.handle:
            handles.append((item.handle, row_id))
    tx.db.executemany("insert into item (id, seq, sealed_key, sealed) values (?, ?, ?, ?)", rows)
    tx.db.executemany("insert into handle values (?, ?)", handles)
    tx.db.executemany(
        "update lane set total = ? where lane_id = ?", [(total, lane_id) for lane_id, total in lanes.values()]
    )
    return where


def _lane(tx: Transaction, run_id: int, key: LaneKey) -> list[int]:
    """Return a lane's id and how many items it has; make it when it is missing."""
    values = (run_id, key.route, json.dumps(key.sources), int(key.repeatable), key.service)
    row = tx.db.execute(
        "select lane_id, total from lane where run_id = ? and route = ? and sources = ? and repeatable = ? "
        "and service = ?",
        values,
    ).fetchone()
    if row:
        return list(row)
    insert = "insert into lane (run_id, route, sources, repeatable, service) values (?, ?, ?, ?, ?)"
    lane_id = tx.db.execute(insert, values).lastrowid
    assert lane_id is not None
    return [lane_id, 0]
