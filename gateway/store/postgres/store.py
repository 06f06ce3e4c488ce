"""The store on PostgreSQL, put together from its sides: submission, runs, work, settling, results, controls, slots.

Rules that always hold:
- Results, slots, notifications and the rest have lines of their own, so that none waits for another's transaction.
- Locks are taken in one order: a run's row, then its lanes and batches, then what belongs to them; several runs in the
  order of their ids. So no two transactions wait for each other.
- The schema is changed in one transaction, under an advisory lock; two gateways that start together do it once.

Opening connects to nothing: the first call does, so that a database that is down does not stop a start.
"""

from urllib.parse import urlsplit

from gateway.store.interface import StoreError
from gateway.store.migrating import migrations, pending
from gateway.store.postgres.controls import ControlsSide
from gateway.store.postgres.leases import PostgresLeases
from gateway.store.postgres.lines import Line, Lines
from gateway.store.postgres.loading import LoadingSide
from gateway.store.postgres.results import ResultsSide
from gateway.store.postgres.runs import RunsSide
from gateway.store.postgres.settling import SettlingSide
from gateway.store.postgres.work import Lanes, WorkSide
from policies.model import Clock

SHARED_LINES = 4
MIGRATION_S = 600.0
"""A change of the schema may have to rewrite a table."""
_LOCK = 0x62637373  # "bcss"; advisory locks are numbers


async def open_postgres(url: str, clock: Clock, timeout: float) -> "PostgresStore":  # noqa: ASYNC109 - not of this call
    """Return the store at `url`; `timeout`: how long the database may take to answer, seconds.

    Raises StoreError when the address is none of PostgreSQL.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("postgresql", "postgres") and (parts.port is None or parts.port > 0)
    except ValueError:  # it would quote what it took for the port: perhaps a piece of the password
        sound = False
    if not sound:
        raise StoreError(
            "`store.url` is no address of PostgreSQL: postgresql://user:password@host:5432/database, with `/`, `@`, "
            "`:` and `%` of a password percent-encoded."
        )
    return PostgresStore(url, clock, timeout)


class PostgresStore(LoadingSide, RunsSide, WorkSide, SettlingSide, ResultsSide, ControlsSide, PostgresLeases):
    """Runs and what belongs to them, and the slots that several gateways share."""

    def __init__(self, url: str, clock: Clock, timeout_s: float) -> None:
        lines = Lines(
            settling=Line(url, clock, timeout_s),
            shared=tuple(Line(url, clock, timeout_s) for _ in range(SHARED_LINES)),
        )
        self._lines = lines
        self._own = (Line(url, clock, timeout_s), Line(url, clock, timeout_s))
        PostgresLeases.__init__(self, *self._own)
        self._lanes = Lanes()

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema to what this program knows."""
        steps = migrations("postgres")
        async with self._lines.shared.transaction(MIGRATION_S) as connection:
            await connection.execute("set local statement_timeout = 0; set local lock_timeout = 0")
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(
                "create table if not exists schema_version "
                "(version integer primary key, name text not null, at timestamptz not null default clock_timestamp())"
            )
            before: int = await connection.fetchval("select coalesce(max(version), 0) from schema_version")
            for step in pending(steps, before):
                await connection.execute(step.sql)
                await connection.execute(
                    "insert into schema_version (version, name) values ($1, $2)", step.version, step.name
                )
        return before, len(steps)

    async def close(self) -> None:
        """Let go of the database."""
        for line in (*self._lines.all(), *self._own):
            await line.close()
