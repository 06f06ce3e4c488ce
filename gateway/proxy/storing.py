"""Bulk calls that are stored, to be sent later: what may be stored, and where it goes.

A stored call becomes an item of its client's async run: one for each client identity, route and day in Brussels. Who
may fetch its answer is decided by the run's `client`, a keyed tag of the identity.

Rules that always hold:
- The call is durable before its caller is told so.
- No credential is stored: a call that carries one needs an upstream with `credentials` of its own to be storable.
- What is stored is sealed before it leaves this process, under the number of its item.
- A run that ended takes no more: the next call of that day begins another.

Never answers a caller and never sends a call.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.config import UpstreamSettings
from gateway.config.settings import RunSettings
from gateway.log import nameable
from gateway.packing import StoredRequest, new_seq, pack_request
from gateway.proxy.classifier import Asked
from gateway.proxy.kept import Kept
from gateway.records import GATEWAY, LaneKey, NewItem, NewRun, RunRecord
from gateway.soap.coding import Inflater
from gateway.soap.multipart import UnsoundMultipartError, is_multipart, root_part
from gateway.soap.stale import not_storable
from gateway.store.interface import StateError
from policies.model import RunKind
from policies.runs import ENDED

if TYPE_CHECKING:
    from gateway.sealing import RunKey

MOST_RUNS = 1000
LARGE = 64 * 1024
"""Octets from which a call is looked at, packed and sealed in a thread: a millisecond of the event loop."""
_TRIES = 3
_INFLATED_MOST = 8 << 20


@dataclass(frozen=True, slots=True)
class Storable:
    """A call as it is stored."""

    identity: str  #: of its client, as far as verified
    flow: str  #: whose traffic it is, for people
    route: str
    day: str
    lane: LaneKey
    request: StoredRequest


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call was put."""

    handle: str  #: 32 hex digits: its answer can be fetched by it
    run: str  #: public id


@dataclass(frozen=True, slots=True)
class _Open:
    record: RunRecord
    wrapped: bytes
    key: "RunKey"


def has_no_credentials(asked: Asked, upstream: UpstreamSettings) -> str:
    """Say why a call cannot be stored for the credentials that it carries; empty: it can. A cookie may be one."""
    read = asked.fields.read
    if (read.get(b"authorization") or read.get(b"cookie")) and upstream.credentials is None:
        return (
            "It carries credentials (or a cookie), which are never stored, and the upstream of its route has none of "
            "its own: give it `credentials`, or send the call while bulk is let through, without Prefer."
        )
    return ""


async def is_stale(asked: Asked, body: bytes) -> str:
    """Say why a message must not be kept until it is sent; empty: nothing speaks against it."""
    if len(body) > LARGE:
        why = await asyncio.to_thread(_is_stale, asked.content_type, asked.content_encoding, body)
    else:
        why = _is_stale(asked.content_type, asked.content_encoding, body)
    return f"It {why}." if why else ""


def _is_stale(content_type: str, content_encoding: str, body: bytes) -> str:
    inflater = Inflater(content_encoding)
    plain = b"".join(inflater.pieces(body, _INFLATED_MOST))
    if is_multipart(content_type):
        try:
            _, plain = root_part(plain, content_type)
        except UnsoundMultipartError:  # unclassified, and read by nobody here
            return ""
    return not_storable(plain)


class Storing:
    """Puts calls into the async runs of their clients. Made once."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._open: OrderedDict[tuple[str, str, str], _Open] = OrderedDict()

    async def store(self, kept: Kept, call: Storable, settings: RunSettings) -> Place:
        """Store a call; it is durable when this returns.

        Raises:
            StoreDownError: the store does not answer. The call may be stored all the same, and nobody knows its handle.
        """
        client = kept.keys.tag(call.identity).hex()
        for _ in range(_TRIES):
            run = await self._run(kept, client, call, settings)
            place = Place(secrets.token_hex(16), run.record.public_id)
            seq = new_seq(self._now(), run.record.created_at)
            sealed = await _sealed(kept, run, seq, call.request)
            try:
                await kept.store.add_items(
                    run.record.id, [NewItem(seq, call.lane, sealed, handle=place.handle)], received=None
                )
            except StateError:  # it has ended since we looked: the day is over, or a person ended it
                self._open.pop((client, call.route, call.day), None)
                continue
            return place
        raise StateError("The run of this client ends as soon as it is made. Look at `bcss-gateway audit`.")

    async def _run(self, kept: Kept, client: str, call: Storable, settings: RunSettings) -> _Open:
        at = (client, call.route, call.day)
        known = self._open.get(at)
        if known is None:
            record = await self._found_or_made(kept, client, call, settings)
            if record.wrapped_key is None:
                raise StateError(f"Run {record.public_id} was purged on the day of its making.")
            known = self._open[at] = _Open(record, record.wrapped_key, kept.keys.unwrap(record.wrapped_key))
            if len(self._open) > MOST_RUNS:
                self._open.popitem(last=False)
        self._open.move_to_end(at)
        return known

    async def _found_or_made(self, kept: Kept, client: str, call: Storable, settings: RunSettings) -> RunRecord:
        found = await kept.store.async_run(client, call.route, call.day)
        if found is not None and found.state not in ENDED:
            return found
        # Of two that make it at the same time, here or in two gateways, one is the first, and both get that one's.
        before = found.public_id if found is not None else ""
        _, wrapped = kept.keys.new_key()
        return await kept.store.create_run(
            NewRun(
                public_id=secrets.token_hex(16),
                kind=RunKind.ASYNC,
                name=f"calls of {nameable(call.flow)}",
                author=GATEWAY,
                wrapped_key=wrapped,
                route=call.route,
                client=client,
                max_attempts=settings.max_attempts,
                options={"day": call.day, "retention_s": settings.retention},
                idempotency_key=f"async {client} {call.route} {call.day} {before}",
            )
        )


async def _sealed(kept: Kept, run: _Open, seq: int, request: StoredRequest) -> bytes:
    def seal(key: "RunKey") -> bytes:
        return key.seal("request", run.record.public_id, seq, pack_request(request))

    if len(request.body) <= LARGE:
        return seal(run.key)
    # A key of its own for the thread: one that compresses is not for two at a time.
    return await asyncio.to_thread(lambda: seal(kept.keys.unwrap(run.wrapped)))
