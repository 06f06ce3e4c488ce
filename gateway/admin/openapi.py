"""The API's description: an OpenAPI 3.1 document, made from the table of operations, which is also what is enforced."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from gateway.admin import problems
from gateway.admin.operations import JSON, PREFIX, Operation
from gateway.admin.schema import Schema

_PARTS: Mapping[str, Schema] = {
    "run": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The run's id."},
    "seq": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1, "description": "The item's number in its run."},
    "scope": {"type": "string", "description": "all, or source:NAME.", "example": "source:onss"},
    "source": {"type": "string", "description": "A source's name, or all."},
}


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    paths["/openapi.json"] = {
        "get": {
            "operationId": "openapi",
            "summary": "This description.",
            "responses": {"200": {"description": "OpenAPI 3.1.", "content": {JSON: {"schema": {"type": "object"}}}}}
            | _problems([400, 401, 403, 421, 500]),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "BCSS gateway",
            "version": version,
            "description": "Mass runs, holds and what became of them. Over TCP with a bearer token; on the socket "
            "`data_dir/admin.sock` the peer's user is the author.",
        },
        "servers": [{"url": PREFIX}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": problems.SCHEMA},
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": dict(_PARTS[name])}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for place, found in (("query", operation.query), ("header", operation.headers)):
        for name, schema in found.items():
            one: dict[str, Any] = {"name": name, "in": place, "required": False, "schema": dict(schema)}
            if place == "query" and schema.get("type") == "array":
                one |= {"style": "form", "explode": False}
            parameters.append(one)
    content: dict[str, Any] = {JSON: {"schema": dict(operation.body)}} if operation.body is not None else {}
    content |= {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in operation.data}
    required = bool(operation.data) or bool((operation.body or {}).get("required"))
    worked = {
        "description": operation.answers.what,
        "content": {media_type: {"schema": dict(schema)} for media_type, schema in operation.answers.content.items()},
    }
    statuses = {400, 401, 403, 421, 500, 503, *operation.problems}
    if "{" in operation.path:
        statuses.add(404)
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Role: {operation.role}.",
        "responses": {str(operation.status): worked} | _problems(sorted(statuses - {200})),
    }
    if 200 in operation.problems:  # a repeated request found what the first one made
        described["responses"]["200"] = worked
    if 422 in operation.problems:  # a file with a fault is told of like one without
        described["responses"]["422"] = {"description": "Faulty entries, or a file that cannot be read."}
    if parameters:
        described["parameters"] = parameters
    if content:
        described["requestBody"] = {"required": required, "content": content}
    return described


def _problems(statuses: Sequence[int]) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
