"""Two gateways on one PostgreSQL, and what goes wrong there; counted at the source, and looked up in the books. Short
forms of `make drill`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.sharing import LEASE_S, Load, world
from tests.gateway.store.postgres_server import EmbeddedServer, embedded_server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server whose plug may be pulled."""
    with embedded_server(durable=True) as running:
        yield running


async def test_kill_9_of_one_of_two(tmp_path: Path, server: EmbeddedServer) -> None:
    async with world(tmp_path, server, "a", "b") as here:
        load = Load(here)
        async with load.going_on():
            await asyncio.sleep(LEASE_S + 1)
            await here.kill(here.gateways[0], away_s=0.5)
            await asyncio.sleep(1)
