"""One operation of the API, and the way in to all of them.

An `Operation` says what may be sent and what comes back; the same description is enforced (`gateway.admin.schema`) and
published (`gateway.admin.openapi`), so that they cannot differ.

Rules that always hold, for every operation: who asks is known and allowed before anything of the request is read; a
query, header or body that is not as described is refused before the handler sees it; whatever goes wrong leaves as a
problem with its remedy.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway.admin.desk import Desk
from gateway.admin.identity import Role, asker_of
from gateway.admin.problems import DEFECT, NOTHING_IS_KEPT, ProblemError, answer, problem_of
from gateway.admin.schema import Schema, faults, from_text, keepable
from gateway.log import nameable

PREFIX = "/api/v1"
BODY_LIMIT = 4 * 1024 * 1024
"""Octets of a JSON body: an envelope's template, escaped, with room."""
JSON = "application/json"
BEGAN = web.RequestKey("began", bool)
"""Set once an answer is being streamed."""


@dataclass(frozen=True, slots=True)
class Answering:
    """What an operation answers when it worked."""

    what: str
    content: Mapping[str, Schema] = field(default_factory=lambda: {JSON: {"type": "object"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What may be asked."""

    method: str
    path: str  #: below /api/v1, with {names}
    name: str
    summary: str
    handler: "Handler"
    role: Role = "viewer"
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None  #: JSON
    data: tuple[str, ...] = ()  #: media types of a body that is streamed
    status: int = 200
    answers: Answering = field(default_factory=lambda: Answering("Done."))
    problems: tuple[int, ...] = ()  #: statuses besides those that every operation may answer


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is as described, by somebody who may make it."""

    request: web.Request
    desk: Desk
    author: str
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    media_type: str  #: of the body

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return self.request.match_info[name]

    @property
    def reason(self) -> str:
        """Return the reason that was given, as it may stand in the books."""
        return nameable(self.body.get("reason", "") or self.query.get("reason", ""))


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


def answered(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return JSON."""
    return web.Response(
        status=status,
        text=json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n",
        content_type=JSON,
        headers={**NOTHING_IS_KEPT, **(headers or {})},
    )


def handler_of(operation: Operation, desk: Desk) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return what aiohttp calls for an operation."""

    async def handle(request: web.Request) -> web.StreamResponse:
        asker = asker_of(request, desk.configuration().settings.administration)
        asker.must_be(operation.role)
        query = _query(request, operation)
        body, media_type = await _body(request, operation)
        return await operation.handler(Call(request, desk, asker.name, query, body, media_type))

    return handle


def middleware(desk: Desk) -> Any:
    """Return what turns every exception into a problem."""

    @web.middleware
    async def problems(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            if request.match_info.http_exception is not None:  # neither a path of ours nor a method of it
                asker_of(request, desk.configuration().settings.administration)
            return await handler(request)
        except ConnectionError:  # the caller is gone
            raise
        except Exception as error:  # noqa: BLE001  # whatever goes wrong, the caller is told and the log knows
            problem = problem_of(error)
            if problem is None:
                desk.defect(error)
                problem = DEFECT
            if BEGAN in request:
                # What began as a success cannot become a problem: the connection ends without the last chunk, so that
                # nobody takes it for whole.
                _cut(request)
                raise ConnectionResetError("the answer broke off") from None
            return answer(problem)

    return problems


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _query(request: web.Request, operation: Operation) -> dict[str, Any]:
    wrong: list[str] = []
    found: dict[str, Any] = {}
    for name, text in request.query.items():
        schema = operation.query.get(name)
        if schema is None:
            known = ", ".join(operation.query) or "none"
            wrong.append(f"the query holds a parameter that is not known here. Known: {known}.")
        elif name in found:
            wrong.append(f"{name} stands twice in the query.")
        else:
            found[name] = from_text(text, schema)
            wrong += faults(found[name], schema, name)
    for name, schema in operation.headers.items():
        if (sent := request.headers.get(name)) is not None:
            found[name] = from_text(sent, schema)
            wrong += faults(found[name], schema, name)
    if not keepable(list(found.values())):
        wrong.append("the query is not UTF-8.")
    _refuse(wrong)
    return found


async def _body(request: web.Request, operation: Operation) -> tuple[dict[str, Any], str]:
    if operation.body is None and not operation.data:
        return {}, ""
    if not request.body_exists and not operation.data:
        _refuse(list(faults({}, operation.body or {})))
        return {}, ""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in operation.data:
        return {}, media_type
    if operation.body is None or not re.fullmatch(r"application/(json|[\w.-]+\+json)", media_type):
        known = [*([JSON] if operation.body is not None else []), *operation.data]
        raise ProblemError(415, "The body's Content-Type is not taken here.", f"Send one of: {', '.join(known)}.")
    try:
        content = json.loads(await request.read(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProblemError(400, "The body is not JSON.", "Send one JSON object in UTF-8 (RFC 8259).") from None
    _refuse(list(faults(content, operation.body)) or ([] if keepable(content) else ["the body is not UTF-8."]))
    assert isinstance(content, dict)
    return content, media_type


def _no_constant(_name: str) -> None:
    raise ValueError("not JSON")


def _refuse(wrong: list[str]) -> None:
    if wrong:
        first = wrong[0][:1].upper() + wrong[0][1:]
        raise ProblemError(400, first, "Mend it; GET /api/v1/openapi.json describes it.", faults=wrong[:20])
