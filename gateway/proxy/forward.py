"""What happens to one call: routed, classed, forwarded; bulk goes by way of its digest and its slots.

A real-time call is two hops: here (as a `Passage`, where it need not wait), `upstream.send`. It takes no slot, waits on
no queue, and is not parsed before it is forwarded: its digest is made beside it, for metrics only. A bulk call is six:
here, `soap.digest`, `Catalogue.find`, `Slots.slot`, `SlotTable.arrive`, `upstream.send`; its body is read whole before
it may queue.

Rules that always hold:
- Whatever happens, the call is answered or its connection is cut, and it stands in the books once.
- A POST is never sent again once a byte of it was written. A guard that says no before the first byte sends the call
  back to the head of its queue, or the closed window answers it.
- The gateway's own answers cannot be taken for the BCSS's, and an upstream's answer is never replaced by one of ours.

What is decided, is decided in `policies`.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping
from functools import cached_property, partial
from time import perf_counter  # uvloop's clock counts milliseconds only; these are durations for people
from typing import TYPE_CHECKING

from gateway.config import Configuration
from gateway.inbound import HIGH_WATER, BrokenBodyError, ClientGoneError, Inbound, SlowBodyError
from gateway.inbound.turns import ARRIVAL_S, Turns
from gateway.log import EventLog
from gateway.metrics import Metrics
from gateway.proxy.calls import Books, Call, decision_field, request_id_of
from gateway.proxy.classifier import Asked
from gateway.proxy.hearing import Heard, Hearing
from gateway.proxy.kept import Behind, Noted, nobody, nothing
from gateway.proxy.passage import Passage
from gateway.proxy.refusing import OF_RUNS, PASSES, NotKeptError, Refuser, plain, send, what_to_do
from gateway.proxy.relay import CutError, is_fault, relay
from gateway.proxy.site import BulkCall, Plan, Prepared, Site
from gateway.proxy.suspecting import Suspecting
from gateway.proxy.wire import BULK_TAG, OWN_PATHS, origin_form, request_fields
from gateway.proxy.wsdl import can_be_rewritten, relay_description, translator
from gateway.slots import RefusedError, Slots
from gateway.soap import MalformedBodyError, TooLargeError, caller_soap_version
from gateway.upstream import Answer, Exchange, GuardClosedError, Outbound, Upstream, UpstreamError
from policies.classify import ClassDecision
from policies.model import UNCLASSIFIED, Clock, Reason, Refusal, Slot, TrafficClass

if TYPE_CHECKING:
    from gateway.proxy.desk import Desk

_ADMISSIONS = 3
"""How often a call whose guard said no goes back to admission: once is enough, unless the clock jumps about."""
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
        self.suspecting = Suspecting(metrics, clock, log)
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
        self.suspecting.adopt(configuration.settings)

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        if self.in_flight:
            self._nothing_left = asyncio.Event()
            await self._nothing_left.wait()

    def is_mass(self, target: bytes, number: int) -> bool:
        """Say of a target whether its calls, to this listener, are bulk for sure."""
        return target.startswith(BULK_TAG) or self._site.settings.listeners[number].traffic_class is TrafficClass.BULK

    def at_once(self, inbound: Inbound, number: int) -> bool:
        """Begin a call that came to this listener without a task, if it is one that needs none so far (`Passage`);
        return whether it is."""
        call = Call(arrived=perf_counter())
        plan = self._plan(inbound, number)
        if not isinstance(plan, Plan) or plan.decision.traffic is TrafficClass.BULK or plan.describes:
            return False
        if self.suspecting.makes_bulk(plan.decision.flow):
            return False
        connection = plan.upstream.quiet() if inbound.body_is_here else None  # taken: it is used, or lost
        if connection is None and (inbound.body_is_here or inbound.size > HIGH_WATER):
            return False
        self.in_flight += 1
        passage = Passage(self, inbound, call, _prepared(call, plan, plan.decision))
        if connection is not None:
            passage.send(connection)
        else:
            passage.gather()
        return True

    async def handle(self, inbound: Inbound, number: int) -> bool:
        """Take one call that came to this listener to its end; return whether the client's connection may go on."""
        call = Call(arrived=perf_counter())
        plan = self._plan(inbound, number)
        self.in_flight += 1
        if plan is None:
            target, goes_on = origin_form(inbound.target), partial(self.may_go_on, inbound)
            return await self._to_its_end(inbound, call, self._desk.serve(inbound, call, self._site, target, goes_on))
        return await self._to_its_end(inbound, call, self._take(inbound, call, plan))

    async def go_on_unsent(self, inbound: Inbound, call: Call, plan: Plan) -> bool:
        """Take one call that was begun to its end."""
        return await self._to_its_end(inbound, call, self._take(inbound, call, plan))

    async def go_on(self, inbound: Inbound, call: Call, prepared: Prepared, exchange: Exchange) -> bool:
        """Take one call that was sent to its end."""
        way = self._answered(inbound, call, prepared, self._exchange(inbound, call, prepared, exchange))
        return await self._to_its_end(inbound, call, way)

    async def _to_its_end(self, inbound: Inbound, call: Call, way: Awaitable[bool]) -> bool:
        try:
            return await way
        except ClientGoneError:
            call.outcome = "client_gone"
        except CutError:
            call.outcome = "cut"
        except asyncio.CancelledError:
            if call.outcome != "forwarded":  # it may have its answer whole, and have gone while that was read
                call.outcome = "client_gone"
            raise
        finally:
            self.over(inbound, call)
        return False

    def over(self, inbound: Inbound, call: Call) -> None:
        """Keep the books of a call that is over."""
        self.in_flight -= 1
        if self._nothing_left is not None and not self.in_flight:
            self._nothing_left.set()
        call.bytes_out = inbound.sent
        self.suspecting.note(call)
        self._books.settle(call, perf_counter(), client=inbound.connection.peer)

    def _plan(self, inbound: Inbound, number: int) -> Plan | tuple[int, str] | None:
        """Return what becomes of such a call, or the status and the reason with which it is turned away; None: it is
        for the desk. What becomes of real-time calls, their connection remembers."""
        site, before, head = self._site, inbound.connection.memory, inbound.head
        if isinstance(before, Plan) and before.site is site and (before.made_of is head or before.made_of == head):
            return before.again()
        target = origin_form(inbound.target)
        if target.startswith(OWN_PATHS):
            return None
        plan = site.plan(inbound, number, target)
        if isinstance(plan, Plan) and plan.is_remembered:
            inbound.connection.memory = plan
        return plan

    async def _take(self, inbound: Inbound, call: Call, plan: Plan | tuple[int, str]) -> bool:
        if isinstance(plan, tuple):
            call.request_id, (call.status, why) = request_id_of(request_fields(inbound.headers, None)), plan
            return plain(inbound, call.status, why, call.request_id)
        decision, fields = plan.decision, plan.fields
        if decision.traffic is TrafficClass.REALTIME and self.suspecting.makes_bulk(decision.flow):
            decision = plan.suspected
        prepared = _prepared(call, plan, decision)
        if fields.invites:
            inbound.invite_body()
        if call.traffic is TrafficClass.BULK:
            return await self._answered(inbound, call, prepared, self._bulk(inbound, call, prepared))
        return await self._answered(inbound, call, prepared, self._realtime(inbound, call, prepared))

    async def _answered(self, inbound: Inbound, call: Call, prepared: Prepared, way: Awaitable[bool]) -> bool:
        try:
            return await way
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

    # Real-time.

    async def _realtime(self, inbound: Inbound, call: Call, prepared: Prepared) -> bool:
        asks = prepared.plan.describes and not (inbound.has_body or prepared.fields.chunked)
        if asks and prepared.plan.route.wsdl_address is not None:
            prepared.translate = translator(prepared.plan.route, prepared.site.settings.upstreams)
            prepared.asked.fields = prepared.fields.without(b"accept-encoding")
        if inbound.body_is_here:
            outbound = prepared.whole(inbound, call)
        else:
            stream = prepared.site.classifier.looked_at(inbound, call, prepared.asked)
            outbound = prepared.outbound(inbound, None, stream)
        return await self._exchange(inbound, call, prepared, prepared.upstream.send(outbound, slot=None))

    # Bulk.

    async def _bulk(self, inbound: Inbound, call: Call, prepared: Prepared) -> bool:
        await self._turns.take(ARRIVAL_S)
        body, stream = await inbound.read_up_to(prepared.site.settings.bulk.body_limit)
        call.bytes_in, call.label = len(body), UNCLASSIFIED
        sources: frozenset[str] = frozenset()
        refused = RefusedError(Reason.TOO_LARGE) if stream is not None else None
        try:
            if refused is None:
                sources = await prepared.site.classifier.read(call, prepared.asked, body)
        except MalformedBodyError:
            refused = RefusedError(Reason.MALFORMED)
        except TooLargeError:
            refused = RefusedError(Reason.TOO_LARGE)
        if refused is None and call.names_run is not None:
            refused = await self._not_of_run(call, call.names_run)
        observes = self._observes(prepared.site)
        hints = OF_RUNS if call.names_run is not None else {}
        if refused is not None and not observes:
            return await self._refuse(inbound, call, prepared, refused, hint=hints.get(refused.reason, ""))
        if refused is not None:
            call.would_refuse = refused.reason
        has_body = inbound.has_body or prepared.fields.chunked
        outbound = prepared.outbound(inbound, body if has_body and stream is None else None, stream)
        bulk = BulkCall(prepared, inbound.method, body, sources, prepared.site.classifier.identity_of(inbound))
        may_store = bulk.is_storable and call.names_run is None and not observes
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
        keep_alive = self.may_go_on(inbound)
        send(inbound, promise, keep_alive=keep_alive, extra=extra)
        return keep_alive

    async def _admitted(
        self, inbound: Inbound, call: Call, prepared: Prepared, outbound: Outbound, sources: frozenset[str]
    ) -> bool:
        if not sources:  # doubt is never faster: a slot wherever this route can lead
            sources = frozenset({*(prepared.plan.route.sources or prepared.site.catalogue.sources), UNCLASSIFIED})
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
                        exchange = prepared.upstream.send(outbound, slot=slot)
                        return await self._exchange(inbound, call, prepared, exchange, heard)
            except RefusedError:
                call.waited += perf_counter() - asked
                raise
            except GuardClosedError:
                continue
        raise RefusedError(self._slots.would_refuse(sources) or Reason.QUEUE_TIMEOUT)

    # Both.

    async def _exchange(
        self, inbound: Inbound, call: Call, prepared: Prepared, exchange: Exchange, heard: Heard | None = None
    ) -> bool:
        if exchange.answer is None:  # nothing was sent yet
            call.sent_at = perf_counter()
        try:
            async with exchange as answer:
                call.status = answer.status
                extra, goes_on = self.own_lines(call, prepared), self.may_go_on(inbound)
                if prepared.translate is not None and can_be_rewritten(answer):
                    keep_alive = await relay_description(
                        inbound, answer, extra, prepared.translate, self._log, keep_alive=goes_on
                    )
                else:
                    copy = heard.begin(answer) if heard is not None else None
                    keep_alive = await relay(inbound, answer, extra, keep_alive=goes_on, copy=copy)
        finally:
            self.exchanged(call, prepared)
        self.forwarded(call, answer)
        return keep_alive

    def own_lines(self, call: Call, prepared: Prepared) -> tuple[bytes, ...]:
        """Return what the gateway adds to an answer's header."""
        site = prepared.site
        if not site.settings.answers.decision_header:
            return ()
        return (decision_field(call, "observe" if self._observes(site) else "enforce"),)

    def may_go_on(self, inbound: Inbound) -> bool:
        """Say whether the client's connection may go on after this answer."""
        return inbound.keeps_alive and not self.draining and inbound.body_is_here and inbound.speaks_11

    def exchanged(self, call: Call, prepared: Prepared) -> None:
        """Note that the exchange is over, and look at what was asked, if nobody did."""
        assert call.sent_at is not None
        call.upstream = perf_counter() - call.sent_at
        self.look(call, prepared)

    def look(self, call: Call, prepared: Prepared) -> None:
        """Look at a real-time body, for metrics, if nobody did."""
        if (unseen := prepared.unseen) is not None:
            prepared.unseen = None
            prepared.site.classifier.look(call, prepared.asked, unseen)

    def forwarded(self, call: Call, answer: Answer) -> None:
        """Note that a call has its answer."""
        call.outcome = "forwarded"
        if is_fault(answer):
            self._metrics.upstream_fault(call.label)

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
        keep_alive = self.may_go_on(inbound)
        send(inbound, written, keep_alive=keep_alive)
        return keep_alive


def _prepared(call: Call, plan: Plan, decision: ClassDecision) -> Prepared:
    call.request_id, call.route = request_id_of(plan.fields), plan.route.prefix
    call.traffic, call.rule, call.flow, call.names_run = decision.traffic, decision.rule, decision.flow, decision.run_id
    return Prepared(plan, Asked(plan.path, plan.fields))
