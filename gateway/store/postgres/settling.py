"""Settling: results, returned items and marks written in one go; what a dead process left; a person's word.

Rules that always hold:
- The first result of an item stays; a result takes the item off the returned. That an earlier sending is in doubt is
  no news once a person has decided to repeat it: a settlement may come twice, when its answer was lost.
- A run's counts change with its rows. Its attempts are the sum of those of its settled and returned items.
- Nobody's call is forgotten: a result that comes when its item has been given to another process has, besides its own
  attempts, those made since, and the one that the other may be at.
- Every claimed position is in its batch, among the returned, or settled: a batch with anything left does not end.
- The rows of all runs concerned are locked first, in the order of their ids.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from gateway.records import BatchSighting, Recovered, Result, Returned, Settled, Settlement
from gateway.store.interface import StateError, StoreError
from gateway.store.postgres.lines import Side
from gateway.store.postgres.work import Lanes
from policies.model import ItemState, RunState

STATES = (ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT)
"""How an item ended, by the number that is stored."""
IN_DOUBT = STATES.index(ItemState.IN_DOUBT)
MAYBE_SENT = "maybe_sent"
"""The code of an item whose process died when it may have been sent."""
NOT_SENT = "not_sent"

_PUT_RESULTS = """
with put as (
  insert into result (part, id, run_id, seq, at, attempts, state, status, took_ms, code, sealed)
  select $1, i.id, i.run_id, i.seq, gateway_now(), greatest(n.attempts, o.attempts + (o.batch_id <> n.batch_id)::int,
    o.attempts), n.state, n.status, n.took_ms, n.code, n.sealed
  from unnest($2::bigint[], $3::int[], $4::smallint[], $5::int[], $6::int[], $7::text[], $8::bytea[], $9::bigint[])
      as n (id, attempts, state, status, took_ms, code, sealed, batch_id)
    join item i on i.part = $1 and i.id = n.id join lane l on l.id = n.id >> 32 left join returned o on o.id = n.id
  where n.id < (l.id << 32) + l.claimed and (n.state <> 3 or not exists (
    select from returned r where r.id = n.id and r.why = 'repeat' and r.batch_id is distinct from n.batch_id))
  on conflict do nothing returning id, run_id, state, attempts),
gone as (delete from returned w using put where w.id = put.id returning w.id, w.attempts)
select put.run_id, put.state, count(*) as items, sum(put.attempts - coalesce(gone.attempts, 0)) as attempts
from put left join gone on gone.id = put.id group by put.run_id, put.state"""

_RETURN_FRESH = """
with put as (
  insert into returned (id, lane_id, run_id, attempts, due, delay_s, why)
  select n.id, n.id >> 32, n.run_id, n.attempts, gateway_now() + n.delay_s * interval '1 second', n.delay_s, n.why
  from unnest($2::bigint[], $3::bigint[], $4::int[], $5::double precision[], $6::text[])
    as n (id, run_id, attempts, delay_s, why)
  where not exists (select from result r where r.part = $1 and r.id = n.id)
  on conflict do nothing returning run_id, attempts)
select run_id, sum(attempts) as attempts from put group by run_id"""

_RETURN_AGAIN = """
with put as (
  update returned w set attempts = n.attempts, due = gateway_now() + n.delay_s * interval '1 second',
    delay_s = n.delay_s, why = n.why, batch_id = null
  from unnest($1::bigint[], $2::bigint[], $3::int[], $4::double precision[], $5::text[])
      as n (id, batch_id, attempts, delay_s, why)
    join returned o on o.id = n.id and o.batch_id = n.batch_id
  where w.id = o.id returning w.run_id, w.attempts - o.attempts as attempts)
select run_id, sum(attempts) as attempts from put group by run_id"""

_LEFT_FRESH = """
select i.id, 0 as attempts from item i where i.part = $1 and i.id >= $2 and i.id < $3
  and not exists (select from result r where r.part = $1 and r.id = i.id)
  and not exists (select from returned w where w.id = i.id) order by i.id"""
_LEFT_AGAIN = "select id, attempts from returned where batch_id = $1 order by id"
_BATCH = "select id, lane_id, run_id, lo, hi, armed, again from batch"


@dataclass(frozen=True, slots=True)
class _Held:
    """A batch as it stands."""

    id: int
    lane_id: int
    run_id: int
    lo: int
    hi: int
    armed: int
    again: bool


class _Books:
    """What is to be added to the counts of each run."""

    def __init__(self) -> None:
        self._states: dict[int, Counter[int]] = {}
        self._attempts: Counter[int] = Counter()

    def settled(self, run_id: int, state: int, items: int, attempts: int) -> None:
        self._states.setdefault(run_id, Counter())[state] += items
        self._attempts[run_id] += attempts

    def attempted(self, run_id: int, attempts: int) -> None:
        self._attempts[run_id] += attempts

    async def write(self, connection: asyncpg.Connection) -> None:
        for run_id in sorted({*self._states, *self._attempts}):
            by = self._states.get(run_id, Counter())
            await connection.execute(
                "update run set done = done + $2, rejected = rejected + $3, failed = failed + $4, "
                "in_doubt = in_doubt + $5, attempts = attempts + $6 where id = $1",
                *(run_id, by[0], by[1], by[2], by[3], self._attempts[run_id]),
            )


class SettlingSide(Side):
    """The side of the store that writes how items ended."""

    _lanes: Lanes

    async def settle(self, settlement: Settlement) -> Settled:
        """Write results, returned items and marks."""
        named = {one.batch_id for one in settlement.results} | {one.batch_id for one in settlement.returned}
        named |= {*settlement.armed, *settlement.finished}
        books = _Books()
        async with self._lines.settling.transaction() as connection:
            by_part: dict[int, list[Result]] = {}
            runs = set()
            for result in settlement.results:
                run_id, part, _ = await self._lanes.find(connection, result.lane_id)
                runs.add(run_id)
                by_part.setdefault(part, []).append(result)
            runs |= {batch.run_id for batch in (await _held(connection, named, settlement.holder)).values()}
            states = await _locked(connection, runs)
            held = await _held(connection, named, settlement.holder)  # as it stands now that nobody changes it
            touched = {batch.run_id for batch in held.values()}
            stored = 0
            for part, results in sorted(by_part.items()):
                for row in await _put_results(connection, part, results):
                    books.settled(row["run_id"], row["state"], row["items"], int(row["attempts"]))
                    stored += row["items"]
                    touched.add(row["run_id"])
            await self._put_returned(connection, settlement.returned, held, books)
            await _mark(connection, settlement.armed, held)
            await self._finish(connection, [held[one] for one in settlement.finished if one in held])
            await books.write(connection)
        return Settled(
            states={run_id: states[run_id] for run_id in touched},
            lost=frozenset(named - held.keys()),
            stored=stored,
        )

    async def renew_batches(self, holder: str) -> None:
        """Raise the renewal number of every batch of this process."""
        async with self._lines.settling.statement() as connection:
            await connection.execute("update batch set renewal = renewal + 1 where holder = $1", holder)

    async def batches(self) -> Sequence[BatchSighting]:
        """Return every batch."""
        async with self._lines.shared.statement() as connection:
            rows = await connection.fetch("select id, holder, token, renewal from batch order by id")
        return [BatchSighting(*row) for row in rows]

    async def recover(self, sighting: BatchSighting, *, delay_s: float) -> Recovered | None:
        """End a batch of which nobody will say more."""
        books = _Books()
        again = in_doubt = 0
        async with self._lines.shared.transaction() as connection:
            run_id = await connection.fetchval("select run_id from batch where id = $1", sighting.batch_id)
            if run_id is None:
                return None
            await _locked(connection, {run_id})
            row = await connection.fetchrow(
                f"{_BATCH} where id = $1 and holder = $2 and token = $3 and renewal = $4 for update",
                *(sighting.batch_id, sighting.holder, sighting.token, sighting.renewal),
            )
            if row is None:
                return None
            batch = _Held(*row)
            _, part, repeatable = await self._lanes.find(connection, batch.lane_id)
            doubtful: list[Result] = []
            waiting: list[tuple[int, int, float, str]] = []
            for item_id, attempts in await self._left(connection, batch):
                maybe_sent = (item_id & 0xFFFFFFFF) < batch.armed
                if maybe_sent and not repeatable:
                    position = item_id & 0xFFFFFFFF
                    doubtful.append(
                        Result(batch.id, batch.lane_id, position, attempts + 1, ItemState.IN_DOUBT, code=MAYBE_SENT)
                    )
                elif maybe_sent:
                    waiting.append((item_id, attempts + 1, max(delay_s, 0.0), MAYBE_SENT))
                else:
                    waiting.append((item_id, attempts, 0.0, NOT_SENT))
            for row in await _put_results(connection, part, doubtful):
                books.settled(row["run_id"], row["state"], row["items"], int(row["attempts"]))
                in_doubt += row["items"]
            await _put_waiting(connection, part, batch, waiting, books)
            again = len(waiting)
            await connection.execute("delete from batch where id = $1", batch.id)
            await books.write(connection)
        return Recovered(again=again, in_doubt=in_doubt)

    async def _put_returned(
        self,
        connection: asyncpg.Connection,
        returned: Sequence[Returned],
        held: Mapping[int, _Held],
        books: _Books,
    ) -> None:
        by_batch: dict[int, dict[int, tuple[int, int, float, str]]] = {}
        for one in returned:
            batch = held.get(one.batch_id)
            if batch is None:
                continue  # what a lost batch returns, `recover` has returned already
            if one.lane_id != batch.lane_id or not batch.lo <= one.position < batch.hi:
                raise StoreError(f"Position {one.position} of lane {one.lane_id} is not in batch {one.batch_id}.")
            number = one.lane_id << 32 | one.position
            waits = (number, one.attempts, max(one.delay_s, 0.0), one.why)
            by_batch.setdefault(batch.id, {}).setdefault(number, waits)
        for batch_id, items in by_batch.items():
            batch = held[batch_id]
            _, part, _ = await self._lanes.find(connection, batch.lane_id)
            await _put_waiting(connection, part, batch, list(items.values()), books)

    async def _finish(self, connection: asyncpg.Connection, batches: Iterable[_Held]) -> None:
        for batch in batches:
            left = len(await self._left(connection, batch))
            if left:
                raise StateError(f"Batch {batch.id} cannot end: {left} of its items are neither settled nor returned.")
            await connection.execute("delete from batch where id = $1", batch.id)

    async def _left(self, connection: asyncpg.Connection, batch: _Held) -> list[tuple[int, int]]:
        """Return what of a batch is neither settled nor returned, with the attempts made before."""
        if batch.again:
            rows = await connection.fetch(_LEFT_AGAIN, batch.id)
        else:
            _, part, _ = await self._lanes.find(connection, batch.lane_id)
            lane = batch.lane_id << 32
            rows = await connection.fetch(_LEFT_FRESH, part, lane | batch.lo, lane | batch.hi)
        return [(row["id"], row["attempts"]) for row in rows]


async def _locked(connection: asyncpg.Connection, runs: set[int]) -> dict[int, RunState]:
    """Lock runs; return how they stand."""
    rows = await connection.fetch(
        "select id, state from run where id = any ($1) order by id for no key update", list(runs)
    )
    return {row["id"]: RunState(row["state"]) for row in rows}


async def _held(connection: asyncpg.Connection, named: set[int], holder: str) -> dict[int, _Held]:
    """Return those of these batches that this process has."""
    rows = await connection.fetch(f"{_BATCH} where id = any ($1) and holder = $2", list(named), holder)
    return {row["id"]: _Held(*row) for row in rows}


async def _put_results(
    connection: asyncpg.Connection, part: int, results: Sequence[Result]
) -> Sequence[asyncpg.Record]:
    """Write the results of items that have none; return how many of each run and state, and their new attempts."""
    for result in results:
        if result.state not in STATES:
            raise StoreError(f"{result.state.value} does not settle an item.")
    if not results:
        return []
    rows: Sequence[asyncpg.Record] = await connection.fetch(
        _PUT_RESULTS,
        part,
        [one.lane_id << 32 | one.position for one in results],
        [one.attempts for one in results],
        [STATES.index(one.state) for one in results],
        [one.status for one in results],
        [one.took_ms for one in results],
        [one.code for one in results],
        [one.sealed for one in results],
        [one.batch_id for one in results],
    )
    return rows


async def _put_waiting(
    connection: asyncpg.Connection,
    part: int,
    batch: _Held,
    waiting: Sequence[tuple[int, int, float, str]],
    books: _Books,
) -> None:
    """Let items of a batch wait again: id, attempts made, delay and why of each."""
    if not waiting:
        return
    numbers, attempts, delays, whys = (list(column) for column in zip(*waiting, strict=True))
    if batch.again:
        rows = await connection.fetch(_RETURN_AGAIN, numbers, [batch.id] * len(waiting), attempts, delays, whys)
    else:
        rows = await connection.fetch(
            _RETURN_FRESH, part, numbers, [batch.run_id] * len(waiting), attempts, delays, whys
        )
    for row in rows:
        books.attempted(row["run_id"], int(row["attempts"]))


async def _mark(connection: asyncpg.Connection, armed: Mapping[int, int], held: Mapping[int, _Held]) -> None:
    marks = [(batch_id, mark) for batch_id, mark in armed.items() if batch_id in held]
    if marks:
        await connection.execute(
            "update batch b set armed = greatest(b.armed, least(n.mark, b.hi)) "
            "from unnest($1::bigint[], $2::bigint[]) as n (id, mark) where b.id = n.id",
            *([batch_id for batch_id, _ in marks], [mark for _, mark in marks]),
        )
