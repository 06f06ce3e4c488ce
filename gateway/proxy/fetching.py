"""Answers of stored calls, for whoever stored them: `GET /.gateway/async/<id>` on a traffic listener.

| How the call stands | What is answered |
|---|---|
| not sent yet, being sent, or waiting for another attempt | 202, when to ask again |
| done or rejected, with an answer | that answer: status, fields in order and case, body, octet for octet |
| done, without an answer (a person said so) | 410 |
| failed: attempts are used up, or it can never be sent | 502, with the code of the last attempt |
| in doubt: nobody knows whether it reached the source | 409: a person decides |
| its run was cancelled or failed before it was settled | 410 |
| its run is being purged | 410 |
| not known, purged, or another client's | 404: these cannot be told apart |

Rules that always hold: an answer is given to the client identity that stored the call, and to no other; tags are
compared in constant time; fetching changes nothing, so an answer can be fetched again until its run is purged.

Never counted as bulk, never sends anything anywhere.
"""

import asyncio
import re
from dataclasses import dataclass
from hmac import compare_digest

from gateway.packing import StoredAnswer, unpack_answer
from gateway.proxy.kept import Kept
from gateway.proxy.wire import OWN_PATHS
from gateway.records import ItemRecord, RunRecord
from policies.model import ItemState, RunState
from policies.runs import ENDED

ASYNC_PATH = OWN_PATHS + b"async/"
LARGE = 64 * 1024
_HANDLE = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no answer yet."""

    run: str
    run_state: RunState


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There will be no answer, or none as things stand."""

    status: int
    what: str
    run: str = ""


UNKNOWN = NoAnswer(
    404,
    "No call of this client is stored under that id: it never was, its run was purged, or it was stored by another "
    "client (another certificate, address or client rule).",
)


def handle_of(target: bytes) -> str | None:
    """Return the handle that a target names; None: it names none."""
    path = target.partition(b"?")[0]
    handle = path.removeprefix(ASYNC_PATH)
    if handle == path or not _HANDLE.fullmatch(handle):
        return None
    return handle.decode("ascii")


def location_of(handle: str) -> str:
    """Return where the answer can be fetched: a path on every traffic listener."""
    return ASYNC_PATH.decode("ascii") + handle


async def fetched(kept: Kept, handle: str, identity: str) -> StoredAnswer | Waiting | NoAnswer:
    """Return how a stored call stands.

    Raises:
        StoreDownError: the store does not answer.
    """
    found = await kept.store.find_handle(handle)
    if found is None:
        return UNKNOWN
    run, lane_id, position = found
    if not compare_digest(run.client, kept.keys.tag(identity).hex()):
        return UNKNOWN
    if run.wrapped_key is None:
        return NoAnswer(410, "The call's run is being purged: its answer is gone.", run.public_id)
    item = await kept.store.item_at(lane_id, position)
    if item is None:
        return _unsettled(run)
    if item.state in (ItemState.DONE, ItemState.REJECTED) and item.sealed_answer:
        return await _opened(kept, run, item)
    return _without_answer(run, item)


def _unsettled(run: RunRecord) -> Waiting | NoAnswer:
    if run.state not in ENDED:
        return Waiting(run.public_id, run.state)
    what = f"The call's run is {run.state}, by {run.changed_by}, before the call was settled. Send it again if needed."
    return NoAnswer(410, what, run.public_id)


async def _opened(kept: Kept, run: RunRecord, item: ItemRecord) -> StoredAnswer | NoAnswer:
    from gateway.sealing import SealError  # late: its libraries are here once the store is open

    assert run.wrapped_key is not None

    def opened(wrapped: bytes) -> StoredAnswer:
        key = kept.keys.unwrap(wrapped)
        if run.dictionary is not None:
            key = key.with_dictionary(key.unseal("dictionary", run.public_id, 0, run.dictionary))
        return unpack_answer(key.unseal("answer", run.public_id, item.seq, item.sealed_answer))

    try:
        if len(item.sealed_answer) > LARGE:
            return await asyncio.to_thread(opened, run.wrapped_key)
        return opened(run.wrapped_key)
    except (SealError, ValueError):
        return NoAnswer(
            500,
            "The call was answered, and the answer that was kept cannot be opened: the gateway's operators must look "
            "at the store's disk and at its key.",
            run.public_id,
        )


def _without_answer(run: RunRecord, item: ItemRecord) -> NoAnswer:
    last = f" The last attempt came to {item.code or item.status or 'nothing'}." if item.code or item.status else ""
    match item.state:
        case ItemState.FAILED:
            tries = "attempt" if item.attempts == 1 else "attempts"
            what = f"The call failed after {item.attempts} {tries}.{last} Send it again, once the cause is mended."
            return NoAnswer(502, what, run.public_id)
        case ItemState.IN_DOUBT:
            what = (
                f"Nobody knows whether the call reached its source, and it may not be repeated.{last} A person decides "
                "(`bcss-gateway runs doubts`); ask again then. Do not send it again before."
            )
            return NoAnswer(409, what, run.public_id)
        case _:
            what = f"The call was settled as {item.state} by a person's word: there is no answer of a source."
            return NoAnswer(410, what, run.public_id)
