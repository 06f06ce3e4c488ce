"""Errors of the API: RFC 9457 problem details, each with what is wrong and what to do about it.

Whatever a handler raises leaves here as `application/problem+json`. Rules that always hold: a problem never quotes what
was sent (it may be a national number); a defect says that it is one, and no more, its place being in the log; a store
that is gone is a 503, since it may come back.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from gateway.sealing import SealError
from gateway.store.interface import StateError, StoreError
from policies.model import StoreDownError

MEDIA_TYPE = "application/problem+json"
NOTHING_IS_KEPT = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Fields of every answer: what operators see may be personal data."""


class ProblemError(Exception):
    """What the API cannot do, for the caller: status, what is wrong, what to do."""

    def __init__(
        self, status: int, what: str, remedy: str, *, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.remedy = remedy
        self.headers = headers or {}
        self.more = more  #: members of the problem besides the usual ones


_STORE_DOWN = ProblemError(
    503,
    "The store cannot be reached.",
    "Nothing is lost; try again in some seconds. See `bcss_gateway_store_up` and the log.",
    headers={"Retry-After": "5"},
)


def problem_of(error: Exception) -> ProblemError | None:
    """Return an exception as a problem; None: it is a defect."""
    match error:
        case ProblemError():
            return error
        case StoreDownError():
            return _STORE_DOWN
        case StateError() | StoreError() | SealError():
            remedy = "See how it stands, and do what fits that."
            return ProblemError(500 if isinstance(error, SealError) else 409, str(error), remedy)
        case web.HTTPException():
            return _of_aiohttp(error)
        case _:
            return None


def _of_aiohttp(error: web.HTTPException) -> ProblemError:
    allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    match error.status:
        case 404:
            return ProblemError(404, "Nothing is here.", "GET /api/v1/openapi.json says what there is.")
        case 405:
            return ProblemError(405, "This is not done here.", "See Allow, and /api/v1/openapi.json.", headers=allowed)
        case 413:
            return ProblemError(413, "The body is larger than this takes.", "See /api/v1/openapi.json for its bounds.")
        case _:
            return ProblemError(error.status, f"{error.reason}.", "See /api/v1/openapi.json.", headers=allowed)


DEFECT = ProblemError(
    500, "A defect of the gateway stopped this.", 'Report the line "defect" of the log to the maintainers.'
)


def answer(problem: ProblemError) -> web.Response:
    """Return a problem as an answer."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.what,
        "remedy": problem.remedy,
        **problem.more,
    }
    headers = {**NOTHING_IS_KEPT, **problem.headers}
    return web.Response(status=problem.status, text=json.dumps(body) + "\n", content_type=MEDIA_TYPE, headers=headers)


SCHEMA: Mapping[str, object] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "remedy"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong."},
        "remedy": {"type": "string", "description": "What to do."},
    },
}
