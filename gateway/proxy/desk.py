"""The desk for stored calls: a bulk call is taken in and a promise given (202); its answer is handed out when asked.

A call is taken in because its caller asks (`Prefer: respond-async`), or because bulk may not start now and the site
says `closed: queue`. Its answer lies at `/.gateway/async/<id>` on every traffic listener.

Rules that always hold:
- 202 says that the call is durable. Whatever keeps it from being so is said instead, as a refusal.
- A promise cannot be taken for an answer of the BCSS: it says that it is the gateway's, in its body and in the decision
  field.
- Only a POST with a body is stored, and no call of a client-driven run: its client paces and counts it itself.

Never sends a call; the runner does.
"""

import json
from collections.abc import Callable

from gateway.inbound import Inbound
from gateway.log import EventLog
from gateway.packing import StoredAnswer, StoredRequest, storable
from gateway.proxy.calls import Call, request_id_of
from gateway.proxy.fetching import NoAnswer, Waiting, fetched, handle_of, location_of
from gateway.proxy.kept import Behind
from gateway.proxy.prefer import APPLIED, without_async
from gateway.proxy.refusing import NotKeptError, plain, problem, send
from gateway.proxy.site import BulkCall, Site
from gateway.proxy.storing import Storable, Storing, has_no_credentials, is_stale
from gateway.proxy.wire import answer_head, request_fields, unsound
from gateway.records import LaneKey
from gateway.soap import FaultAnswer
from gateway.store.interface import StoreError
from policies.model import Clock, Reason, Refusal, StoreDownError

_ACCEPTED = b"Accepted"
_MEANWHILE = "The store does not answer, or is not open yet. Nothing was stored: send the call again."
_PERHAPS = (
    "The store did not answer: the call may have been stored all the same, and would then be carried out. Send it "
    "again only if its operation changes nothing."
)


class Desk:
    """Takes calls in and hands answers out. One for all listeners."""

    def __init__(self, clock: Clock, log: EventLog, behind: Behind) -> None:
        self._clock = clock
        self._log = log
        self._behind = behind
        self._storing = Storing(clock.wall)

    # Taking in.

    async def take_in(self, call: Call, bulk: BulkCall) -> tuple[FaultAnswer, tuple[bytes, ...]]:
        """Store a call; return the promise to its caller, as an answer and additional lines.

        Raises:
            NotKeptError: it was not stored.
        """
        prepared, site = bulk.prepared, bulk.prepared.site
        upstream = site.settings.upstreams[prepared.plan.route.upstream]
        why = has_no_credentials(prepared.asked, upstream) or await is_stale(prepared.asked, bulk.body)
        if why:
            raise NotKeptError(Reason.NOT_STORABLE, why)
        kept = self._behind()
        if kept is None:
            raise NotKeptError(Reason.STORE_UNAVAILABLE, _MEANWHILE)
        now = self._clock.wall()
        stored = Storable(
            bulk.identity,
            call.flow,
            prepared.plan.route.prefix,
            site.day(now),
            LaneKey(
                prepared.plan.route.prefix,
                tuple(sorted(bulk.sources)),
                repeatable=prepared.asked.kind == "read",
                service=call.service,
            ),
            StoredRequest(
                prepared.plan.target, without_async(storable(prepared.fields.forwarded)), bulk.body, bulk.method
            ),
        )
        try:
            place = await self._storing.store(kept, stored, site.settings.runs)
        except StoreDownError as error:
            raise NotKeptError(Reason.STORE_UNAVAILABLE, _PERHAPS) from error
        except StoreError as error:
            self._log.error("call not stored", what=str(error), remedy="Do what it says.")
            raise NotKeptError(Reason.STORE_UNAVAILABLE, _MEANWHILE) from error
        call.run = place.run
        opens_at = site.opens_at(now)
        if opens_at is None:
            kept.wake()
        location = location_of(place.handle)
        extra: tuple[bytes, ...] = (b"Location: " + location.encode("ascii"),)
        if bulk.prefers_async:
            extra = (*extra, APPLIED)
        said = {"run": place.run, "location": location, "requestId": call.request_id}
        return _promise(site, said, site.refuser.ask_again_in(opens_at)), extra

    # Handing out.

    async def serve(self, inbound: Inbound, call: Call, site: Site, target: bytes, goes_on: Callable[[], bool]) -> bool:
        """Answer what is asked of the gateway itself; return whether the connection goes on.

        Raises:
            ClientGoneError: there is nobody to write to.
        """
        fields = request_fields(inbound.headers, None)
        call.request_id = request_id_of(fields)
        call.rule = "answer of a stored call"
        if wrong := unsound(fields, speaks_11=inbound.speaks_11):
            call.status = 400
            return plain(inbound, 400, f"The request cannot be read: {wrong}.", call.request_id)
        handle = handle_of(target)
        if handle is None:
            call.status = 404
            return plain(inbound, 404, "The gateway keeps /.gateway/ for itself; nothing is here.", call.request_id)
        if inbound.method not in (b"GET", b"HEAD"):
            call.status = 405
            what = "An answer can be fetched with GET. A stored call is cancelled with its run, by an operator."
            return self._say(inbound, problem(405, what, call.request_id), goes_on(), (b"Allow: GET, HEAD",))
        return await self._fetch(inbound, call, site, handle, goes_on)

    async def _fetch(self, inbound: Inbound, call: Call, site: Site, handle: str, goes_on: Callable[[], bool]) -> bool:
        kept = self._behind()
        try:
            found = await fetched(kept, handle, site.classifier.identity_of(inbound)) if kept is not None else None
        except StoreDownError:
            found = None
        if found is None:
            call.outcome, call.reason = "refused", Reason.STORE_UNAVAILABLE
            hint = "The store does not answer, or is not open yet. What was stored is kept: ask again."
            refusal = Refusal(Reason.STORE_UNAVAILABLE, call.request_id, hint=hint)
            written = site.refuser.written(site.refuser.timed(refusal, retry_in_s=None), None)
            call.status = written.status
            return self._say(inbound, written, goes_on())
        call.outcome = "fetched"
        if isinstance(found, StoredAnswer):
            call.status = found.status
            return await _handed_out(inbound, found, keep_alive=goes_on() and inbound.speaks_11)
        call.run = found.run
        if isinstance(found, NoAnswer):
            call.status = found.status
            if found.status >= 500:
                self._log.warning("no answer of a stored call", run=found.run, status=found.status)
            return self._say(inbound, problem(found.status, found.what, call.request_id), goes_on())
        call.status = 202
        return self._say(inbound, self._not_yet(site, found, handle, call.request_id), goes_on())

    def _not_yet(self, site: Site, found: Waiting, handle: str, request_id: str) -> FaultAnswer:
        opens_at = site.opens_at(self._clock.wall())
        said = {
            "run": found.run,
            "runState": str(found.run_state),
            "location": location_of(handle),
            "requestId": request_id,
        }
        return _promise(site, said, site.refuser.ask_again_in(opens_at))

    def _say(self, inbound: Inbound, written: FaultAnswer, keep_alive: bool, extra: tuple[bytes, ...] = ()) -> bool:
        send(inbound, written, keep_alive=keep_alive, extra=extra)
        return keep_alive


def _promise(site: Site, said: dict[str, str], seconds: int) -> FaultAnswer:
    body = json.dumps({"origin": "gateway", "state": "waiting", **said, "retryAfter": seconds}).encode("ascii")
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Retry-After", b"%d" % seconds),
    ]
    if site.settings.answers.decision_header:
        headers.append((b"X-Gateway-Decision", b"stored; class=bulk; state=waiting"))
    return FaultAnswer(202, _ACCEPTED, tuple(headers), body)


async def _handed_out(inbound: Inbound, answer: StoredAnswer, *, keep_alive: bool) -> bool:
    """Write a stored answer as it came; only framing is ours."""
    has_body = answer.status >= 200 and answer.status not in (204, 304)
    has_length = any(name.lower() == b"content-length" for name, _ in answer.headers)
    extra: tuple[bytes, ...] = ()
    if has_body and not has_length:  # it came chunked, or until its connection closed
        extra = (b"Content-Length: %d" % len(answer.body),)
    if not keep_alive:
        extra = (*extra, b"Connection: close")
    version = b"1.1" if inbound.speaks_11 else b"1.0"
    head = answer_head(version, answer.status, answer.reason, list(answer.headers), extra)
    inbound.write(head, *((answer.body,) if has_body and inbound.method != b"HEAD" else ()))
    await inbound.drain()
    return keep_alive
