"""A gateway whose store is open, for tests of stored calls and calls that join runs; and the runner's part by hand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.packing import StoredAnswer, StoredRequest, pack_answer, unpack_request
from gateway.proxy import Kept
from gateway.records import Batch, ItemRecord, Result, RunRecord, Settlement, StoredItem
from gateway.sealing import KeyRing
from gateway.store.interface import Store
from gateway.store.sqlite import open_sqlite
from policies.model import ItemState, Reason, RunKind
from policies.recovery import Disposition
from tests.conftest import JumpingClock, Running, gateway_over

HOLDER = "test"


class NoRuns:
    """Client-driven runs of a site that has none."""

    async def begin(self, run_id: str, flow: str) -> Reason | None:
        return Reason.UNKNOWN_RUN

    def ended(self, run_id: str, disposition: Disposition | None) -> None:
        raise AssertionError("no call can have been of a run")


@dataclass
class Site:
    """A running gateway, and what lies behind it."""

    run: Running
    store: Store
    keys: KeyRing
    woken: list[bool]

    async def runs(self) -> list[RunRecord]:
        """Return all async runs."""
        return [one for one in await self.store.runs() if one.kind is RunKind.ASYNC]

    async def taken(self, run: RunRecord) -> list[tuple[Batch, StoredItem, StoredRequest]]:
        """Claim and open what waits in a run, as the runner does."""
        assert run.wrapped_key is not None
        key = self.keys.unwrap(run.wrapped_key)
        found = []
        for work, _ in await self.store.lanes(run.id):
            while (batch := await self.store.claim(work.lane_id, HOLDER, size=64, window=64)) is not None:
                for item in await self.store.fetch(batch):
                    request = unpack_request(key.unseal("request", run.public_id, item.seq, item.sealed))
                    found.append((batch, item, request))
        return found

    async def settle(
        self,
        run: RunRecord,
        batch: Batch,
        item: StoredItem,
        state: ItemState,
        answer: StoredAnswer | None,
        **how: object,
    ) -> None:
        """Settle an item, as the runner does."""
        assert run.wrapped_key is not None
        key = self.keys.unwrap(run.wrapped_key)
        sealed = b"" if answer is None else key.seal("answer", run.public_id, item.seq, pack_answer(answer))
        code = str(how.get("code", ""))
        status = answer.status if answer is not None else 0
        result = Result(batch.batch_id, item.lane_id, item.position, item.attempts + 1, state, status, code, 5, sealed)
        await self.store.settle(Settlement(HOLDER, results=[result]))

    async def settled(self, state: ItemState, answer: StoredAnswer | None, **how: object) -> None:
        """Settle everything that waits."""
        for run in await self.runs():
            for batch, item, _ in await self.taken(run):
                await self.settle(run, batch, item, state, answer, **how)

    async def items(self, run: RunRecord) -> list[ItemRecord]:
        """Return what is settled."""
        return list(await self.store.items(run.id))


@asynccontextmanager
async def storing(folder: Path, url: str, *, clock: JumpingClock | None = None, extra: str = "") -> AsyncIterator[Site]:
    """Run a gateway in front of `url` whose store is open."""
    async with gateway_over(folder, url, clock=clock, extra=extra) as run:
        async with asyncio.timeout(10):
            await run.gateway.mass.is_open.wait()
        store = await open_sqlite(folder / "store.sqlite", run.clock)
        try:
            await store.migrate()
            keys = KeyRing.open(None, folder)
            site = Site(run, store, keys, [])
            kept = Kept(store, keys, NoRuns(), lambda: site.woken.append(True))
            run.gateway.kept = lambda: kept
            yield site
        finally:
            run.gateway.kept = lambda: None
            await store.close()


def head_of(answer: bytes) -> dict[str, str]:
    """Return an answer's fields, names in lower case."""
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def body_of(answer: bytes) -> bytes:
    """Return an answer's body."""
    return answer.partition(b"\r\n\r\n")[2]


def told(answer: bytes) -> dict[str, object]:
    """Return what an answer in JSON says."""
    said: dict[str, object] = json.loads(body_of(answer))
    return said


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    """Write a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway.example", *fields]).encode() + b"\r\n\r\n"


def lines_of(log: Path, which: Callable[[dict[str, object]], bool]) -> list[dict[str, object]]:
    """Return lines of the log."""
    return [line for line in map(json.loads, log.read_text().splitlines()) if which(line)]
