"""Items over the API: streamed in, each entry read once, added as it comes; and whole runs in one request.

Rules that always hold:
- Memory is bounded: NDJSON, TAR and CSV are read as they come. A ZIP's directory is at its end, so a ZIP is read whole,
  up to 64 MiB; larger ones are for TAR, NDJSON or the CLI.
- One upload a run at a time. `Upload-Offset` is the number of the body's first entry in the run: entries that the run
  has received already are passed over, and a gap is refused. So whoever was cut off sends the same again, or goes on
  at `received`.
- Nothing of a run is sent before it is `ready`. An upload that stops at a fault leaves the run loading; the run of a
  one-shot request is cancelled then.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from gateway.admin.operations import Call, answered
from gateway.admin.problems import ProblemError
from gateway.admin.runs import create, find, key_of, one_shot_parameters, submission_for
from gateway.admin.shapes import MEDIA_TYPES, shown_run
from gateway.loading import Taken, UnreadableError
from gateway.records import RunRecord
from policies.model import RunKind, RunState

IDLE_S = 60.0
"""For how long an upload may bring nothing: a peer that is lost would keep its run from going on for hours."""
ZIP_LIMIT = 64 * 1024 * 1024
MOST_FAULTS = 100
"""Faults that are told one by one."""


class Uploads:
    """The operations that take items in."""

    def __init__(self) -> None:
        self._loading: set[int] = set()

    async def add(self, call: Call) -> web.Response:
        """Add items to a loading run."""
        run = await find(call)
        if run.kind is not RunKind.FILE:
            raise ProblemError(409, f"A run of kind {run.kind} takes no items.", "Make a run of its own for them.")
        if run.state is not RunState.LOADING:
            raise ProblemError(
                409,
                f"The run is {run.state} and takes no more items.",
                "Make another run for them.",
                state=run.state.value,
            )
        offset = call.query.get("Upload-Offset", 0)
        if offset > run.received:
            raise ProblemError(
                409,
                f"The run has received {run.received} entries, and this body begins at a later one.",
                "Go on at `received`.",
                received=run.received,
            )
        taken = await self._take(call, run, offset)
        return answered(_shown(run, taken), 200 if taken.complete else 422)

    async def make_whole(self, call: Call) -> web.Response:
        """Make a run of one request, and have it begin."""
        run = await create(call, one_shot_parameters(call), form=MEDIA_TYPES[call.media_type])
        if run.state is RunState.CANCELLED:
            raise ProblemError(
                409,
                "The run of this Idempotency-Key was cancelled.",
                "GET the run shows what came of it; another key makes another run.",
                state=run.state.value,
            )
        if run.state is not RunState.LOADING:  # the idempotency key is known, and the first request was completed
            return answered(shown_run(run), 200, _location(run))
        try:
            taken = await self._take(call, run, 0)
        except (ProblemError, ConnectionError):
            if not call.query.get("Idempotency-Key"):  # nobody can come back to it
                await self._give_up(call, run, "its upload broke off")
            raise
        if not taken.complete:
            await self._give_up(call, run, "a faulty entry")
            return answered(_shown(run, taken), 422)
        if call.query.get("start", True):
            run = await call.desk.store.change_state(
                run.id, RunState.READY, author=call.author, reason="complete", expected=(RunState.LOADING,)
            )
            call.desk.changed()
        fresh = await call.desk.store.run(run.public_id)
        return answered({**_shown(run, taken), **shown_run(fresh or run)}, 201, _location(run))

    async def _take(self, call: Call, run: RunRecord, offset: int) -> Taken:
        if run.id in self._loading:
            raise ProblemError(
                409,
                "Another upload to this run is under way.",
                "Wait until it ends; GET the run shows `received`.",
                headers={"Retry-After": "5"},
            )
        key = key_of(call.desk, run)
        submission = submission_for(call, run, key)
        if why := call.desk.intake.why_not(submission):
            raise ProblemError(422, why, "Mend it and send it again; nothing was stored.")
        self._loading.add(run.id)
        try:
            async with aclosing(_octets(call.request)) as octets:
                source = _whole(octets) if submission.form == "zip" else octets
                return await call.desk.intake.take(run, key, submission, source, offset=offset)
        except UnreadableError as error:
            raise ProblemError(
                422, str(error), "Mend it and send it again: what the run has received already is passed over."
            ) from None
        finally:
            self._loading.discard(run.id)

    async def _give_up(self, call: Call, run: RunRecord, why: str) -> None:
        await call.desk.store.change_state(
            run.id, RunState.CANCELLED, author=call.author, reason=why, expected=(RunState.LOADING,)
        )


async def check(call: Call) -> web.Response:
    """Read what would be submitted to a run, and say what is wrong with it. Stores nothing."""
    run = await find(call)
    submission = submission_for(call, run, key_of(call.desk, run))
    if why := call.desk.intake.why_not(submission):
        raise ProblemError(422, why, "Mend it and send it again; nothing was stored.")
    try:
        async with aclosing(_octets(call.request)) as octets:
            source = _whole(octets) if submission.form == "zip" else octets
            taken = await call.desk.intake.check(submission, source)
    except UnreadableError as error:
        raise ProblemError(422, str(error), "Mend it and send it again; nothing was stored.") from None
    return answered(_shown(run, taken))


async def _octets(request: web.Request) -> AsyncGenerator[bytes]:
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                octets = await request.content.read(256 * 1024)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            raise ConnectionResetError("the upload broke off") from None
        if not octets:
            return
        yield octets


async def _whole(octets: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on a body that has to be held whole, within its bound."""
    size = 0
    async for some in octets:
        size += len(some)
        if size > ZIP_LIMIT:
            raise ProblemError(
                413,
                f"A ZIP over the API may have {ZIP_LIMIT >> 20} MiB.",
                "Send TAR or NDJSON, which may be of any size, or use `bcss-gateway runs submit` for this file.",
            )
        yield some


def _location(run: RunRecord) -> dict[str, str]:
    return {"Location": f"/api/v1/runs/{run.public_id}"}


def _shown(run: RunRecord, taken: Taken) -> dict[str, Any]:
    return {
        "id": run.public_id,
        "received": taken.received,
        "added": taken.added,
        "duplicates": taken.duplicates,
        "faulty": taken.faulty,
        "complete": taken.complete,
        "problems": [{"line": one.line, "what": one.what, "remedy": one.remedy} for one in taken.faults[:MOST_FAULTS]],
    }
