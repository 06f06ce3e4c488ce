"""A store of each engine, for the contract: `ENGINES` names them, and a test that asks for `store` runs on all.

`kept.now` and `kept.skip` are the store's own clock, which is not this process's where a database has one of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from gateway.store.interface import Store
from gateway.store.sqlite import open_sqlite
from tests.conftest import JumpingClock


@dataclass(frozen=True)
class Kept:
    """A store that is open and migrated, and its clock."""

    store: Store
    now: Callable[[], datetime]
    skip: Callable[[float], Awaitable[None]]  #: step the clock by seconds, either way


OpenStore = Callable[[Path], AbstractAsyncContextManager[Kept]]


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Kept]:
    """Open the store of a folder; the same folder holds the same store when it is opened again."""
    clock = JumpingClock()

    async def skip(seconds: float) -> None:
        clock.skip(seconds=seconds)

    store = await open_sqlite(folder / "store.sqlite", clock)
    try:
        await store.migrate()
        yield Kept(store, clock.wall, skip)
    finally:
        await store.close()


ENGINES: dict[str, OpenStore] = {"sqlite": sqlite}


@pytest.fixture(params=ENGINES)
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    """Return what opens the store of a folder."""
    return ENGINES[request.param]


@pytest.fixture
async def kept(open_store: OpenStore, tmp_path: Path) -> AsyncIterator[Kept]:
    """An empty store with its clock."""
    async with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(kept: Kept) -> Store:
    """An empty store."""
    return kept.store
