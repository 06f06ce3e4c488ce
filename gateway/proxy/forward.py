"""What happens to one call: routed, classed, forwarded; bulk goes by way of its digest and its slots.

A real-time call is two hops: here, `upstream.send`. It takes no slot, waits on no queue, and is not parsed before it is
forwarded: its digest is made beside it, for metrics only. A bulk call is six: here, `soap.digest`, `Catalogue.find`,
`Slots.slot`, `SlotTable.arrive`, `upstream.send`; its body is read whole before it may queue.

Rules that always hold:
- Whatever happens, the call is answered or its connection is cut, and it stands in the books once.
- A POST is never sent again once a byte of it was written. A guard that says no before the first byte sends the call
  back to the head of its queue, or the closed window answers it.
- The gateway's own answers cannot be taken for the BCSS's, and an upstream's answer is never replaced by one of ours.

What is decided, is decided in `policies`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from functools import cached_property, partial
from time import perf_counter  # uvloop's clock counts milliseconds only; these are durations for people
from typing import TYPE_CHECKING

from gateway.config import Configuration, Route
from gateway.config import Listener as ListenerSettings
from gateway.inbound import BodyTooLargeError, BrokenBodyError, ClientGoneError, Inbound, SlowBodyError
from gateway.inbound.turns import ARRIVAL_S, Turns
from gateway.log import EventLog, nameable
from gateway.metrics import NO_SOURCE, Metrics
from gateway.proxy.calls import Books, Call, decision_field, request_id_of
from gateway.proxy.classifier import Asked
from gateway.proxy.hearing import Heard, Hearing
from gateway.proxy.kept import Behind, Noted, nobody, nothing
from gateway.proxy.refusing import OF_RUNS, PASSES, NotKeptError, Refuser, plain, send, what_to_do
from gateway.proxy.relay import CutError, is_fault, relay
from gateway.proxy.site import BulkCall, Prepared, Site
from gateway.proxy.wire import (
    OWN_PATHS,
    RequestFields,
    is_description,
    origin_form,
    path_of,
    request_fields_of,
    unsound,
    untag,
)
from gateway.proxy.wsdl import can_be_rewritten, relay_description, translator
from gateway.routing import outbound_target
from gateway.slots import RefusedError, Slots
from gateway.soap import MalformedBodyError, TooLargeError, caller_soap_version
from gateway.upstream import GuardClosedError, Outbound, Upstream, UpstreamError
from policies.classify import SUSPECTED
from policies.model import UNCLASSIFIED, Clock, Reason, Refusal, Slot, TrafficClass
from policies.suspicion import Suspicion, Thresholds

if TYPE_CHECKING:
    from gateway.proxy.desk import Desk

_ADMISSIONS = 3
"""How often a call whose guard said no goes back to admission: once is enough, unless the clock jumps about."""
_NOT_FORWARDED = {b"CONNECT", b"TRACE"}
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class Proxy:
    """The inbound handler, one for all listeners."""

    def __init__(
        self,
        slots: Slots,
        metrics: Metrics,
        books: Books,
        clock: Clock,
        log: EventLog,
        turns: Turns,
        *,
        behind: Behind = nothing,
        noted: Noted = nobody,
    ) -> None:
        self._slots = slots
        self._log = log
        self._thresholds = Thresholds()
        self._suspicion = Suspicion(self._thresholds)
        self._metrics = metrics
        self._books = books
        self._clock = clock
        self._turns = turns
        self._behind = behind
        self._noted = noted
        self._site: Site
        self.in_flight = 0  #: calls that were taken and are not over
        self.draining = False  #: stopping: answers close their connections
        self._nothing_left: asyncio.Event | None = None

    def adopt(self, configuration: Configuration, upstreams: Mapping[str, Upstream], refuser: Refuser) -> None:
        """Treat calls from now on as this configuration says."""
        hearing = Hearing(configuration, self._metrics, self._behind, self._noted)
        self._site = Site(configuration, upstreams, self._turns, refuser, hearing)
        given = configuration.settings.suspicion
        thresholds = Thresholds(minimum_calls=given.minimum_calls, rate_per_s=given.rate, calm_s=given.calm)
        if thresholds != self._thresholds:
            self._thresholds, self._suspicion = thresholds, Suspicion(thresholds)

    def suspects(self) -> int:
        """Return how many clients (for each source) behave like a batch now, and do not say so."""
        return self._suspicion.suspects(self._clock.boot())

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        if self.in_flight:
            self._nothing_left = asyncio.Event()
            await self._nothing_left.wait()

    async def handle(self, inbound: Inbound, listener: ListenerSettings) -> bool:
        """Take one call to its end; return whether the client's connection may go on."""
        call = Call(arrived=perf_counter())
        self.in_flight += 1
        try:
            target = origin_form(inbound.target)
            if target.startswith(OWN_PATHS):
                goes_on = partial(self._may_go_on, inbound)
                keep_alive = await self._desk.serve(inbound, call, self._site, target, goes_on)
            else:
                keep_alive = await self._take(inbound, listener, call, target)
        except ClientGoneError:
            call.outcome, keep_alive = "client_gone", False
        except CutError:
            call.outcome, keep_alive = "cut", False
        except asyncio.CancelledError:
            if call.outcome != "forwarded":  # it may have its answer whole, and have gone while that was read
                call.outcome = "client_gone"
            raise
        finally:
            self.in_flight -= 1
            if self._nothing_left is not None and not self.in_flight:
                self._nothing_left.set()
            call.bytes_out = inbound.sent
            if call.label != NO_SOURCE and (call.traffic is TrafficClass.REALTIME or call.rule == SUSPECTED):
                self._suspect(call)
            self._books.settle(call, perf_counter(), client=inbound.connection.peer)
        return keep_alive

    async def _take(self, inbound: Inbound, listener: ListenerSettings, call: Call, target: bytes) -> bool:
        site = self._site
        target, tagged = untag(target)
        route = site.routes.of(target)
        fields = request_fields_of(inbound.connection, inbound.headers, site.authority_of(route))
        call.request_id = request_id_of(fields)
        if (status_and_why := _not_forwarded(inbound, fields, route)) is not None or route is None:
            call.status, why = status_and_why or (404, "")
            return plain(inbound, call.status, why, call.request_id)
        call.route = route.prefix
        decision = site.classifier.class_of(inbound, listener, target, fields, tagged=tagged)
        if decision.traffic is TrafficClass.REALTIME and self._counts_as_bulk(site, decision.flow):
            decision = site.classifier.class_of(inbound, listener, target, fields, tagged=tagged, suspected=True)
        call.traffic, call.rule, call.flow = decision.traffic, decision.rule, decision.flow
        if b"expect" in fields.read and fields.first(b"expect").lower() == "100-continue":
            inbound.invite_body()
        prepared = Prepared(
            site,
            route,
            site.upstreams[route.upstream],
            outbound_target(target, route),
            Asked(path_of(target), fields),
        )
        try:
            if call.traffic is TrafficClass.BULK:
                return await self._bulk(inbound, call, prepared, run_id=decision.run_id)
            return await self._realtime(inbound, call, prepared)
        except UpstreamError as trouble:
            call.outcome = "upstream_error"
            call.faults.append(trouble.detail)
            return self._answer(inbound, call, prepared, RefusedError(trouble.reason), hint=what_to_do(trouble))
        except BrokenBodyError as broken:
            call.status = 400
            return plain(inbound, 400, f"The request's body cannot be read: {broken}.", call.request_id)
        except SlowBodyError:
            call.status = 408
            return plain(inbound, 408, "The request's body came too slowly.", call.request_id)

    def _observes(self, site: Site) -> bool:
        return site.observes_until is not None and self._clock.wall() < site.observes_until

    def _counts_as_bulk(self, site: Site, flow: str) -> bool:
        return site.settings.suspicion.action == "bulk" and self._suspicion.is_suspect(flow, self._clock.boot())

    def _suspect(self, call: Call) -> None:
        now = self._clock.boot()
        before = self._suspicion.suspected(call.flow, call.label, now)
        if self._suspicion.seen(call.flow, call.label, now):
            self._metrics.suspected[call.label].inc()
            if not before:
                self._log.warning(
                    "suspected bulk",
                    flow=nameable(call.flow),
                    source=call.label,
                    remedy="If it is a batch, send it to /bulk/ or make a client rule of it; see the README.",
                )

    # Real-time.

    async def _realtime(self, inbound: Inbound, call: Call, prepared: Prepared) -> bool:
        if not (inbound.has_body or prepared.fields.chunked):
            if prepared.route.wsdl_address is not None and is_description(inbound.method, inbound.target):
                prepared.translate = translator(prepared.route, prepared.site.settings.upstreams)
                prepared.asked.fields = prepared.fields.without(b"accept-encoding")
            return await self._exchange(inbound, call, prepared, prepared.outbound(inbound, None), None)
        if inbound.body_is_here or await inbound.gathered():
            pieces = inbound.take_pieces()
            call.bytes_in = sum(map(len, pieces))
            # Looked at once the answer has passed, or one of ours has to know what was asked: not in anybody's way.
            prepared.unseen = pieces
            outbound = prepared.outbound(inbound, None)
            outbound.pieces = pieces
            return await self._exchange(inbound, call, prepared, outbound, None)
        stream = prepared.site.classifier.looked_at(inbound, call, prepared.asked)
        return await self._exchange(inbound, call, prepared, prepared.outbound(inbound, None, stream), None)

    # Bulk.

    async def _bulk(self, inbound: Inbound, call: Call, prepared: Prepared, *, run_id: str | None) -> bool:
        await self._turns.take(ARRIVAL_S)
        body, rest = await _read(inbound, prepared.site.settings.bulk.body_limit)
        call.bytes_in, call.label = len(body), UNCLASSIFIED
        sources: frozenset[str] = frozenset()
        refused = RefusedError(Reason.TOO_LARGE) if rest is not None else None
        try:
            if refused is None:
                sources = await prepared.site.classifier.read(call, prepared.asked, body)
        except MalformedBodyError:
            refused = RefusedError(Reason.MALFORMED)
        except TooLargeError:
            refused = RefusedError(Reason.TOO_LARGE)
        if refused is None and run_id is not None:
            refused = await self._not_of_run(call, run_id)
        observes = self._observes(prepared.site)
        hints = OF_RUNS if run_id is not None else {}
        if refused is not None and not observes:
            return await self._refuse(inbound, call, prepared, refused, hint=hints.get(refused.reason, ""))
        if refused is not None:
            call.would_refuse = refused.reason
        has_body = inbound.has_body or prepared.fields.chunked
        stream = _followed(body, rest) if rest is not None else None
        outbound = prepared.outbound(inbound, body if has_body and stream is None else None, stream)
        bulk = BulkCall(prepared, inbound.method, body, sources, prepared.site.classifier.identity_of(inbound))
        may_store = bulk.is_storable and run_id is None and not observes
        inbound.rest()
        if may_store and bulk.prefers_async:
            return await self._store(inbound, call, bulk)
        try:
            return await self._admitted(inbound, call, prepared, outbound, sources)
        except RefusedError as why:
            if may_store and prepared.site.settings.bulk.closed == "queue" and why.reason in PASSES:
                return await self._store(inbound, call, bulk, instead_of=why)
            return await self._refuse(inbound, call, prepared, why, hint=hints.get(why.reason, ""))

    async def _not_of_run(self, call: Call, run_id: str) -> RefusedError | None:
        """Let a call join the run that it names, or say why it may not."""
        if not _RUN_ID.fullmatch(run_id):
            return RefusedError(Reason.UNKNOWN_RUN)
        kept = self._behind()
        reason = await kept.client_runs.begin(run_id, call.flow) if kept is not None else Reason.STORE_UNAVAILABLE
        if reason is not None:
            return RefusedError(reason)
        call.run = run_id
        return None

    @cached_property
    def _desk(self) -> "Desk":
        from gateway.proxy.desk import Desk  # late: not needed until the store is open

        return Desk(self._clock, self._log, self._behind)

    async def _store(
        self, inbound: Inbound, call: Call, bulk: BulkCall, *, instead_of: RefusedError | None = None
    ) -> bool:
        try:
            promise, extra = await self._desk.take_in(call, bulk)
        except NotKeptError as error:
            refused, hint = error.instead_of(instead_of)
            return await self._refuse(inbound, call, bulk.prepared, refused, hint=hint)
        call.outcome, call.status = "stored", promise.status
        keep_alive = self._may_go_on(inbound)
        send(inbound, promise, keep_alive=keep_alive, extra=extra)
        return keep_alive

    async def _admitted(
        self, inbound: Inbound, call: Call, prepared: Prepared, outbound: Outbound, sources: frozenset[str]
    ) -> bool:
        if not sources:  # doubt is never faster: a slot wherever this route can lead
            sources = frozenset({*(prepared.route.sources or prepared.site.catalogue.sources), UNCLASSIFIED})
        observe = self._observes(prepared.site)
        call.pools = self._slots.pools_of(sources)
        if observe and call.would_refuse is None:
            call.would_refuse = self._slots.would_refuse(sources)
        slot: Slot | None = None
        for _ in range(_ADMISSIONS):
            asked, hold_s = perf_counter(), prepared.site.settings.hold_total
            held = self._slots.slot(sources, call.flow, hold_s=hold_s, observe=observe, again=slot)
            try:
                async with held as slot:
                    if call.run and (over := await self._not_of_run(call, call.run)) is not None:
                        raise over  # paused, or ended, while it waited
                    call.waited += perf_counter() - asked
                    call.pools = slot.pools  # those of a configuration that came meanwhile
                    async with prepared.site.hearing.of(call, sources) as heard:
                        return await self._exchange(inbound, call, prepared, outbound, slot, heard)
            except RefusedError:
                call.waited += perf_counter() - asked
                raise
            except GuardClosedError:
                continue
        raise RefusedError(self._slots.would_refuse(sources) or Reason.QUEUE_TIMEOUT)

    # Both.

    async def _exchange(
        self,
        inbound: Inbound,
        call: Call,
        prepared: Prepared,
        outbound: Outbound,
        slot: Slot | None,
        heard: Heard | None = None,
    ) -> bool:
        call.sent_at = perf_counter()
        try:
            async with prepared.upstream.send(outbound, slot=slot) as answer:
                call.status = answer.status
                extra = (self._decision(call, prepared),) if prepared.site.settings.answers.decision_header else ()
                goes_on = self._may_go_on(inbound)
                if prepared.translate is not None and can_be_rewritten(answer):
                    keep_alive = await relay_description(
                        inbound, answer, extra, prepared.translate, self._log, keep_alive=goes_on
                    )
                else:
                    copy = heard.begin(answer) if heard is not None else None
                    keep_alive = await relay(inbound, answer, extra, keep_alive=goes_on, copy=copy)
        finally:
            call.upstream = perf_counter() - call.sent_at
            if prepared.unseen is not None:
                prepared.site.classifier.look(call, prepared.asked, prepared.unseen)
        call.outcome = "forwarded"
        if is_fault(answer):
            self._metrics.upstream_fault(call.label)
        return keep_alive

    def _decision(self, call: Call, prepared: Prepared) -> bytes:
        return decision_field(call, "observe" if self._observes(prepared.site) else "enforce")

    def _may_go_on(self, inbound: Inbound) -> bool:
        return inbound.keeps_alive and not self.draining and inbound.body_is_here and inbound.speaks_11

    async def _refuse(
        self, inbound: Inbound, call: Call, prepared: Prepared, refused: RefusedError, *, hint: str = ""
    ) -> bool:
        await prepared.site.refuser.hold_back(perf_counter() - call.arrived)
        call.outcome = "refused"
        return self._answer(inbound, call, prepared, refused, hint=hint)

    def _answer(
        self, inbound: Inbound, call: Call, prepared: Prepared, refused: RefusedError, *, hint: str = ""
    ) -> bool:
        refusal = Refusal(
            reason=refused.reason,
            request_id=call.request_id,
            source=call.label,
            pool=refused.pool,
            opens_at=refused.opens_at,
            hint=hint,
        )
        fields = prepared.fields
        soap = caller_soap_version(fields.first(b"content-type"), b"soapaction" in fields.read, prepared.asked.digest)
        refuser = prepared.site.refuser
        written = refuser.written(refuser.timed(refusal, retry_in_s=refused.retry_in_s), soap)
        call.reason, call.status = refused.reason, written.status
        keep_alive = self._may_go_on(inbound)
        send(inbound, written, keep_alive=keep_alive)
        return keep_alive


def _not_forwarded(inbound: Inbound, fields: RequestFields, route: Route | None) -> tuple[int, str] | None:
    if wrong := unsound(fields, speaks_11=inbound.speaks_11):
        return 400, f"The request cannot be forwarded: {wrong}."
    if inbound.method in _NOT_FORWARDED:
        return 405, "This method is not forwarded."
    return (404, "No route leads there; see `bcss-gateway check`.") if route is None else None


async def _read(inbound: Inbound, limit: int) -> tuple[bytes, AsyncIterator[bytes] | None]:
    """Return a body; where it is too large, its beginning and the rest."""
    try:
        return await inbound.read(limit), None
    except BodyTooLargeError as too_large:
        return too_large.so_far, inbound.chunks()


async def _followed(body: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield body
    async for data in rest:
        yield data
