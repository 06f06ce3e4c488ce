"""An API at work: a real store, real sockets, no gateway around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector

from gateway.admin.desk import Desk, Kept
from gateway.admin.server import Administration, start_admin
from gateway.config import load
from gateway.loading import Loader
from gateway.log import LineWriter, event_log
from gateway.packing import StoredAnswer, StoredRequest, pack_answer, pack_request
from gateway.records import LaneKey, NewItem, Result, RunRecord, Settlement
from gateway.sealing import KeyRing
from gateway.slots import PoolStatistics, Statistics
from gateway.store.sqlite import SqliteStore, open_sqlite
from policies.model import ItemState
from tests.conftest import JumpingClock

OPERATOR = "an-operators-token"
VIEWER = "a-viewers-token"
LANE = LaneKey("/", ("bcss",), True, "TestConnectionServiceService/v1")
CONFIG = f"""
upstreams: {{bcss: {{url: 'http://127.0.0.1:1'}}}}
routes: [{{prefix: /SOA, upstream: bcss}}]
administration:
  port: 0
  hosts: [gateway.example]
  tokens:
    - {{name: olga, sha256: {sha256(OPERATOR.encode()).hexdigest()}, role: operator}}
    - {{name: victor, sha256: {sha256(VIEWER.encode()).hexdigest()}}}
"""


@dataclass
class Api:
    """The API, and what is behind it."""

    desk: Desk
    store: SqliteStore
    ring: KeyRing
    served: Administration
    log: Path
    woken: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def client(self, token: str | None = None, **headers: str) -> AsyncIterator[ClientSession]:
        """Ask over the socket; with a token, over TCP."""
        connector = UnixConnector(str(self.desk.socket)) if token is None else TCPConnector()
        base = "http://localhost" if token is None else self.served.address
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with ClientSession(base, connector=connector, headers=headers) as session:
            yield session

    async def filled(self, run: RunRecord, answers: list[tuple[str, ItemState, str]], body: bytes = b"<ok/>") -> None:
        """Give a loading run items with these client keys, which ended so."""
        key = self.ring.unwrap(run.wrapped_key or b"")
        items = []
        for seq, (client_key, _, _) in enumerate(answers):
            request = pack_request(StoredRequest(b"/SOA/x", ((b"SOAPAction", b'""'),), b"<asked seq='%d'/>" % seq))
            items.append(
                NewItem(
                    seq,
                    LANE,
                    key.seal("request", run.public_id, seq, request),
                    key.key_tag(client_key),
                    key.seal("key", run.public_id, seq, client_key.encode()),
                )
            )
        await self.store.add_items(run.id, items, received=len(items))
        async with self.client() as asking, asking.post(f"/api/v1/runs/{run.public_id}/ready") as answer:
            assert answer.status == 200
        [(lane, _)] = await self.store.lanes(run.id)
        batch = await self.store.claim(lane.lane_id, "me", size=len(items), window=len(items))
        assert batch is not None
        ended = [
            Result(
                batch.batch_id,
                lane.lane_id,
                position,
                1,
                state,
                200,
                code,
                20,
                b""
                if state is ItemState.IN_DOUBT
                else key.seal(
                    "answer",
                    run.public_id,
                    position,
                    pack_answer(StoredAnswer(200, b"OK", ((b"Content-Type", b"text/xml"),), body)),
                ),
            )
            for position, (_, state, code) in enumerate(answers)
            if state is not ItemState.WAITING
        ]
        await self.store.settle(Settlement("me", ended, finished=[batch.batch_id] if len(ended) == len(items) else ()))


@asynccontextmanager
async def api_in(folder: Path, config: str = CONFIG) -> AsyncIterator[Api]:
    """Serve the API over a store in this folder."""
    clock = JumpingClock()
    (folder / "config.yaml").write_text(config)
    configuration = load(folder / "config.yaml", {}, now=clock.wall())
    store = await open_sqlite(folder / "store.sqlite", clock)
    await store.migrate()
    ring = KeyRing.open(None, folder)
    woken: list[int] = []
    pools = {"base": PoolStatistics(4, 1, 4, 2, 0.5)}
    with (folder / "log.jsonl").open("a") as out:
        lines = LineWriter(out)
        log = event_log(clock, lines)

        def defect(error: BaseException) -> None:
            log.error("defect", kind=repr(error))

        desk = Desk(
            kept=lambda: Kept(store, ring, Loader(lambda: configuration, store.add_items, store.set_dictionary)),
            clock=clock,
            log=log,
            configuration=lambda: configuration,
            statistics=lambda: Statistics(pools, True, None, 0.0, 0, 0),
            socket=folder / "admin.sock",
            version="0.1.0",
            changed=lambda: woken.append(1),
            meaning=lambda code: f"meaning of {code}",
            defect=defect,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                served = await start_admin(desk, tasks)
                try:
                    yield Api(desk, store, ring, served, folder / "log.jsonl", woken)
                finally:
                    await served.close()
        finally:
            await store.close()
            lines.close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The API over an empty store."""
    async with api_in(tmp_path) as serving:
        yield serving
    assert "defect" not in (tmp_path / "log.jsonl").read_text()
