"""What is sent and shown, as JSON: the schemas of the API's description, and records in their shape.

Rules that always hold: a list of runs, and a run, hold no client key, no key of ours and nothing of a message; a name
or reason that looks like a national number was withheld before it was stored.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.admin.schema import Schema
from gateway.records import AuditRow, Controls, LaneWork, RunRecord
from policies.model import ItemState, RunKind, RunState

LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
MOST_RUN_ATTEMPTS = 100
NOT_CHECKED = "not checked"
"""What a run says of its announcement, until announcements exist."""

TEXT: Schema = {"type": "string", "maxLength": 200, "pattern": LINE, "title": "one line of text"}
NAME: Schema = {**TEXT, "description": "A line for people, without personal data."}
REASON: Schema = {**TEXT, "minLength": 1, "description": "Why: a line for people, without personal data."}
INSTANT: Schema = {"type": "string", "format": "date-time"}
SHOWN_INSTANT: Schema = {"type": ["string", "null"], "format": "date-time"}
PATH: Schema = {
    "type": "string",
    "pattern": "^/[!-~]*$",
    "title": "a path that begins with / and holds ASCII without spaces",
    "maxLength": 2000,
    "description": "A path of this gateway, as a client would ask it, without /bulk/.",
}
FIELD: Schema = {"type": "string", "pattern": "^[ -~]*$", "maxLength": 1000, "title": "printable ASCII"}
PRIORITY: Schema = {"type": "integer", "minimum": 0, "maximum": 9, "description": "Lower goes first."}
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 1000, "description": "Most rows at a time."}
AFTER: Schema = {
    "type": "integer",
    "minimum": -1,
    "maximum": 2**62,
    "description": "Where to go on: `next` of the page before.",
}
PAGE: Mapping[str, Schema] = {"after": AFTER, "limit": LIMIT}
FORMATS = ("ndjson", "tar", "zip", "csv")
MEDIA_TYPES: Mapping[str, str] = {
    "application/x-ndjson": "ndjson",
    "application/x-tar": "tar",
    "application/zip": "zip",
    "text/csv": "csv",
}
KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "pattern": "^[!-~]+$",
    "title": "printable ASCII without spaces",
    "description": "A second request of the same author with the same key finds the first one's run.",
}

PARAMETERS: Mapping[str, Schema] = {
    "name": NAME,
    "path": {**PATH, "description": "Where items go that do not say so themselves. " + PATH["description"]},
    "soapAction": {**FIELD, "description": "SOAPAction of items that do not say so themselves."},
    "contentType": {**FIELD, "description": "Content-Type of items that do not say so themselves."},
    "priority": {**PRIORITY, "default": 5},
    "notBefore": {**INSTANT, "description": "Nothing of the run is sent before."},
    "maxAttempts": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_RUN_ATTEMPTS,
        "description": "Calls for one item at the most.",
    },
    "goOn": {
        "type": "boolean",
        "default": False,
        "description": "Leave faulty entries out, rather than stop at the first.",
    },
}
NEW_RUN: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **PARAMETERS,
        "format": {
            "type": "string",
            "enum": list(FORMATS),
            "description": "What its items will be sent as; their Content-Type says so too.",
        },
        "template": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024 * 1024,
            "description": "CSV: the envelope, with {{column}} where a column's value goes.",
        },
        "keyColumn": {**NAME, "description": "CSV: the column of the client key."},
        "ssinColumns": {
            "type": "array",
            "maxItems": 20,
            "items": NAME,
            "description": "CSV: columns of national numbers, whose check digit must be right.",
        },
        "client": {
            **NAME,
            "minLength": 1,
            "description": "Makes it a client-driven run: this client (its name in the configuration, certificate "
            "subject or address) tags its own calls with `X-Bulk-Run: <id>`.",
        },
    },
}


def shown_instant(at: datetime | None) -> str | None:
    """Return an instant as RFC 3339."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def shown_run(run: RunRecord) -> dict[str, Any]:
    """Return a run as it stands."""
    counts = run.counts
    return {
        "id": run.public_id,
        "name": run.name,
        "kind": run.kind.value,
        "state": run.state.value,
        "reason": run.reason,
        "changedBy": run.changed_by,
        "changedAt": shown_instant(run.changed_at),
        "author": run.author,
        "createdAt": shown_instant(run.created_at),
        "startedAt": shown_instant(run.started_at),
        "endedAt": shown_instant(run.ended_at),
        "notBefore": shown_instant(run.not_before),
        "purgeAfter": shown_instant(run.purge_after),
        "purged": run.wrapped_key is None,
        "client": run.client if run.kind is RunKind.CLIENT else "",
        "route": run.route,
        "priority": run.priority,
        "maxAttempts": run.max_attempts,
        "received": run.received,
        "total": run.total,
        "attempts": run.attempts,
        "counts": {
            "waiting": run.waiting,
            "done": counts.done,
            "rejected": counts.rejected,
            "failed": counts.failed,
            "inDoubt": counts.in_doubt,
        },
        "announcement": NOT_CHECKED,
    }


def shown_lanes(lanes: Sequence[tuple[LaneWork, int]]) -> list[dict[str, Any]]:
    """Return a run's lanes."""
    return [
        {
            "route": lane.key.route,
            "service": lane.key.service,
            "sources": list(lane.key.sources),
            "repeatable": lane.key.repeatable,
            "total": total,
            "unclaimed": lane.unclaimed,
            "due": lane.due,
            "batches": lane.in_batches,
        }
        for lane, total in lanes
    ]


def shown_controls(controls: Controls) -> dict[str, Any]:
    """Return what stands against bulk."""
    return {
        "holds": [
            {"scope": one.scope, "author": one.author, "reason": one.reason, "since": shown_instant(one.since)}
            for one in controls.holds
        ],
        "interruptions": [
            {
                "source": one.source,
                "number": one.number,
                "reason": one.reason,
                "secondsAgo": round(one.since_s, 1),
                "coolDown": one.cool_s,
                "remaining": 0.0 if one.skipped_by else round(max(0.0, one.cool_s - one.since_s), 1),
                "skippedBy": one.skipped_by,
                "rampSeconds": round(one.ramp_s, 1),
            }
            for one in controls.interruptions
        ],
    }


def shown_audit(row: AuditRow) -> dict[str, Any]:
    """Return who changed what."""
    return {
        "id": row.id,
        "at": shown_instant(row.at),
        "author": row.author,
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
    }


_COUNT: Schema = {"type": "integer", "minimum": 0}
_STRING: Schema = {"type": "string"}
RUN: Schema = {
    "type": "object",
    "required": ["id", "name", "kind", "state", "reason", "author", "counts", "received", "total", "announcement"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "name": _STRING,
        "kind": {"type": "string", "enum": [kind.value for kind in RunKind]},
        "state": {"type": "string", "enum": [state.value for state in RunState]},
        "reason": _STRING,
        "author": _STRING,
        "priority": _COUNT,
        "received": {"type": "integer", "description": "Entries read so far: where an upload goes on."},
        "total": _COUNT,
        "attempts": _COUNT,
        "counts": {
            "type": "object",
            "required": ["waiting", "done", "rejected", "failed", "inDoubt"],
            "properties": {name: {"type": "integer"} for name in ("waiting", "done", "rejected", "failed", "inDoubt")},
        },
        "endsAt": {**SHOWN_INSTANT, "description": "Expected, windows considered; null: not known."},
        "endIsAssumed": {
            "type": "boolean",
            "description": "The run's pace is not known yet: `endsAt` assumes that a call takes a second.",
        },
        "perSecond": {"type": ["number", "null"], "description": "Items settled a second, of late; null: not known."},
        "announcement": _STRING,
        **{
            name: SHOWN_INSTANT
            for name in ("changedAt", "createdAt", "startedAt", "endedAt", "notBefore", "purgeAfter")
        },
    },
}
CONTROLS: Schema = {
    "type": "object",
    "required": ["holds", "interruptions"],
    "properties": {
        "holds": {"type": "array", "items": {"type": "object"}},
        "interruptions": {"type": "array", "items": {"type": "object"}},
    },
}
SETTLED = (ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT)


def page_of(name: str, one: Schema) -> Schema:
    """Return the schema of a page."""
    return {
        "type": "object",
        "required": [name, "next"],
        "properties": {
            name: {"type": "array", "items": one},
            "next": {"type": ["integer", "null"], "description": "`after` of the next page; null: there is none."},
        },
    }
