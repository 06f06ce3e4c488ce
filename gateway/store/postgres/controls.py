"""Holds and interruptions, and the audit rows.

Rules that always hold: the revision grows with every change of a hold or an interruption; a span that is told is never
negative. When the clock was set back behind what is noted, the note is moved to now: a cool-down or ramp begins again,
and is not stuck until the clock has caught up.
"""

from collections.abc import Sequence

import asyncpg

from gateway.records import GATEWAY, AuditRow, Controls, Hold, InterruptionRecord
from gateway.store.interface import StateError, StoreError
from gateway.store.postgres.lines import Side
from gateway.store.postgres.runs import audit
from policies.model import ALL_SOURCES

_MEND = """
with mended as (
  update interruption set since = least(since, now),
    ramp_since = case when skipped_by <> '' then least(ramp_since, now)
      when since > now then now + cool_s * interval '1 second'
      else least(ramp_since, greatest(now, since + cool_s * interval '1 second')) end
  from (select gateway_now() as now) t
  where since > now or ramp_since >
    greatest(now, case skipped_by when '' then since + cool_s * interval '1 second' else now end)
  returning 1)
update control set revision = revision + 1 where exists (select from mended)"""
_RECORDS = """
select source, number, reason, skipped_by, cool_s,
  skipped_by = '' and now < since + cool_s * interval '1 second' as cooling,
  extract(epoch from now - since)::double precision as since_s,
  extract(epoch from now - ramp_since)::double precision as ramp_s
from interruption, (select gateway_now() as now) t"""
_INTERRUPT = """
insert into interruption (source, number, reason, since, cool_s, ramp_since)
select $1, $2, $3, now, $4::double precision, now + $4 * interval '1 second' from (select gateway_now() as now) t
on conflict (source) do update set number = excluded.number, reason = excluded.reason, since = excluded.since,
  cool_s = excluded.cool_s, ramp_since = excluded.ramp_since, skipped_by = ''"""


class ControlsSide(Side):
    """The side of the store that says what stands against bulk."""

    async def controls(self) -> Controls:
        """Return what stands against bulk."""
        async with self._lines.shared.transaction() as connection:
            ahead = await connection.fetchval(
                "select exists (select from interruption where since > gateway_now() or ramp_since > gateway_now())"
            )
            if ahead:  # a ramp that has yet to begin, or a clock that was set back
                await _changing(connection)
            return await _controls(connection)

    async def hold(self, scope: str, *, author: str, reason: str) -> Controls:
        """Stop bulk for `all` or `source:<name>`."""
        if scope != ALL_SOURCES and not (scope.startswith("source:") and len(scope) > len("source:")):
            raise StoreError(f"A hold is of `all` or of `source:<name>`, not of {scope!r}.")
        async with self._lines.shared.transaction() as connection:
            await _changing(connection)
            await connection.execute(
                "insert into hold (scope, author, reason, since) values ($1, $2, $3, gateway_now()) "
                "on conflict (scope) do update set author = excluded.author, reason = excluded.reason",
                *(scope, author, reason),
            )
            await _changed(connection)
            await audit(connection, author, "hold", scope, reason)
            return await _controls(connection)

    async def unhold(self, scope: str, *, author: str, reason: str) -> Controls:
        """End a hold. Raises StateError when there is none."""
        async with self._lines.shared.transaction() as connection:
            await _changing(connection)
            if await connection.execute("delete from hold where scope = $1", scope) == "DELETE 0":
                raise StateError(f"There is no hold of {scope}: somebody may have ended it already.")
            await _changed(connection)
            await audit(connection, author, "unhold", scope, reason)
            return await _controls(connection)

    async def interrupt(self, source: str, *, reason: str, cool_s: float) -> InterruptionRecord:
        """Note an interruption that begins now. One that is cooling already stays as it is, and is returned."""
        async with self._lines.shared.transaction() as connection:
            await _changing(connection)
            row = await _find(connection, source)
            if row is None or not row["cooling"]:
                number = await connection.fetchval(
                    "update control set interruptions = interruptions + 1, revision = revision + 1 "
                    "returning interruptions"
                )
                await connection.execute(_INTERRUPT, source, number, reason, max(cool_s, 0.0))
                await audit(connection, GATEWAY, "interrupt", source, reason)
                row = await _find(connection, source)
                assert row is not None  # it was just written
            return _record(row)

    async def restart_ramp(self, source: str) -> Controls:
        """Let the ramp of a source begin again; while it is cooling it has not begun."""
        async with self._lines.shared.transaction() as connection:
            await _changing(connection)
            row = await _find(connection, source)
            if row is not None and not row["cooling"]:
                await connection.execute("update interruption set ramp_since = gateway_now() where source = $1", source)
                await _changed(connection)
            return await _controls(connection)

    async def end_interruption(self, source: str, *, author: str, reason: str, skip: bool) -> Controls:
        """Forget an interruption whose ramp is over; with `skip`, a person ends its cool-down early."""
        async with self._lines.shared.transaction() as connection:
            await _changing(connection)
            row = await _find(connection, source)
            if skip and row is None:
                raise StateError(f"{source} is not interrupted: there is no cool-down to skip.")
            if skip and row is not None and row["cooling"]:
                await connection.execute(
                    "update interruption set skipped_by = $2, ramp_since = gateway_now() where source = $1",
                    *(source, author),
                )
                await _changed(connection)
                await audit(connection, author, "skip cool-down", source, reason)
            if not skip and row is not None and not row["cooling"]:  # else another was faster, or saw a new one
                await connection.execute("delete from interruption where source = $1", source)
                await _changed(connection)
                await audit(connection, author, "end interruption", source, reason)
            return await _controls(connection)

    async def audit(self, *, after: int = 0, limit: int = 100) -> Sequence[AuditRow]:
        """Return who changed what, oldest first."""
        async with self._lines.shared.statement() as connection:
            rows = await connection.fetch(
                "select id, at, author, action, subject, detail from audit where id > $1 order by id limit $2",
                *(after, limit),
            )
        return [AuditRow(*row) for row in rows]

    async def note(self, author: str, action: str, subject: str, detail: str = "") -> None:
        """Write an audit row for a change that is not the store's own."""
        async with self._lines.shared.statement() as connection:
            await audit(connection, author, action, subject, detail)


async def _changing(connection: asyncpg.Connection) -> None:
    """Be the only one who changes holds and interruptions; move what lies ahead of a clock that was set back."""
    await connection.execute("select from control for update")
    await connection.execute(_MEND)


async def _changed(connection: asyncpg.Connection) -> None:
    await connection.execute("update control set revision = revision + 1")


async def _find(connection: asyncpg.Connection, source: str) -> asyncpg.Record | None:
    return await connection.fetchrow(f"{_RECORDS} where source = $1", source)


async def _controls(connection: asyncpg.Connection) -> Controls:
    row = await connection.fetchrow("select revision, gateway_now() from control")
    assert row is not None  # it was made with the schema
    holds = await connection.fetch("select scope, author, reason, since from hold order by scope")
    interruptions = await connection.fetch(f"{_RECORDS} order by source")
    stops = tuple(_record(one) for one in interruptions)
    return Controls(row["revision"], row["gateway_now"], tuple(Hold(*one) for one in holds), stops)


def _record(row: asyncpg.Record) -> InterruptionRecord:
    return InterruptionRecord(
        source=row["source"],
        number=row["number"],
        reason=row["reason"],
        since_s=max(0.0, row["since_s"]),
        cool_s=row["cool_s"],
        skipped_by=row["skipped_by"],
        ramp_s=0.0 if row["cooling"] else max(0.0, row["ramp_s"]),
    )
