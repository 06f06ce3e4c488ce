"""What one configuration makes of calls, and one request as it will go out.

Rules that always hold: a call keeps to the site that it came to, whatever is reloaded meanwhile; nothing here waits,
sends or answers.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from gateway.config import Configuration, Route
from gateway.inbound import Inbound
from gateway.inbound.turns import Turns
from gateway.proxy.calls import Call
from gateway.proxy.classifier import Asked, Classifier
from gateway.proxy.hearing import Hearing
from gateway.proxy.prefer import prefers_async
from gateway.proxy.refusing import Refuser
from gateway.proxy.wire import RequestFields, is_description
from gateway.routing import Routes
from gateway.soap.wsdl import Translate
from gateway.upstream import Outbound, Upstream


class Site:
    """What one configuration makes of calls. A call keeps to the site that it came to, whatever is reloaded."""

    def __init__(
        self,
        configuration: Configuration,
        upstreams: Mapping[str, Upstream],
        turns: Turns,
        refuser: Refuser,
        hearing: Hearing,
    ) -> None:
        self.settings = settings = configuration.settings
        self.catalogue = configuration.catalogue
        self.upstreams = upstreams
        self._authorities = {
            name: None if upstream.preserve_host else upstream.authority.encode("ascii")
            for name, upstream in settings.upstreams.items()
        }
        self.routes = Routes(settings.routes)
        self.classifier = Classifier(configuration, turns)
        self.refuser = refuser
        self.hearing = hearing
        self.calendar = configuration.calendar
        self.observes_until = _end_of(configuration)

    def authority_of(self, route: Route | None) -> bytes | None:
        """Return what stands in Host behind a route; None: what the client wrote there."""
        return self._authorities[route.upstream] if route is not None else None

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when bulk opens, if it is closed; None: it is open."""
        return None if self.calendar.is_open(now) else self.calendar.next_opening(now)

    def day(self, now: datetime) -> str:
        """Return the day in Brussels."""
        return now.astimezone(self.calendar.zone).date().isoformat()


@dataclass(slots=True)
class Prepared:
    """A request as it will go out, but for its body."""

    site: Site
    route: Route
    upstream: Upstream
    target: bytes
    asked: Asked
    translate: Translate | None = None  #: exchanges the addresses in a WSDL
    unseen: list[bytes] | None = None  #: a real-time body that was not looked at yet

    def describes(self, inbound: Inbound) -> bool:
        """Whether the answer may be a WSDL in which addresses are exchanged."""
        return self.route.wsdl_address is not None and is_description(inbound.method, inbound.target)

    @property
    def fields(self) -> RequestFields:
        """Return the request's header."""
        return self.asked.fields

    def outbound(self, inbound: Inbound, body: bytes | None, stream: AsyncIterator[bytes] | None = None) -> Outbound:
        """Put the request together."""
        return Outbound(
            method=inbound.method,
            target=self.target,
            headers=self.fields.forwarded,
            lines=self.fields.lines,
            body=body,
            stream=stream,
            chunked=self.fields.chunked,
        )

    def whole(self, inbound: Inbound, call: Call) -> Outbound:
        """Put a real-time request together whose body, if it has one, is here."""
        outbound = self.outbound(inbound, None)
        if inbound.has_body or outbound.chunked:
            outbound.pieces = pieces = inbound.take_pieces()
            call.bytes_in = sum(map(len, pieces))
            # Looked at once the answer has passed, or one of ours has to know what was asked: not in anybody's way.
            self.unseen = pieces
        return outbound


@dataclass(frozen=True, slots=True)
class BulkCall:
    """A bulk call that was read and found sound."""

    prepared: Prepared
    method: bytes
    body: bytes
    sources: frozenset[str]
    identity: str

    @property
    def is_storable(self) -> bool:
        """Whether it is of the kind that is stored at all."""
        return self.method == b"POST" and bool(self.body)

    @property
    def prefers_async(self) -> bool:
        """Whether its caller would rather fetch the answer later."""
        return self.is_storable and prefers_async(self.prepared.fields.read.get(b"prefer", ()))


def _end_of(configuration: Configuration) -> datetime | None:
    """Return when mode observe ends: after its last day, Brussels time. None: it is not in force."""
    settings = configuration.settings
    if settings.mode != "observe" or settings.observe is None:
        return None
    return datetime.combine(settings.observe.until + timedelta(days=1), time(), configuration.calendar.zone)
