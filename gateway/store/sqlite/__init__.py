"""The store in one file, for one process: the standard library's SQLite in a thread of its own."""

from gateway.store.sqlite.store import SqliteStore, open_sqlite

__all__ = ["SqliteStore", "open_sqlite"]
