"""Runs over the API: make, list, show, steer.

Rules that always hold:
- A change of state is the store's, with its author and reason, by the table of `policies.runs`; what does not fit how
  the run stands is a 409 that says how it stands.
- What steers a run is desired state in the store: it holds after a restart, and for every replica.
- A template holds a message, so it is stored sealed like one.
"""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from gateway.admin.desk import Desk
from gateway.admin.intake import submission_of
from gateway.admin.operations import Call, answered
from gateway.admin.pace import Paces, assumed
from gateway.admin.problems import ProblemError
from gateway.admin.schema import instant
from gateway.admin.shapes import MEDIA_TYPES, shown_instant, shown_lanes, shown_run
from gateway.loading import Submission
from gateway.log import nameable
from gateway.records import LaneWork, NewRun, RunRecord
from gateway.sealing import RunKey
from policies.model import RunKind, RunState

TEMPLATE_SEQ = -1
"""What stands for an item's number where a run's template is sealed: no item has it."""
_KEPT = ("path", "soapAction", "contentType", "keyColumn", "ssinColumns", "goOn", "format")


async def find(call: Call) -> RunRecord:
    """Return the run that the path names."""
    run = await call.desk.store.run(call.part("run"))
    if run is None:
        raise ProblemError(404, "There is no such run.", "GET /api/v1/runs lists those that there are.")
    return run


def key_of(desk: Desk, run: RunRecord) -> RunKey:
    """Return a run's key, with its dictionary."""
    if run.wrapped_key is None:
        raise ProblemError(
            410, "The run is purged: its key, items and answers are gone.", "Its counts and audit rows remain."
        )
    key = desk.ring.unwrap(run.wrapped_key)
    if run.dictionary is not None:
        key = key.with_dictionary(key.unseal("dictionary", run.public_id, 0, run.dictionary))
    return key


async def create(call: Call, given: Mapping[str, Any], *, form: str = "") -> RunRecord:
    """Make a run of what was given, or return the one of the same idempotency key."""
    desk = call.desk
    configuration = desk.configuration()
    is_client = "client" in given
    public_id = secrets.token_hex(16)
    key, wrapped = desk.ring.new_key()
    options = {name: given[name] for name in _KEPT if name in given}
    options["retention_s"] = configuration.settings.runs.retention
    # What was asked, keyed: the same idempotency key with something else is a mistake, and told.
    options["asked"] = desk.ring.tag(json.dumps([form, dict(given)], sort_keys=True, default=str)).hex()
    if form:
        options["format"] = form
    if "template" in given:
        sealed = key.seal("request", public_id, TEMPLATE_SEQ, given["template"].encode())
        options["template"] = base64.b64encode(sealed).decode("ascii")
    if is_client and (extra := [name for name in (*_KEPT, "template") if name in given]):
        raise ProblemError(
            422,
            f"A client-driven run stores no items, so {extra[0]} means nothing.",
            "Leave it out, or leave `client` out.",
        )
    route = "" if is_client else _route(desk, given, options.get("format", ""))
    new = NewRun(
        public_id=public_id,
        kind=RunKind.CLIENT if is_client else RunKind.FILE,
        name=nameable(given.get("name", "")),
        author=call.author,
        wrapped_key=wrapped,
        route=route,
        client=given.get("client", ""),
        priority=given.get("priority", 5),
        not_before=instant(given["notBefore"]) if "notBefore" in given else None,
        max_attempts=given.get("maxAttempts", configuration.settings.runs.max_attempts),
        options=options,
        idempotency_key=call.query.get("Idempotency-Key", ""),
    )
    run = await desk.store.create_run(new)
    if run.options.get("asked") != options["asked"]:
        raise ProblemError(
            409, "This Idempotency-Key was sent before, with something else asked.", "Send a key of its own."
        )
    if is_client and run.state is RunState.LOADING:
        run = await desk.store.change_state(
            run.id,
            RunState.READY,
            author=call.author,
            reason="client-driven",
            expected=(RunState.LOADING,),
        )
    return run


def _route(desk: Desk, given: Mapping[str, Any], form: str) -> str:
    path = given.get("path", "")
    route = desk.intake.route_of(path) if path else ""
    if route is None:
        raise ProblemError(422, "No route leads from `path` to an upstream.", "See `routes` in the configuration.")
    submission = submission_of(given, given.get("template", ""), form)
    if form and (why := desk.intake.why_not(submission)):
        raise ProblemError(422, why, "Mend it and send it again; nothing was stored.")
    return route


def submission_for(call: Call, run: RunRecord, key: RunKey) -> Submission:
    """Return how the items of a run come in this request."""
    form = MEDIA_TYPES[call.media_type]
    sealed = run.options.get("template", "")
    template = ""
    if isinstance(sealed, str) and sealed:
        template = key.unseal("request", run.public_id, TEMPLATE_SEQ, base64.b64decode(sealed)).decode()
    return submission_of(run.options, template, form)


async def show_all(call: Call) -> web.Response:
    """Answer a page of runs."""
    limit = call.query.get("limit", 100)
    states = [RunState(one) for one in call.query.get("state", ())]
    found = await call.desk.store.runs(states, after=max(call.query.get("after", 0), 0), limit=limit)
    following = found[-1].id if len(found) == limit else None
    return answered({"runs": [shown_run(run) for run in found], "next": following})


class Runs:
    """The operations on one run that show its pace."""

    def __init__(self, paces: Paces) -> None:
        self._paces = paces

    async def show(self, call: Call) -> web.Response:
        """Answer a run, with its lanes, pace and expected end."""
        run = await find(call)
        lanes = await call.desk.store.lanes(run.id)
        return answered({**self.whole(call.desk, run, lanes), "lanes": shown_lanes(lanes)})

    def whole(self, desk: Desk, run: RunRecord, lanes: Sequence[tuple[LaneWork, int]]) -> dict[str, Any]:
        """Return a run with its pace."""
        configuration = desk.configuration()
        rate, known = self._paces.rate(run, desk.clock.boot()), self._paces.known(run)
        pace = known or assumed(run, lanes, configuration.layout)
        ends_at = self._paces.ends_at(run, pace, configuration.calendar, desk.clock.wall())
        return {
            **shown_run(run),
            "perSecond": None if rate is None else round(rate, 3),
            "endsAt": shown_instant(ends_at),
            "endIsAssumed": ends_at is not None and known is None,
        }


async def make(call: Call) -> web.Response:
    """Make a run, without items yet."""
    run = await create(call, {**_parameters(call), **call.body})
    call.desk.changed()
    return answered(shown_run(run), 201, {"Location": f"/api/v1/runs/{run.public_id}"})


def _parameters(call: Call) -> dict[str, Any]:
    return {name: value for name, value in call.query.items() if name not in ("Idempotency-Key", "start")}


def one_shot_parameters(call: Call) -> dict[str, Any]:
    """Return what the query says of a run whose items come in the same request."""
    return _parameters(call)


class Steering:
    """The operations that change a run's state."""

    def __init__(self, to: RunState, before: Sequence[RunState], fallback: str, kinds: Sequence[RunKind] = ()) -> None:
        self._to = to
        self._before = before
        self._fallback = fallback
        self._kinds = kinds

    async def __call__(self, call: Call) -> web.Response:
        """Change the state, and answer the run."""
        run = await find(call)
        if self._kinds and run.kind not in self._kinds:
            raise ProblemError(
                409,
                f"This is for runs of kind {' or '.join(self._kinds)}, and this one is of kind {run.kind}.",
                "It is completed by itself when every item is settled.",
            )
        run = await call.desk.store.change_state(
            run.id, self._to, author=call.author, reason=call.reason or self._fallback, expected=self._before
        )
        call.desk.changed()
        return answered(shown_run(run))


READY = Steering(RunState.READY, (RunState.LOADING,), "complete")
PAUSE = Steering(RunState.PAUSED, (RunState.READY, RunState.RUNNING, RunState.PAUSED), "paused by a person")
"""Also of what the gateway has paused itself: that would go on by itself when nothing is in doubt any more."""
RESUME = Steering(RunState.READY, (RunState.PAUSED,), "resumed by a person")
CANCEL = Steering(
    RunState.CANCELLED,
    (RunState.LOADING, RunState.READY, RunState.RUNNING, RunState.PAUSED),
    "cancelled by a person",
)
COMPLETE = Steering(
    RunState.COMPLETED, (RunState.READY, RunState.RUNNING), "its client is done", kinds=(RunKind.CLIENT,)
)


async def reprioritise(call: Call) -> web.Response:
    """Change whose turn it is first."""
    run = await find(call)
    run = await call.desk.store.set_priority(run.id, call.body["priority"], author=call.author)
    call.desk.changed()
    return answered(shown_run(run))


async def purge(call: Call) -> web.Response:
    """Drop an ended run's key, items and answers."""
    run = await find(call)
    run = await call.desk.store.purge(run.id, author=call.author)
    return answered(shown_run(run))
