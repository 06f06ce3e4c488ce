"""One stored item's call: from what is stored to what came back.

Rules that always hold:
- An item goes out with its route's upstream, that upstream's authority as Host, and that upstream's configured
  credentials; a caller's are never stored, so never sent.
- The answer is kept octet for octet, its end-to-end fields in order and case; it is read whole, up to `MOST_OCTETS`.
- Whatever goes wrong is told as a fact: which trouble, and whether a byte of the request was written.

Never repeats a call and never judges an answer; `policies.recovery` does.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

from gateway.config import Configuration, Route, UpstreamSettings
from gateway.packing import StoredAnswer, StoredRequest
from gateway.upstream import Answer, BrokenAnswerError, Outbound, Upstream, UpstreamError
from policies.catalogue import SEVERAL
from policies.model import UNCLASSIFIED, Slot

MOST_OCTETS = 64 * 1024 * 1024
"""Of an answer's body; more is no answer of a web service."""

Fields = list[tuple[bytes, bytes]]
KeepFields = Callable[[Iterable[tuple[bytes, bytes]]], Fields]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one call came to: an answer, or trouble."""

    answer: StoredAnswer | None
    trouble: UpstreamError | None
    took_s: float


class Site:
    """What one configuration makes of stored items."""

    def __init__(
        self, configuration: Configuration, upstreams: Mapping[str, Upstream], keep_fields: KeepFields
    ) -> None:
        self.configuration = configuration
        self.settings = configuration.settings
        self._upstreams = upstreams
        self._keep_fields = keep_fields
        self._labels = configuration.catalogue.labels()
        self._routes = {route.prefix: route for route in self.settings.routes}
        self._own_fields = {name: _own_fields(upstream) for name, upstream in self.settings.upstreams.items()}

    def knows(self, route: str) -> bool:
        """Say whether a lane's route exists."""
        return route in self._routes

    def sources_of(self, route: str, sources: Iterable[str]) -> frozenset[str]:
        """Return the sources in whose pools an item needs a slot; where they are not known, all that its route can
        reach: doubt is never faster."""
        asked = frozenset(sources)
        if asked:
            return asked
        reachable = self._routes[route].sources or self.configuration.catalogue.sources
        return frozenset({*reachable, UNCLASSIFIED})

    def label_of(self, sources: Iterable[str]) -> str:
        """Return the `source` label of a lane."""
        joined = "+".join(sorted(sources))
        if not joined:
            return UNCLASSIFIED
        return joined if joined in self._labels else SEVERAL

    async def send(self, route: str, request: StoredRequest, slot: Slot) -> Attempt:
        """Make the call.

        Raises:
            GuardClosedError: it may not start now; nothing was sent.
        """
        name = self._route(route).upstream
        outbound = Outbound(
            method=request.method,
            target=request.target,
            headers=_headers(request, self._own_fields[name]),
            body=request.body,
        )
        began = perf_counter()
        try:
            async with self._upstreams[name].send(outbound, slot=slot) as answer:
                body = await _whole(answer)
        except UpstreamError as trouble:
            return Attempt(None, trouble, perf_counter() - began)
        took_s = perf_counter() - began
        kept = tuple(self._keep_fields(answer.headers))
        return Attempt(StoredAnswer(answer.status, answer.reason, kept, body), None, took_s)

    def _route(self, prefix: str) -> Route:
        return self._routes[prefix]


async def _whole(answer: Answer) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in answer.chunks():
        pieces.append(piece)
        size += len(piece)
        if size > MOST_OCTETS:
            raise BrokenAnswerError(f"the answer is larger than {MOST_OCTETS >> 20} MiB", bytes_written=True)
    return b"".join(pieces)


def _own_fields(upstream: UpstreamSettings) -> Fields:
    """Return the fields that the gateway adds: nobody's Host is stored, so `preserve_host` has nothing to preserve."""
    fields = [(b"Host", upstream.authority.encode("ascii"))]
    if upstream.credentials is not None:
        pair = f"{upstream.credentials.user}:{upstream.credentials.password.get_secret_value()}"
        fields.append((b"Authorization", b"Basic " + base64.b64encode(pair.encode())))
    return fields


def _headers(request: StoredRequest, own: Fields) -> Fields:
    return [*own, *request.headers, (b"Content-Length", b"%d" % len(request.body))]


def field_of(answer: StoredAnswer, name: bytes) -> str:
    """Return a field of an answer, all of its values joined."""
    return ",".join(value.decode("latin-1") for key, value in answer.headers if key.lower() == name)
