"""The store that several gateways share: PostgreSQL, through asyncpg."""

from gateway.store.postgres.store import PostgresStore, open_postgres

__all__ = ["PostgresStore", "open_postgres"]
