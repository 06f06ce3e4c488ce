"""A new run of just the items of another that did not succeed.

Their requests are opened and sealed again under the new run's key; their lanes are known, so that nothing is classified
anew. Rules that always hold: the run they come from has ended or is paused, so that nothing of it is sent twice by
accident; a retry that broke off goes on where it was when it is asked again with the same Idempotency-Key; an item
keeps the number that it has in the old run; items in doubt are not among them, since a person decides those.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence

from aiohttp import web

from gateway.admin.operations import Call, answered
from gateway.admin.problems import ProblemError
from gateway.admin.results import opened_key
from gateway.admin.runs import find, key_of
from gateway.admin.shapes import shown_run
from gateway.log import nameable
from gateway.records import ItemRecord, LaneKey, NewItem, NewRun, RunRecord
from gateway.sealing import RunKey
from policies.model import ItemState, RunKind, RunState
from policies.runs import ENDED

PAGE = 500


async def retry(call: Call) -> web.Response:
    """Make the run, and have it begin unless told not to."""
    old = await find(call)
    states = [ItemState(one) for one in call.body.get("states", ("rejected", "failed"))]
    _check(old, states)
    desk = call.desk
    old_key = key_of(desk, old)
    _, wrapped = desk.ring.new_key()
    run = await desk.store.create_run(
        NewRun(
            public_id=secrets.token_hex(16),
            kind=RunKind.FILE,
            name=nameable(call.body.get("name", "")) or f"{old.name} (again)".lstrip(),
            author=call.author,
            wrapped_key=wrapped,
            route=old.route,
            priority=old.priority,
            max_attempts=old.max_attempts,
            options={"retry_of": old.public_id, "retention_s": desk.configuration().settings.runs.retention},
            idempotency_key=call.query.get("Idempotency-Key", ""),
        )
    )
    if run.options.get("retry_of") != old.public_id:
        raise ProblemError(409, "This Idempotency-Key belongs to another run.", "Send a key of its own.")
    if run.state is RunState.LOADING:
        await _copy(call, old, old_key, run, states)
        if call.body.get("start", True):
            await desk.store.change_state(
                run.id, RunState.READY, author=call.author, reason="complete", expected=(RunState.LOADING,)
            )
        desk.changed()
    fresh = await desk.store.run(run.public_id)
    return answered(shown_run(fresh or run), 201, {"Location": f"/api/v1/runs/{run.public_id}"})


def _check(old: RunRecord, states: Sequence[ItemState]) -> None:
    if old.kind is RunKind.CLIENT:
        raise ProblemError(409, "Nothing of a client-driven run is stored.", "Its client has to send them again.")
    if old.state not in ENDED and old.state is not RunState.PAUSED:
        raise ProblemError(
            409,
            f"The run is {old.state}: its items are still being sent.",
            "Wait until it has ended, or pause it first.",
        )
    numbers = {ItemState.REJECTED: old.counts.rejected, ItemState.FAILED: old.counts.failed}
    if not any(numbers[state] for state in states):
        raise ProblemError(
            409, "No item of the run ended so.", "GET /api/v1/runs/{run} shows its counts; nothing was made."
        )


async def _copy(call: Call, old: RunRecord, old_key: RunKey, run: RunRecord, states: Sequence[ItemState]) -> None:
    store = call.desk.store
    new_key = key_of(call.desk, run)
    lanes = {lane.lane_id: lane.key for lane, _ in await store.lanes(old.id)}
    after = run.received - 1
    while page := await store.items(old.id, states, after=after, limit=PAGE, requests=True):
        after = page[-1].seq
        items = await asyncio.to_thread(_sealed_anew, page, old, old_key, run, new_key, lanes)
        await store.add_items(run.id, items, received=after + 1)


def _sealed_anew(
    page: Sequence[ItemRecord],
    old: RunRecord,
    old_key: RunKey,
    run: RunRecord,
    new_key: RunKey,
    lanes: Mapping[int, LaneKey],
) -> list[NewItem]:
    items = []
    for item in page:
        seq = item.seq
        request = old_key.unseal("request", old.public_id, seq, item.sealed_request)
        client_key = opened_key(old_key, old, item)
        items.append(
            NewItem(
                seq=seq,
                lane=lanes[item.lane_id],
                sealed=new_key.seal("request", run.public_id, seq, request),
                key_tag=new_key.key_tag(client_key) if client_key else b"",
                sealed_key=new_key.seal("key", run.public_id, seq, client_key.encode()) if client_key else b"",
            )
        )
    return items
