"""Slots as rows that several gateways share: `policies.model.LeaseStore` on PostgreSQL (design section 5).

Rules that always hold:
- Only tokens and renewal numbers are compared; no clock decides who holds a slot.
- Rows are locked in the order of pool and number, after the layout's row: no two transactions wait for each other.
- A take or renewal holds the layout's row shared, an installation holds it alone: no take under a layout that is gone.
- A notification goes out only when another gateway waits: each one takes a lock on the whole database.

Never decides whose a slot should be: `policies.leases` does, and is told here whether it was so.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress

import asyncpg

from gateway.store.postgres.lines import Line
from policies.model import LayoutRow, SlotBook, SlotRow, StoreDownError, WaitingReplica

CHANNEL = "bcss_gateway_slots"

_OBSERVE = """
select digest, lease_s, caps,
  (select coalesce(json_agg(json_build_array(pool, n, token, renewal, holder) order by pool, n), '[]') from slot)::text
    as slots,
  (select coalesce(json_agg(json_build_array(holder, pool, waited_s + age) order by holder, pool), '[]')
    from (select *, extract(epoch from gateway_now() - said_at) as age from waiting) w where age between 0 and 1)::text
    as waiting
from layout"""

_TAKE = """
with agreed as (select from layout where digest = $1 for share),
free as (
  select s.pool, s.n from slot s
    join unnest($3::text[], $4::int[], $5::bigint[], $6::bigint[]) as seen (pool, n, token, renewal)
      on s.pool = seen.pool and s.n = seen.n and s.token = seen.token and s.renewal = seen.renewal
  where exists (select from agreed) order by s.pool, s.n for update of s)
update slot s set holder = $2, token = s.token + 1, renewal = 0 from free
where s.pool = free.pool and s.n = free.n and (select count(*) from free) = cardinality($3::text[])
returning s.pool, s.n, s.token, s.renewal, s.holder"""

_RENEW = """
with agreed as (select from layout where digest = $1 for share),
mine as (
  select s.pool, s.n, known.token is not null as known, exists (select from agreed) as agreed from slot s
    left join unnest($3::text[], $4::int[], $5::bigint[]) as known (pool, n, token)
      on s.pool = known.pool and s.n = known.n and s.token = known.token
  where s.holder = $2 order by s.pool, s.n for update of s),
changed as (
  update slot s set renewal = s.renewal + case when known then 1 else 0 end,
    holder = case when known then s.holder else '' end
  from mine where s.pool = mine.pool and s.n = mine.n and s.holder = $2 and (mine.agreed or not known)
  returning s.pool, s.n, s.token, s.renewal, s.holder)
select * from changed where holder <> '' order by pool, n"""

_RELEASE = """
with mine as (
  select s.pool, s.n from slot s join unnest($2::text[], $3::int[], $4::bigint[]) as known (pool, n, token)
    on s.pool = known.pool and s.n = known.n and s.token = known.token
  where s.holder = $1 order by s.pool, s.n for update of s),
released as (
  update slot s set holder = '' from mine where s.pool = mine.pool and s.n = mine.n and s.holder = $1 returning s.pool)
select pg_notify($5, '') where exists (
  select from waiting w where w.holder <> $1 and w.pool in (select pool from released)
    and gateway_now() - w.said_at between interval '0' and interval '2 seconds')"""

_WAIT = """
with said as (
  insert into waiting as w (holder, pool, waited_s, said_at)
    select $1, pool, waited_s, gateway_now() from unnest($2::text[], $3::double precision[]) as mine (pool, waited_s)
  on conflict (holder, pool) do update set waited_s = excluded.waited_s, said_at = excluded.said_at),
stale as (
  select holder, pool from waiting
  where case when holder = $1 then pool <> all ($2::text[])
    else gateway_now() - said_at not between interval '-1 minute' and interval '1 minute' end
  for update skip locked),
gone as (delete from waiting w using stale where w.holder = stale.holder and w.pool = stale.pool)
select holder, pool, waited_s + age as waited_s
from (select *, extract(epoch from gateway_now() - said_at)::double precision as age from waiting where holder <> $1) w
where age between 0 and 1 order by holder, pool"""


class PostgresLeases:
    """The slots' side of the store. `asking` carries statements, `hearing` carries notifications."""

    def __init__(self, asking: Line, hearing: Line) -> None:
        self._asking = asking
        self._hearing = hearing
        self._released = asyncio.Event()

    async def observe(self) -> SlotBook:
        """Return everything, as of one moment."""
        async with self._asking.statement() as connection:
            row = await connection.fetchrow(_OBSERVE)
        assert row is not None  # the schema puts the layout's row there
        return SlotBook(
            _layout(row),
            tuple(SlotRow(*fields) for fields in json.loads(row["slots"])),
            tuple(WaitingReplica(*fields) for fields in json.loads(row["waiting"])),
        )

    async def install(self, layout: LayoutRow, seen: SlotBook) -> bool:
        """Put a layout in place of the one in `seen`, if all still stands as seen."""
        async with self._asking.transaction() as connection:
            old = await connection.fetchrow("select * from layout for update")
            assert old is not None  # the schema puts it there
            found = await connection.fetch(
                "select pool, n, token, renewal, holder from slot order by pool, n for update"
            )
            rows = {_slot(row) for row in found}
            if _layout(old) != seen.layout or rows != set(seen.rows):
                return False
            wanted = {(pool, n) for pool, cap in layout.caps for n in range(1, cap + 1)}
            present = {(row.pool, row.n) for row in rows}
            highest = max([old["highest_token"], *(row.token for row in rows)])
            dropped, born = sorted(present - wanted), sorted(wanted - present)
            await connection.execute(
                "delete from slot s using unnest($1::text[], $2::int[]) as gone (pool, n) "
                "where s.pool = gone.pool and s.n = gone.n",
                [pool for pool, _ in dropped],
                [n for _, n in dropped],
            )
            await connection.execute(
                "insert into slot (pool, n, token, holder) select pool, n, $3, $4 "
                "from unnest($1::text[], $2::int[]) as born (pool, n)",
                [pool for pool, _ in born],
                [n for _, n in born],
                highest + 1,
                f"nobody-{secrets.token_hex(8)}",
            )
            await connection.execute(
                "update layout set digest = $1, lease_s = $2, caps = $3, highest_token = $4",
                layout.digest,
                layout.lease_s,
                json.dumps(layout.caps),
                highest + 1 if born else highest,
            )
            return True

    async def take(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        """Take all of these rows, or none."""
        pools, numbers, tokens = _columns(rows)
        renewals = [row.renewal for row in rows]
        async with self._asking.statement() as connection:
            taken = await connection.fetch(_TAKE, digest, holder, pools, numbers, tokens, renewals)
        return tuple(sorted((_slot(row) for row in taken), key=lambda row: (row.pool, row.n)))

    async def renew(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        """Renew those of these rows that are still held with the same token; release all others of this holder."""
        async with self._asking.statement() as connection:
            return tuple(_slot(row) for row in await connection.fetch(_RENEW, digest, holder, *_columns(rows)))

    async def release(self, holder: str, rows: tuple[SlotRow, ...]) -> None:
        """Release those of these rows that are still held with the same token, and wake who waits."""
        async with self._asking.statement() as connection:
            await connection.execute(_RELEASE, holder, *_columns(rows), CHANNEL)

    async def wait(self, holder: str, waited_s: Mapping[str, float]) -> tuple[WaitingReplica, ...]:
        """Say for how long the oldest caller here has waited, by pool; return the others who wait."""
        async with self._asking.statement() as connection:
            others = await connection.fetch(_WAIT, holder, list(waited_s), [float(s) for s in waited_s.values()])
        return tuple(WaitingReplica(row["holder"], row["pool"], row["waited_s"]) for row in others)

    async def woken(self, timeout_s: float) -> None:
        """Return when a slot was released that somebody waited for, or when the time is over.

        Without a connection the time just passes: whoever calls looks again by itself.
        """
        with suppress(StoreDownError):
            await self._hearing.listen(CHANNEL, self._released.set)
        try:
            async with asyncio.timeout(timeout_s):
                await self._released.wait()
        except TimeoutError:
            return
        finally:
            self._released.clear()


def _layout(row: asyncpg.Record) -> LayoutRow | None:
    if row["digest"] is None:
        return None
    return LayoutRow(row["digest"], row["lease_s"], tuple((pool, cap) for pool, cap in json.loads(row["caps"])))


def _slot(row: asyncpg.Record) -> SlotRow:
    return SlotRow(row["pool"], row["n"], row["token"], row["renewal"], row["holder"])


def _columns(rows: Sequence[SlotRow]) -> tuple[list[str], list[int], list[int]]:
    return [row.pool for row in rows], [row.n for row in rows], [row.token for row in rows]
