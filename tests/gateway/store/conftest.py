"""A store of each engine, for the contract: `ENGINES` names them, and a test that asks for `store` runs on all.

`kept.now` and `kept.skip` are the store's own clock, which is not this process's where a database has one of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from gateway.store.interface import Store
from gateway.store.postgres import open_postgres
from gateway.store.sqlite import open_sqlite
from tests.conftest import JumpingClock
from tests.gateway.store.postgres_server import emptied_database, make_template, server_url, step_clock


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


@asynccontextmanager
async def postgres(url: str, folder: Path) -> AsyncIterator[Kept]:
    """Open the store of a database; its clock is the database's."""
    ahead = timedelta()

    async def skip(seconds: float) -> None:
        nonlocal ahead
        ahead += timedelta(seconds=seconds)
        await step_clock(url, ahead)

    store = await open_postgres(url, JumpingClock(), 10.0)
    try:
        await store.migrate()
        yield Kept(store, lambda: datetime.now(UTC) + ahead, skip)
    finally:
        await store.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a server with a template of the gateway's database."""
    with server_url() as url:
        with ThreadPoolExecutor(1) as aside:  # a test's loop may be running
            aside.submit(lambda: asyncio.run(make_template(url))).result()
        yield url


ENGINES = ("sqlite", "postgres")


@pytest.fixture(params=ENGINES)
async def open_store(request: pytest.FixtureRequest) -> AsyncIterator[OpenStore]:
    """Return what opens the store of a folder."""
    if request.param == "sqlite":
        yield sqlite
        return
    async with emptied_database(request.getfixturevalue("postgres_url")) as url:
        yield partial(postgres, url)


@pytest.fixture
async def kept(open_store: OpenStore, tmp_path: Path) -> AsyncIterator[Kept]:
    """An empty store with its clock."""
    async with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def store(kept: Kept) -> Store:
    """An empty store."""
    return kept.store
