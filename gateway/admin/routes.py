"""Every operation of the API, in one table. What stands here is enforced, and published as OpenAPI."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from gateway.admin import controls, results, retrying, runs, shapes, uploads
from gateway.admin.operations import Answering, Call, Operation
from gateway.admin.pace import Paces
from gateway.admin.schema import Schema
from policies.model import ItemState, RunState

__all__ = ["operations"]

_STATES: Schema = {
    "type": "array",
    "maxItems": 10,
    "items": {"type": "string", "enum": [state.value for state in RunState]},
    "description": "Only runs in these states.",
}
_ITEM_STATES: Schema = {
    "type": "array",
    "maxItems": 4,
    "items": {"type": "string", "enum": [state.value for state in shapes.SETTLED]},
    "description": "Only items that ended so.",
}
_REASON_OPTIONAL: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"reason": shapes.REASON},
}
_REASON: Schema = {**_REASON_OPTIONAL, "required": ["reason"]}
_RUN = Answering("The run as it now stands.", {"application/json": shapes.RUN})
_CONTROLS = Answering("What stands against bulk now.", {"application/json": shapes.CONTROLS})
_DATA = tuple(shapes.MEDIA_TYPES)
_IDEMPOTENCY: Mapping[str, Schema] = {"Idempotency-Key": shapes.KEY}
_START: Schema = {"type": "boolean", "default": True, "description": "Have it begin; false: it stays loading."}
_TAKEN: Schema = {
    "type": "object",
    "required": ["id", "received", "added", "duplicates", "faulty", "complete", "problems"],
    "properties": {
        "id": {"type": "string"},
        "received": {"type": "integer", "description": "Entries of the run read so far: where an upload goes on."},
        "added": {"type": "integer"},
        "duplicates": {"type": "integer", "description": "Entries whose key the run had already."},
        "faulty": {"type": "integer"},
        "complete": {"type": "boolean", "description": "false: stopped at a fault."},
        "problems": {"type": "array", "items": {"type": "object"}},
    },
}
_ITEM: Schema = {
    "type": "object",
    "required": ["seq", "key", "state", "status", "code", "meaning"],
    "properties": {
        "seq": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        "key": {"type": "string"},
        "state": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "meaning": {"type": "string"},
    },
}
_AUDIT_ROW: Schema = {
    "type": "object",
    "required": ["id", "at", "author", "action", "subject", "detail"],
    "properties": {"id": {"type": "integer"}, "author": {"type": "string"}, "action": {"type": "string"}},
}


def operations(paces: Paces) -> Sequence[Operation]:
    """Return every operation."""
    one, taking = runs.Runs(paces), uploads.Uploads()
    return (*_making(taking), *_showing(one), *_steering(), *_outcomes(), *_controlling())


def _making(taking: uploads.Uploads) -> Sequence[Operation]:
    async def make(call: Call) -> web.StreamResponse:
        return await (taking.make_whole(call) if call.media_type in shapes.MEDIA_TYPES else runs.make(call))

    return (
        Operation(
            method="POST",
            path="/runs",
            name="makeRun",
            summary="Make a run: described in JSON, its items following; or whole, of a file, described in the query.",
            handler=make,
            role="operator",
            query={**shapes.PARAMETERS, "start": _START},
            headers=_IDEMPOTENCY,
            body=shapes.NEW_RUN,
            data=_DATA,
            status=201,
            answers=_RUN,
            problems=(200, 409, 413, 415, 422),
        ),
        Operation(
            method="POST",
            path="/runs/{run}/items",
            name="addItems",
            summary="Add items to a loading run; may be sent again, or go on at `received`.",
            handler=taking.add,
            role="operator",
            headers={"Upload-Offset": {"type": "integer", "minimum": 0, "maximum": 2**62}},
            data=_DATA,
            answers=Answering("What was added.", {"application/json": _TAKEN}),
            problems=(409, 410, 413, 415, 422),
        ),
        Operation(
            method="POST",
            path="/runs/{run}/check",
            name="checkItems",
            summary="Say what is wrong with a file for this run. Stores nothing.",
            handler=uploads.check,
            role="operator",
            data=_DATA,
            answers=Answering("What was found.", {"application/json": _TAKEN}),
            problems=(410, 413, 415, 422),
        ),
    )


def _showing(one: runs.Runs) -> Sequence[Operation]:
    return (
        Operation(
            method="GET",
            path="/runs",
            name="listRuns",
            summary="List runs, oldest first.",
            handler=runs.show_all,
            query={**shapes.PAGE, "state": _STATES},
            answers=Answering("A page of runs.", {"application/json": shapes.page_of("runs", shapes.RUN)}),
        ),
        Operation(
            method="GET",
            path="/runs/{run}",
            name="showRun",
            summary="Show a run: counts, pace, expected end, lanes.",
            handler=one.show,
            answers=_RUN,
        ),
        Operation(
            method="PATCH",
            path="/runs/{run}",
            name="changePriority",
            summary="Change whose turn it is first.",
            handler=runs.reprioritise,
            role="operator",
            body={
                "type": "object",
                "additionalProperties": False,
                "required": ["priority"],
                "properties": {"priority": shapes.PRIORITY},
            },
            answers=_RUN,
            problems=(409, 415),
        ),
    )


def _steering() -> Sequence[Operation]:
    steps = (
        ("ready", "Say that all items are there: the run may begin.", runs.READY, _REASON_OPTIONAL),
        ("pause", "Stop a run until somebody resumes it.", runs.PAUSE, _REASON),
        ("resume", "Let a paused run go on.", runs.RESUME, _REASON_OPTIONAL),
        ("cancel", "End a run; what was settled stays.", runs.CANCEL, _REASON),
        ("complete", "Say that a client-driven run is done.", runs.COMPLETE, _REASON_OPTIONAL),
        ("purge", "Drop an ended run's key, items and answers.", runs.purge, _REASON_OPTIONAL),
    )
    return tuple(
        Operation(
            method="POST",
            path=f"/runs/{{run}}/{step}",
            name=f"{step}Run",
            summary=summary,
            handler=handler,
            role="operator",
            body=body,
            answers=_RUN,
            problems=(409, 415),
        )
        for step, summary, handler, body in steps
    )


def _outcomes() -> Sequence[Operation]:
    return (
        Operation(
            method="GET",
            path="/runs/{run}/results",
            name="results",
            summary="Stream what was settled so far, with the answers byte for byte.",
            handler=results.results,
            role="operator",
            query={
                "after": shapes.AFTER,
                "state": _ITEM_STATES,
                "format": {"type": "string", "enum": ["ndjson", "zip"], "description": "Default: by Accept."},
            },
            answers=Answering(
                "Items, one a line, bodies in base64; or an archive of bodies, with index files.",
                {results.NDJSON: {"type": "string"}, results.ZIP: {"type": "string", "format": "binary"}},
            ),
            problems=(410,),
        ),
        *(
            Operation(
                method="GET",
                path=f"/runs/{{run}}/{name}",
                name=name,
                summary=summary,
                handler=handler,
                role="operator",
                query={**shapes.PAGE, "state": _ITEM_STATES} if name == "rejects" else shapes.PAGE,
                answers=Answering("A page of items.", {"application/json": shapes.page_of(name, _ITEM)}),
                problems=(410,),
            )
            for name, summary, handler in (
                ("rejects", "List items that were rejected or failed: code and meaning.", results.REJECTS),
                ("doubts", "List items of which nobody knows whether they reached the source.", results.DOUBTS),
            )
        ),
        Operation(
            method="POST",
            path="/runs/{run}/doubts/{seq}",
            name="decideDoubt",
            summary="Settle an item in doubt: repeat it, or take it for done or failed.",
            handler=results.decide,
            role="operator",
            body={
                "type": "object",
                "additionalProperties": False,
                "required": ["decision", "reason"],
                "properties": {
                    "decision": {"type": "string", "enum": ["repeat", "accept", "fail"]},
                    "reason": shapes.REASON,
                },
            },
            answers=_RUN,
            problems=(409, 415),
        ),
        Operation(
            method="POST",
            path="/runs/{run}/retry",
            name="retryRun",
            summary="Make a new run of just the items that were rejected or failed.",
            handler=retrying.retry,
            role="operator",
            headers=_IDEMPOTENCY,
            body={
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "name": shapes.NAME,
                    "states": {
                        "type": "array",
                        "maxItems": 2,
                        "items": {"type": "string", "enum": [ItemState.REJECTED.value, ItemState.FAILED.value]},
                    },
                    "start": _START,
                },
            },
            status=201,
            answers=_RUN,
            problems=(409, 410, 415),
        ),
    )


def _controlling() -> Sequence[Operation]:
    page = Answering("A page of audit rows.", {"application/json": shapes.page_of("audit", _AUDIT_ROW)})
    return (
        Operation(
            method="GET",
            path="/holds",
            name="listHolds",
            summary="List what persons have stopped.",
            handler=controls.holds,
        ),
        Operation(
            method="PUT",
            path="/holds/{scope}",
            name="hold",
            summary="Stop bulk: `all`, or `source:NAME`. Above every automatic resumption.",
            handler=controls.hold,
            role="operator",
            body=_REASON,
            answers=_CONTROLS,
            problems=(409, 415),
        ),
        Operation(
            method="DELETE",
            path="/holds/{scope}",
            name="release",
            summary="End a hold.",
            handler=controls.unhold,
            role="operator",
            query={"reason": shapes.REASON},
            answers=_CONTROLS,
            problems=(409,),
        ),
        Operation(
            method="GET",
            path="/interruptions",
            name="listInterruptions",
            summary="List what has interrupted sources, and for how long they still cool down.",
            handler=controls.interruptions,
        ),
        Operation(
            method="POST",
            path="/interruptions/{source}/resume",
            name="skipCoolDown",
            summary="End a cool-down early, with a reason; the ramp from one slot follows.",
            handler=controls.skip_cool_down,
            role="operator",
            body=_REASON,
            answers=_CONTROLS,
            problems=(409, 415),
        ),
        Operation(
            method="GET",
            path="/audit",
            name="audit",
            summary="List who changed what, oldest first.",
            handler=controls.audit,
            query=shapes.PAGE,
            answers=page,
        ),
        Operation(
            method="GET",
            path="/status",
            name="status",
            summary="Show how the gateway stands: window, pools, holds, store, versions.",
            handler=controls.status,
        ),
    )
