"""Settled items: pages in the order of submission, one by its place, the place of a handle, and a person's word on one
in doubt.

Rules that always hold: a page costs what it holds, however large the run is. Nothing is changed but by `decide`.
"""

from collections.abc import Sequence

import asyncpg

from gateway.records import GATEWAY, ONLY_DOUBT, ItemRecord, RunRecord
from gateway.store.interface import StateError, StoreError
from gateway.store.postgres.lines import Side
from gateway.store.postgres.runs import audit, get, move
from gateway.store.postgres.settling import IN_DOUBT, STATES
from gateway.store.postgres.work import Lanes
from policies.model import ItemState, RunState
from policies.runs import ENDED

_SETTLE_DOUBT = "update result set state = $3, at = gateway_now() where part = $1 and id = $2"


class ResultsSide(Side):
    """The side of the store that is read for answers."""

    _lanes: Lanes

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
        """Return settled items with a sequence number above `after`, in its order."""
        unsettled = [state.value for state in states if state not in STATES]
        if unsettled:
            raise StoreError(f"Only settled items are listed, not those that are {' or '.join(unsettled)}.")
        # One ordered walk over the index for each state, merged: sorting would read the whole run.
        wanted = sorted({STATES.index(state) for state in states or STATES})
        walks = " union all ".join(
            f"(select * from result where part = $1 and run_id = $2 and state = {state} and seq > $3 "  # noqa: S608 - numbers
            "order by seq limit $4)"
            for state in wanted
        )
        async with self._lines.shared.transaction() as connection:
            await get(connection, run_id)
            part = await connection.fetchval("select part from run where id = $1", run_id)
            rows = await connection.fetch(
                f"with page as materialized (select * from ({walks}) as merged order by seq limit $4) "  # noqa: S608 - constants
                f"select {_columns(bodies, requests)} from page r join item i on i.part = $1 and i.id = r.id "
                "join lane l on l.id = r.id >> 32 order by r.seq",
                *(part, run_id, after, limit),
            )
        return [_record(row) for row in rows]

    async def item_at(self, lane_id: int, position: int) -> ItemRecord | None:
        """Return one settled item with its answer; None: it is not settled."""
        async with self._lines.shared.transaction() as connection:
            _, part, _ = await self._lanes.find(connection, lane_id)
            row = await connection.fetchrow(
                f"select {_columns(bodies=True, requests=False)} from result r "  # noqa: S608 - constants
                "join item i on i.part = $1 and i.id = r.id join lane l on l.id = r.id >> 32 "
                "where r.part = $1 and r.id = $2",
                *(part, lane_id << 32 | position),
            )
        return None if row is None else _record(row)

    async def find_handle(self, handle: str) -> tuple[RunRecord, int, int] | None:
        """Return the run, lane and position of a handle."""
        async with self._lines.shared.transaction() as connection:
            row = await connection.fetchrow("select run_id, id from handle where handle = $1", handle)
            if row is None:
                return None
            return await get(connection, row["run_id"]), row["id"] >> 32, row["id"] & 0xFFFFFFFF

    async def decide(self, run_id: int, seq: int, decision: str, *, author: str, reason: str) -> RunRecord:
        """Settle an item in doubt by a person's word: `repeat`, `accept`, `fail`."""
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            part = await connection.fetchval("select part from run where id = $1", run_id)
            row = await connection.fetchrow(
                "select id, attempts from result where part = $1 and run_id = $2 and state = $3 and seq = $4",
                *(part, run_id, IN_DOUBT, seq),
            )
            if row is None:
                raise StateError(f"Item {seq} of run {run.public_id} is not in doubt: look at its results.")
            if decision == "repeat":
                await _repeat(connection, run, part, row["id"], row["attempts"])
            elif decision in ("accept", "fail"):
                column = "done" if decision == "accept" else "failed"
                await connection.execute(_SETTLE_DOUBT, part, row["id"], STATES.index(ItemState(column)))
                await connection.execute(
                    f"update run set in_doubt = in_doubt - 1, {column} = {column} + 1 where id = $1",  # noqa: S608 - one of two
                    run_id,
                )
            else:
                raise StoreError(f"A decision is `repeat`, `accept` or `fail`, not {decision!r}.")
            await audit(connection, author, f"decide {decision}", f"{run.public_id}/{seq}", reason)
            paused_for_it = run.state is RunState.PAUSED and (run.changed_by, run.reason) == (GATEWAY, ONLY_DOUBT)
            if paused_for_it and run.counts.in_doubt == 1:
                return await move(connection, run, RunState.READY, author, "nothing is in doubt any more")
            return await get(connection, run_id)


async def _repeat(connection: asyncpg.Connection, run: RunRecord, part: int, item_id: int, attempts: int) -> None:
    if run.state in ENDED:
        raise StateError(
            f"Run {run.public_id} is {run.state.value}: nothing of it is sent any more. Decide `accept` or `fail`, or "
            "make a new run of the item."
        )
    await connection.execute("delete from result where part = $1 and id = $2", part, item_id)
    await connection.execute(
        "insert into returned (id, lane_id, run_id, attempts, due, delay_s, why) "
        "values ($1, $1::bigint >> 32, $2, $3, gateway_now(), 0, 'repeat')",
        *(item_id, run.id, attempts),
    )
    await connection.execute("update run set in_doubt = in_doubt - 1 where id = $1", run.id)


def _columns(bodies: bool, requests: bool) -> str:
    answer, request = "r.sealed" if bodies else "''::bytea", "i.sealed" if requests else "''::bytea"
    return (
        "r.seq, r.id, r.state, r.attempts, r.status, r.code, r.took_ms, r.at, l.service, i.sealed_key, "
        f"{answer} as answer, {request} as request"
    )


def _record(row: asyncpg.Record) -> ItemRecord:
    return ItemRecord(
        seq=row["seq"],
        lane_id=row["id"] >> 32,
        position=row["id"] & 0xFFFFFFFF,
        state=STATES[row["state"]],
        attempts=row["attempts"],
        status=row["status"],
        code=row["code"],
        took_ms=row["took_ms"],
        at=row["at"],
        service=row["service"],
        sealed_answer=row["answer"],
        sealed_key=row["sealed_key"] or b"",
        sealed_request=row["request"],
    )
