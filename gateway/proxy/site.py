"""What one configuration makes of calls, and one request as it will go out.

Rules that always hold: a call keeps to the site that it came to, whatever is reloaded meanwhile; nothing here waits,
sends or answers.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from gateway.config import Configuration, Route
from gateway.inbound import MOST_REMEMBERED, Head, Inbound
from gateway.inbound.turns import Turns
from gateway.proxy.calls import Call
from gateway.proxy.classifier import Asked, Classifier
from gateway.proxy.hearing import Hearing
from gateway.proxy.prefer import prefers_async
from gateway.proxy.refusing import Refuser
from gateway.proxy.wire import RequestFields, is_description, path_of, request_fields, unsound, untag
from gateway.routing import Routes, outbound_target
from gateway.soap.wsdl import Translate
from gateway.upstream import Outbound, Upstream
from policies.classify import ClassDecision
from policies.model import TrafficClass

_NOT_FORWARDED = {b"CONNECT", b"TRACE"}


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

    def plan(self, inbound: Inbound, number: int, target: bytes) -> "Plan | tuple[int, str]":
        """Route and class the requests that are as this one, which came to this listener; or return the status and the
        reason with which they are turned away."""
        target, tagged = untag(target)
        route = self.routes.of(target)
        fields = request_fields(inbound.headers, self._authorities[route.upstream] if route is not None else None)
        if wrong := unsound(fields, speaks_11=inbound.speaks_11):
            return 400, f"The request cannot be forwarded: {wrong}."
        if inbound.method in _NOT_FORWARDED:
            return 405, "This method is not forwarded."
        if route is None:
            return 404, "No route leads there; see `bcss-gateway check`."
        listener, classes = self.settings.listeners[number], self.classifier
        decision = classes.class_of(inbound, listener, target, fields, tagged=tagged)
        suspected = decision
        if self.settings.suspicion.action == "bulk":
            suspected = classes.class_of(inbound, listener, target, fields, tagged=tagged, suspected=True)
        return Plan(
            site=self,
            route=route,
            upstream=self.upstreams[route.upstream],
            target=outbound_target(target, route),
            path=path_of(target),
            fields=fields,
            decision=decision,
            suspected=suspected,
            describes=is_description(inbound.method, inbound.target),
            made_of=inbound.head if decision.traffic is TrafficClass.REALTIME else None,
        )

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when bulk opens, if it is closed; None: it is open."""
        return None if self.calendar.is_open(now) else self.calendar.next_opening(now)

    def day(self, now: datetime) -> str:
        """Return the day in Brussels."""
        return now.astimezone(self.calendar.zone).date().isoformat()


@dataclass(slots=True, eq=False)
class Plan:
    """What becomes of one client's requests that have the same line and header. They share it.

    A program's calls differ in their bodies, seldom in their headers, and have the same length often. What does not
    depend on the time, on the body or on other calls is then known: with the reading that is spared as well
    (`gateway.inbound.reading`) a seventh of a call's CPU (measured).
    """

    site: Site
    route: Route
    upstream: Upstream
    target: bytes  #: as it goes out
    path: str
    fields: RequestFields
    decision: ClassDecision
    suspected: ClassDecision  #: while its client behaves like a batch, and that counts
    describes: bool  #: it asks for a WSDL or schema, unless it has a body
    made_of: Head | None  #: None: it is remembered by nobody, and takes as little memory as can be
    line_and_header: bytes | None = None  #: as they go out, once they do again

    def again(self) -> "Plan":
        """Return it, for another request."""
        if self.line_and_header is None and self.made_of is not None:
            fields = self.fields
            outbound = Outbound(self.made_of.method, self.target, fields.forwarded, chunked=fields.chunked)
            self.line_and_header = outbound.head()
        return self

    @property
    def is_remembered(self) -> bool:
        """Whether it is worth the memory: as many connections idle as are allowed, each with what it remembers."""
        head = self.made_of
        if head is None or self.describes:
            return False
        size = len(head.target) + sum([len(name) + len(value) for name, value in head.fields])
        return size <= MOST_REMEMBERED


@dataclass(slots=True)
class Prepared:
    """A request as it will go out, but for its body."""

    plan: Plan
    asked: Asked
    translate: Translate | None = None  #: exchanges the addresses in a WSDL
    unseen: list[bytes | memoryview] | None = None  #: a real-time body that was not looked at yet

    @property
    def site(self) -> Site:
        """Return what the configuration makes of it."""
        return self.plan.site

    @property
    def upstream(self) -> Upstream:
        """Return where it goes."""
        return self.plan.upstream

    @property
    def fields(self) -> RequestFields:
        """Return the request's header."""
        return self.asked.fields

    def outbound(self, inbound: Inbound, body: bytes | None, stream: AsyncIterator[bytes] | None = None) -> Outbound:
        """Put the request together."""
        plan, fields = self.plan, self.asked.fields
        return Outbound(
            method=inbound.method,
            target=plan.target,
            headers=fields.forwarded,
            body=body,
            stream=stream,
            chunked=fields.chunked,
            written=plan.line_and_header if fields is plan.fields else None,
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
