"""Submission: items go into their lanes, each once, and are never changed again.

Rules that always hold: a lane has no holes; an item whose key tag the run knows is not added; totals equal rows. One
transaction adds to a run at a time (its row is locked), so that what is looked up stays true until the rows are there.
"""

from collections.abc import Sequence

import asyncpg

from gateway.records import LaneKey, Loaded, NewItem, RunRecord, is_paused_for_doubt
from gateway.store.interface import StateError, StoreError
from gateway.store.postgres.lines import Side
from gateway.store.postgres.runs import get, move
from policies.model import RunKind, RunState
from policies.runs import ENDED


class LoadingSide(Side):
    """The side of the store that takes submissions."""

    async def add_items(
        self, run_id: int, items: Sequence[NewItem], *, received: int | None, places: bool = False
    ) -> Loaded:
        """Add items, each once by its key tag, behind those of its lane."""
        async with self._lines.shared.transaction() as connection:
            run = _growing(await get(connection, run_id, lock=True))
            part: int = await connection.fetchval("select part from run where id = $1", run_id)
            unread, read = _unread(run, items, received)
            fresh, where = await _add(connection, part, run_id, _once(unread))
            await connection.execute(
                "update run set received = $2, total = total + $3 where id = $1", run_id, read, len(fresh)
            )
            if run.kind is RunKind.ASYNC and (run.state is RunState.LOADING or is_paused_for_doubt(run)):
                await move(connection, run, RunState.READY, run.author, "")
        told = {item.seq: at for item, at in zip(fresh, where, strict=True)} if places else {}
        return Loaded(added=len(fresh), duplicates=len(items) - len(fresh), received=read, places=told)


def _growing(run: RunRecord) -> RunRecord:
    if run.kind is RunKind.CLIENT:
        raise StateError(f"Run {run.public_id} is client-driven: its calls are counted, and nothing of it is stored.")
    grows = run.state is RunState.LOADING or (run.kind is RunKind.ASYNC and run.state not in ENDED)
    if not grows:
        raise StateError(f"Run {run.public_id} is {run.state.value}: nothing can be added to it. Make a new run.")
    return run


def _unread(run: RunRecord, items: Sequence[NewItem], received: int | None) -> tuple[Sequence[NewItem], int]:
    """Return the items that were not read before, and how many the run has read then."""
    if received is None:
        return items, run.received + len(items)
    read = max(run.received, received)
    unread = [item for item in items if item.seq >= run.received]
    if any(item.seq >= read for item in unread):
        raise StoreError(f"Items with numbers from {received} on are not among the {received} that were received.")
    return unread, read


def _once(items: Sequence[NewItem]) -> list[NewItem]:
    """Return the items without those whose key tag an earlier one of them has."""
    tags: set[bytes] = set()
    fresh = []
    for item in items:
        if item.key_tag not in tags:
            fresh.append(item)
        if item.key_tag:
            tags.add(item.key_tag)
    return fresh


async def _add(
    connection: asyncpg.Connection, part: int, run_id: int, items: list[NewItem]
) -> tuple[list[NewItem], list[tuple[int, int]]]:
    """Add those whose key tags the run does not have; return them, and where each went."""
    await connection.execute("savepoint adding")
    try:  # nearly always all are new: to look first would cost as much as to write
        return items, await _place(connection, part, run_id, items)
    except asyncpg.UniqueViolationError:
        await connection.execute("rollback to adding")
    tags = [item.key_tag for item in items if item.key_tag]
    rows = await connection.fetch(
        "select key_tag from item where part = $1 and run_id = $2 and key_tag = any ($3::bytea[])", part, run_id, tags
    )
    known = {row["key_tag"] for row in rows}
    fresh = [item for item in items if item.key_tag not in known]
    return fresh, await _place(connection, part, run_id, fresh)


async def _place(connection: asyncpg.Connection, part: int, run_id: int, fresh: list[NewItem]) -> list[tuple[int, int]]:
    """Write items behind those of their lanes; return where each went."""
    lanes = await _lanes(connection, run_id, {item.lane for item in fresh})
    rows, where, handles = [], [], []
    for item in fresh:
        lane = lanes[item.lane]
        lane_id, position = lane
        lane[1] += 1
        number = lane_id << 32 | position
        where.append((lane_id, position))
        rows.append((part, number, run_id, item.seq, item.key_tag or None, item.sealed_key or None, item.sealed))
        if item.handle:
            handles.append((item.handle, run_id, number))
    if rows:
        await connection.copy_records_to_table(
            f"item_{part}",
            records=rows,
            columns=("part", "id", "run_id", "seq", "key_tag", "sealed_key", "sealed"),
        )
    if handles:
        await connection.executemany("insert into handle (handle, run_id, id) values ($1, $2, $3)", handles)
    await connection.execute(
        "update lane l set total = n.total from unnest($1::bigint[], $2::bigint[]) as n (id, total) where l.id = n.id",
        *([lane_id for lane_id, _ in lanes.values()], [total for _, total in lanes.values()]),
    )
    return where


async def _lanes(connection: asyncpg.Connection, run_id: int, keys: set[LaneKey]) -> dict[LaneKey, list[int]]:
    """Return each lane's id and how many items it has; make those that are missing."""
    lanes: dict[LaneKey, list[int]] = {}
    for key in sorted(keys, key=repr):
        values = (run_id, key.route, list(key.sources), key.repeatable, key.service)
        row = await connection.fetchrow(
            "select id, total from lane where run_id = $1 and route = $2 and sources = $3 and repeatable = $4 "
            "and service = $5",
            *values,
        ) or await connection.fetchrow(
            "insert into lane (run_id, route, sources, repeatable, service) values ($1, $2, $3, $4, $5) "
            "returning id, total",
            *values,
        )
        assert row is not None  # one of the two
        lanes[key] = [row["id"], row["total"]]
    return lanes
