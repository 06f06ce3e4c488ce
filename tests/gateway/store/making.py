"""Runs and items for tests of the store. Sealed octets are made up: the store never looks into them."""

import secrets
from collections.abc import Sequence
from typing import Any

from gateway.records import Batch, LaneKey, NewItem, NewRun, Result, Returned, RunRecord, Settlement
from gateway.store.interface import Store
from policies.model import ItemState, RunKind, RunState

READS = LaneKey("/persons", ("national-register",), True, "PersonService")
WRITES = LaneKey("/persons", ("national-register",), False, "MutationService")


def new_run(**changes: Any) -> NewRun:
    """Return a run to be made."""
    given: dict[str, Any] = {
        "public_id": secrets.token_hex(16),
        "kind": RunKind.FILE,
        "name": "yearly check",
        "author": "anna",
        "wrapped_key": b"wrapped",
    }
    return NewRun(**{**given, **changes})


def items(numbers: range, lane: LaneKey = READS, *, keyed: bool = False) -> list[NewItem]:
    """Return items with these sequence numbers."""
    return [
        NewItem(
            seq,
            lane,
            b"request %d" % seq,
            key_tag=b"tag%013d" % seq if keyed else b"",
            sealed_key=b"key %d" % seq if keyed else b"",
        )
        for seq in numbers
    ]


async def ready_run(store: Store, size: int, lane: LaneKey = READS, **changes: Any) -> tuple[RunRecord, int]:
    """Make a run of `size` items in one lane, ready; return it and the lane's id."""
    run = await store.create_run(new_run(**changes))
    await store.add_items(run.id, items(range(size), lane), received=size)
    run = await store.change_state(run.id, RunState.READY, author="anna", reason="")
    ((work, _),) = await store.lanes(run.id)
    return run, work.lane_id


async def claimed(store: Store, lane_id: int, holder: str = "here", *, size: int = 64, window: int = 64) -> Batch:
    """Claim fresh positions; there are some."""
    batch = await store.claim(lane_id, holder, size=size, window=window)
    assert batch is not None
    return batch


def result(batch: Batch, position: int, state: ItemState = ItemState.DONE, **changes: Any) -> Result:
    """Return a result of an item of a batch."""
    given: dict[str, Any] = {"attempts": 1, "status": 200, "code": "", "took_ms": 20, "sealed": b"answer"}
    return Result(batch.batch_id, batch.lane_id, position, state=state, **{**given, **changes})


def again(batch: Batch, position: int, *, delay_s: float = 0.0, attempts: int = 1) -> Returned:
    """Return an item of a batch to wait again."""
    return Returned(batch.batch_id, batch.lane_id, position, attempts, delay_s, "technical")


def settlement(
    *,
    results: Sequence[Result] = (),
    returned: Sequence[Returned] = (),
    finished: Sequence[Batch] = (),
    holder: str = "here",
    **changes: Any,
) -> Settlement:
    """Return what one group commit writes."""
    return Settlement(holder, results, returned, finished=[batch.batch_id for batch in finished], **changes)


async def settle_all(store: Store, batch: Batch, state: ItemState = ItemState.DONE, holder: str = "here") -> None:
    """Settle whatever is left of a batch, and end it."""
    left = [result(batch, one.position, state, attempts=one.attempts + 1) for one in await store.fetch(batch)]
    await store.settle(settlement(results=left, finished=[batch], holder=holder))
