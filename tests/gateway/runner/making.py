"""Runs for tests of the runner: real ones, in the store of a gateway that runs."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.mass import Opened
from gateway.packing import StoredAnswer, StoredRequest, pack_request, unpack_answer
from gateway.records import ItemRecord, LaneKey, NewItem, NewRun, RunRecord
from gateway.sealing import RunKey
from policies.model import ItemState, RunKind, RunState
from tests.conftest import Running, envelope, gateway_over

BASE = LaneKey("/", ("national-register",), True)
ONSS = LaneKey("/", ("onss",), True)
WRITES = LaneKey("/", ("national-register",), False)
FAST = "runs: {retry_first: 10ms, retry_longest: 20ms}\n"
SERVICES = {
    "national-register": ("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest"),
    "onss": ("Dolsis2011Service/v1", "findEmployersByWorkerRequest"),
}


patient = partial(gateway_over, upstream="call_timeout: 10s, hold: 500ms")
"""A gateway that waits for the stand-in on a machine that is busy: a write whose call times out is in doubt."""


async def opened(run: Running) -> Opened:
    """Return what a gateway has for runs, once it is there."""
    async with asyncio.timeout(10):
        await run.gateway.mass.is_open.wait()
    assert run.gateway.mass.opened is not None
    return run.gateway.mass.opened


def request(key: LaneKey = BASE) -> StoredRequest:
    """Return a request to a lane's source."""
    service, operation = SERVICES[key.sources[0]] if key.sources else ("Unheard/v1", "of")
    fields = ((b"Content-Type", b"text/xml; charset=utf-8"), (b"SOAPAction", b'""'), (b"X-Test-Class", b"bulk"))
    return StoredRequest(b"/" + service.encode(), fields, envelope(service, operation))


async def submit(mass: Opened, size: int, key: LaneKey = BASE, *, ready: bool = True, **changes: Any) -> RunRecord:
    """Store a run of `size` items, and make it ready."""
    run_key, wrapped = mass.keys.new_key()
    given: dict[str, Any] = {"public_id": secrets.token_hex(16), "kind": RunKind.FILE, "name": "x", "author": "anna"}
    run = await mass.store.create_run(NewRun(**{"wrapped_key": wrapped, **given, **changes}))
    if not ready:
        return run
    octets = pack_request(request(key))
    await mass.store.add_items(run.id, sealed(run_key, run, range(size), octets, key), received=size)
    record = await mass.store.change_state(run.id, RunState.READY, author="anna", reason="")
    mass.runner.wake()
    return record


def sealed(run_key: RunKey, run: RunRecord, numbers: range, octets: bytes, key: LaneKey) -> list[NewItem]:
    """Return items, sealed."""
    return [NewItem(seq, key, run_key.seal("request", run.public_id, seq, octets)) for seq in numbers]


async def until(
    mass: Opened, run: RunRecord, is_so: Callable[[RunRecord], bool] | RunState, *, timeout: float = 20.0
) -> RunRecord:
    """Wait until a run is in a state, or something else is true of it; return it."""
    async with asyncio.timeout(timeout):
        while True:
            record = await mass.store.run(run.public_id)
            assert record is not None
            if record.state is is_so if isinstance(is_so, RunState) else is_so(record):
                return record
            await asyncio.sleep(0.01)


async def nothing_in_hand(mass: Opened) -> None:
    """Wait until no batch is in anybody's hands."""
    async with asyncio.timeout(10):
        while await mass.store.batches():
            await asyncio.sleep(0.01)


async def items(mass: Opened, run: RunRecord, *states: ItemState) -> Mapping[int, ItemRecord]:
    """Return a run's settled items by sequence number."""
    return {one.seq: one for one in await mass.store.items(run.id, states, limit=10_000, bodies=True)}


def answer_of(mass: Opened, run: RunRecord, item: ItemRecord) -> StoredAnswer:
    """Open an answer."""
    assert run.wrapped_key is not None
    key = mass.keys.unwrap(run.wrapped_key)
    return unpack_answer(key.unseal("answer", run.public_id, item.seq, item.sealed_answer))


async def died(run: Running) -> str:
    """Have the runner vanish as a killed process does: nothing is given back. Return the file of that process."""
    left = (run.log.parent / "state" / "busy_until.json").read_text()
    (task,) = (one for one in asyncio.all_tasks() if _is_of(one, run))
    task.cancel()
    await asyncio.wait([task])
    return left


def _is_of(task: "asyncio.Task[Any]", run: Running) -> bool:
    coroutine = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None)
    is_runs = getattr(coroutine, "__qualname__", "") == "MassRuns.run"
    return is_runs and frame is not None and frame.f_locals.get("self") is run.gateway.mass
