"""Execution: which lanes have work, and ranges of it claimed and handed out.

Rules that always hold: a position is claimed once, by moving its lane's cursor under the lock of its run; a returned
item is in one batch at the most; nothing is written for an item that waits.
"""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from gateway.records import GATEWAY, ONLY_DOUBT, Batch, LaneKey, LaneWork, RunRecord, StoredItem
from gateway.store.interface import StoreError
from gateway.store.postgres.lines import Side
from gateway.store.postgres.runs import get, move
from policies.model import RunKind, RunState

_GOING = (RunState.READY, RunState.RUNNING)
IS_DUE = "(w.due <= now or w.due > now + w.delay_s * interval '1 second' + interval '1 millisecond')"
"""The second condition: the clock was set back since, for nothing is due later than its own delay from now."""
_LANE = f"""
select l.id, l.run_id, r.public_id, l.route, l.sources, l.repeatable, l.service, r.priority,
  l.total - l.claimed as unclaimed, l.total,
  (select count(*) from returned w where w.lane_id = l.id and w.batch_id is null and {IS_DUE}) as due,
  (select count(*) from batch b where b.lane_id = l.id) as in_batches
from (select gateway_now() as now) t, lane l join run r on r.id = l.run_id
"""  # noqa: S608 - constants
_WORK = (
    f"{_LANE} where r.state in ('ready', 'running') and (r.not_before is null or r.not_before <= $1) and "  # noqa: S608 - a constant
    "(l.claimed < l.total or exists (select from batch b where b.lane_id = l.id) or exists "
    "(select from returned w where w.lane_id = l.id and w.batch_id is null)) order by r.priority, l.run_id, l.id"
)
_CLAIM = """
with moved as (update lane set claimed = $4 where id = $1)
insert into batch (lane_id, run_id, holder, token, lo, hi, armed, again) values ($1, $2, $3, 1, $5, $4, $6, false)
returning id"""
# The token is always 1: there is no takeover, a batch has one holder for its whole life.


class Lanes:
    """What never changes of lanes, remembered: run, part, whether its items may be repeated."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, bool]] = {}

    async def find(self, connection: asyncpg.Connection, lane_id: int) -> tuple[int, int, bool]:
        """Return a lane's run, part and repeatability. Raises StoreError when there is none."""
        if lane_id not in self._known:
            row = await connection.fetchrow(
                "select l.run_id, r.part, l.repeatable from lane l join run r on r.id = l.run_id where l.id = $1",
                lane_id,
            )
            if row is None:
                raise StoreError(f"There is no lane {lane_id}.")
            if len(self._known) >= 10_000:
                self._known.clear()
            self._known[lane_id] = (row["run_id"], row["part"], row["repeatable"])
        return self._known[lane_id]


class WorkSide(Side):
    """The side of the store that hands out work."""

    _lanes: Lanes

    async def lanes(self, run_id: int) -> Sequence[tuple[LaneWork, int]]:
        """Return a run's lanes, whatever its state, each with its total of items."""
        async with self._lines.shared.transaction() as connection:
            await get(connection, run_id)
            rows = await connection.fetch(_LANE + "where l.run_id = $1 order by l.id", run_id)
        return [(_lane_work(row), row["total"]) for row in rows]

    async def work(self, now: datetime) -> Sequence[LaneWork]:
        """Return the lanes of ready and running runs in which something is left, `not_before` being over."""
        async with self._lines.shared.statement() as connection:
            rows = await connection.fetch(_WORK, now)
        return [_lane_work(row) for row in rows]

    async def claim(self, lane_id: int, holder: str, *, size: int, window: int) -> Batch | None:
        """Claim up to `size` positions that nobody has claimed, the first `window` of them armed."""
        async with self._lines.settling.transaction() as connection:
            run = await self._going(connection, lane_id)
            if run is None:
                return None
            row = await connection.fetchrow("select claimed, total from lane where id = $1", lane_id)
            assert row is not None  # it was found
            lo, hi = row["claimed"], min(row["claimed"] + size, row["total"])
            if lo >= hi:
                return None
            armed = min(lo + max(window, 0), hi)
            batch_id = await connection.fetchval(_CLAIM, lane_id, run.id, holder, hi, lo, armed)
            await _runs_now(connection, run)
        return Batch(batch_id, lane_id, run.id, 1, lo, hi, armed)

    async def claim_returned(self, lane_id: int, holder: str, *, size: int, armed: bool = True) -> Batch | None:
        """Claim up to `size` returned items whose time has come, oldest first; all of them armed or none."""
        async with self._lines.settling.transaction() as connection:
            run = await self._going(connection, lane_id)
            if run is None:
                return None
            rows = await connection.fetch(
                "select w.id from (select gateway_now() as now) t, returned w "  # noqa: S608 - a constant
                f"where w.lane_id = $1 and w.batch_id is null and {IS_DUE} order by w.due, w.id limit $2",
                *(lane_id, size),
            )
            if not rows:
                return None
            numbers = [row["id"] for row in rows]
            lo, hi = min(numbers) & 0xFFFFFFFF, (max(numbers) & 0xFFFFFFFF) + 1
            batch_id = await connection.fetchval(
                "insert into batch (lane_id, run_id, holder, token, lo, hi, armed, again) "
                "values ($1, $2, $3, 1, $4, $5, $6, true) returning id",
                *(lane_id, run.id, holder, lo, hi, hi if armed else lo),
            )
            await connection.execute("update returned set batch_id = $2 where id = any ($1)", numbers, batch_id)
            await _runs_now(connection, run)
        return Batch(batch_id, lane_id, run.id, 1, lo, hi, hi if armed else lo, again=True)

    async def fetch(self, batch: Batch) -> Sequence[StoredItem]:
        """Return the items of a batch that are neither settled nor returned, by position."""
        async with self._lines.shared.transaction() as connection:
            _, part, _ = await self._lanes.find(connection, batch.lane_id)
            if batch.again:
                rows = await connection.fetch(
                    "select i.id, i.seq, i.sealed, w.attempts from returned w "
                    "join item i on i.part = $2 and i.id = w.id where w.batch_id = $1 order by i.id",
                    *(batch.batch_id, part),
                )
            else:
                rows = await connection.fetch(
                    "select i.id, i.seq, i.sealed, 0 as attempts from item i "
                    "where i.part = $2 and i.id >= $3 and i.id < $4 and exists (select from batch where id = $1) "
                    "and not exists (select from result r where r.part = $2 and r.id = i.id) "
                    "and not exists (select from returned w where w.id = i.id) order by i.id",
                    *(batch.batch_id, part, batch.lane_id << 32 | batch.lo, batch.lane_id << 32 | batch.hi),
                )
        return [
            StoredItem(row["id"] >> 32, row["id"] & 0xFFFFFFFF, row["seq"], row["sealed"], row["attempts"])
            for row in rows
        ]

    async def rest(self, run_id: int, *, may_complete: bool) -> RunRecord:
        """Say that this process has nothing of the run in hand; return how it stands then."""
        async with self._lines.shared.transaction() as connection:
            run = await get(connection, run_id, lock=True)
            if run.state not in _GOING or run.kind is RunKind.CLIENT:
                return run
            if await connection.fetchval("select exists (select from batch where run_id = $1)", run_id):
                return run
            if run.waiting == 0 and run.counts.in_doubt and may_complete:
                return await move(connection, run, RunState.PAUSED, GATEWAY, ONLY_DOUBT)
            if run.waiting == 0 and may_complete:
                return await move(connection, run, RunState.COMPLETED, GATEWAY, "every item is settled")
            return await move(connection, run, RunState.READY, GATEWAY, "") if run.state is RunState.RUNNING else run

    async def _going(self, connection: asyncpg.Connection, lane_id: int) -> RunRecord | None:
        """Lock a lane's run; return it if it may go on."""
        run_id, _, _ = await self._lanes.find(connection, lane_id)
        run = await get(connection, run_id, lock=True)
        return run if run.state in _GOING else None


async def _runs_now(connection: asyncpg.Connection, run: RunRecord) -> None:
    if run.state is RunState.READY:
        await move(connection, run, RunState.RUNNING, GATEWAY, "")


def _lane_work(row: asyncpg.Record) -> LaneWork:
    key = LaneKey(row["route"], tuple(row["sources"]), row["repeatable"], row["service"])
    return LaneWork(
        *(row["id"], row["run_id"], row["public_id"], key, row["priority"]),
        *(row["unclaimed"], row["due"], row["in_batches"]),
    )
