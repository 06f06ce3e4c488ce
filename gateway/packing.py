"""A request that is stored to be sent later, and an answer that is stored to be fetched later, as octets and back.

The body follows a short header of JSON, so that it stays what it was, octet for octet. Sealing is another's work
(`gateway.sealing`).

Rules that always hold: what is packed is unpacked the same; no credential is packed (`storable` leaves them out).
"""

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Fields = tuple[tuple[bytes, bytes], ...]
_SKEW = timedelta(days=1)
"""So far the clock of the store, which dates runs, may be ahead of ours."""
_MILLISECOND = timedelta(milliseconds=1)
_MOST_MS = (1 << 33) - 1
"""99 days: calls join a run on one day."""
_CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"cookie"})


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request as it will go out, but for Host and the route's credentials."""

    target: bytes  #: as the upstream gets it
    headers: Fields  #: end-to-end fields in order and case, without Host, Content-Length and credentials
    body: bytes
    method: bytes = b"POST"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it came."""

    status: int
    reason: bytes
    headers: Fields  #: end-to-end fields in order and case
    body: bytes


def storable(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return the fields that may be stored: no credentials, no Host, no Content-Length (the body says it)."""
    left_out = _CREDENTIALS | {b"host", b"content-length"}
    return tuple((name, value) for name, value in headers if name.lower() not in left_out)


def pack_request(request: StoredRequest) -> bytes:
    """Return a request as octets."""
    head: list[Any] = [request.method.decode("latin-1"), request.target.decode("latin-1"), _texts(request.headers)]
    return _packed(head, request.body)


def unpack_request(octets: bytes) -> StoredRequest:
    """Return the request of `pack_request`. Raises ValueError for anything else."""
    head, body = _unpacked(octets)
    method, target, headers = head
    return StoredRequest(target.encode("latin-1"), _octets(headers), body, method.encode("latin-1"))


def pack_answer(answer: StoredAnswer) -> bytes:
    """Return an answer as octets."""
    return _packed([answer.status, answer.reason.decode("latin-1"), _texts(answer.headers)], answer.body)


def unpack_answer(octets: bytes) -> StoredAnswer:
    """Return the answer of `pack_answer`. Raises ValueError for anything else."""
    head, body = _unpacked(octets)
    status, reason, headers = head
    return StoredAnswer(status, reason.encode("latin-1"), _octets(headers), body)


def new_seq(now: datetime, begun: datetime) -> int:
    """Return a sequence number for an item that comes by itself to a run that was begun then: later ones are larger,
    and no two are equal but by a chance of one in a million within a millisecond. All are below 2**53: readers of JSON
    that know only floating numbers (JavaScript) would make another of a larger one."""
    since_ms = (now - begun + _SKEW) // _MILLISECOND
    return min(max(since_ms, 0), _MOST_MS) << 20 | secrets.randbelow(1 << 20)


def _packed(head: list[Any], body: bytes) -> bytes:
    octets = json.dumps(head, separators=(",", ":")).encode("ascii")
    return b"%x\n%s%s" % (len(octets), octets, body)


def _unpacked(octets: bytes) -> tuple[list[Any], bytes]:
    size, separator, rest = octets.partition(b"\n")
    if not separator:
        raise ValueError("not a packed message")
    length = int(size, 16)
    head = json.loads(rest[:length])
    if not isinstance(head, list) or len(head) != 3:
        raise ValueError("not a packed message")
    return head, rest[length:]


def _texts(fields: Fields) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in fields]


def _octets(fields: Iterable[Iterable[str]]) -> Fields:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields)
