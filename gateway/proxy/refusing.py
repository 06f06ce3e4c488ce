"""Answers that the gateway gives itself: when to come back, as what, and not too soon.

Rules that always hold:
- A time to come back is never earlier than the call can succeed, and never the same for everybody: jitter is added, so
  that a thousand callers refused at 08:00 do not return in the one second of 17:00:00.
- A refusal of bulk is answered no earlier than `delay` after the call arrived, so that a naive loop does not turn
  its whole file into rejects within minutes. The number of refusals that wait is bounded; past it they are answered
  at once.
- The text never holds anything of the message, and nothing here decides to refuse.
"""

import asyncio
import json
import math
from datetime import datetime, timedelta
from http import HTTPStatus
from random import Random

from gateway.inbound import ClientGoneError, Inbound
from gateway.proxy.wire import answer_head
from gateway.slots import RefusedError
from gateway.soap import FaultAnswer, FaultForm, answer
from gateway.upstream import UpstreamError
from policies.model import Clock, Reason, Refusal, SoapVersion

OPENING_JITTER_S = 300.0
"""Over how long the callers refused in office hours are spread after the opening: a cap of 4 takes minutes to serve
them."""
_LEAST_WAIT_S = {
    Reason.QUEUE_FULL: 5.0,
    Reason.QUEUE_TIMEOUT: 2.0,
    Reason.COOLING_DOWN: 1.0,
    Reason.STORE_UNAVAILABLE: 10.0,  # a database's fail-over, and the gateway's next attempt
    Reason.LAYOUT_CONFLICT: 60.0,  # replicas are being replaced by others with another configuration
    Reason.SHUTTING_DOWN: 30.0,  # a restart with its drain (25 s) is over by then
}
"""The shortest time to come back, seconds, for reasons that pass by themselves. A hold and a pause do not: a person
ends them."""
OF_RUNS = {
    Reason.UNKNOWN_RUN: "No client-driven run of this client has that id, or it has ended: `bcss-gateway runs open`.",
    Reason.RUN_PAUSED: "Nothing was sent. An operator resumes the run: `bcss-gateway runs resume`.",
    Reason.STORE_UNAVAILABLE: "Nothing was sent: how the run stands is not known while the store does not answer.",
}
"""What to do when a call may not join the run that it names."""
PASSES = frozenset({Reason.OFFICE_HOURS, Reason.COOLING_DOWN, Reason.HELD})
"""Refusals that a stored call sits out, under `closed: queue`. A full queue is over in seconds, and a call that waits
for it is better sent by its caller."""
AGAIN_S = 5.0
"""How soon to ask again for the answer of a stored call that may be sent any time."""


class NotKeptError(Exception):
    """A call was not stored. `hint` says what to do."""

    def __init__(self, reason: Reason, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint

    def instead_of(self, passes: RefusedError | None) -> tuple[RefusedError, str]:
        """Return the refusal of the call, and its hint. What would have passed by itself stays the reason where the
        call can never be stored: it may still be sent when bulk opens."""
        if passes is not None and self.reason is Reason.NOT_STORABLE:
            return passes, f"It was not stored to be sent later. {self.hint}"
        return RefusedError(self.reason), self.hint


class Refuser:
    """Builds and sends the gateway's own answers."""

    def __init__(self, form: FaultForm, clock: Clock, dice: Random, *, delay_s: float, at_most: int) -> None:
        self._form = form
        self._clock = clock
        self._dice = dice
        self._delay_s = delay_s
        self._at_most = at_most
        self._waiting = 0

    def timed(self, refusal: Refusal, *, retry_in_s: float | None) -> Refusal:
        """Add when to come back, with jitter, to a refusal whose reason passes by itself."""
        now = self._clock.wall()
        if refusal.opens_at is not None:
            retry_at = refusal.opens_at + timedelta(seconds=self._dice.uniform(0, OPENING_JITTER_S))
        elif refusal.reason in _LEAST_WAIT_S:
            least = max(_LEAST_WAIT_S[refusal.reason], retry_in_s or 0.0)
            retry_at = now + timedelta(seconds=least * self._dice.uniform(1.0, 1.5))
        else:
            return refusal
        seconds = max(1, math.ceil((retry_at - now).total_seconds()))
        return Refusal(
            reason=refusal.reason,
            request_id=refusal.request_id,
            source=refusal.source,
            pool=refusal.pool,
            opens_at=refusal.opens_at,
            retry_at=retry_at,
            retry_after_s=seconds,
            hint=refusal.hint,
        )

    def ask_again_in(self, opens_at: datetime | None) -> int:
        """Return after how many seconds to ask again for an answer that cannot come before `opens_at`; None: it can
        come any time."""
        if opens_at is None:
            return math.ceil(AGAIN_S * self._dice.uniform(1.0, 1.5))
        wait_s = (opens_at - self._clock.wall()).total_seconds()
        return max(1, math.ceil(wait_s + AGAIN_S + self._dice.uniform(0, OPENING_JITTER_S)))

    def written(self, refusal: Refusal, soap: SoapVersion | None) -> FaultAnswer:
        """Write the answer as the caller's SOAP stack understands it."""
        return answer(refusal, soap=soap, form=self._form)

    async def hold_back(self, age_s: float) -> None:
        """Wait until a refused bulk call that arrived `age_s` seconds ago is old enough to be answered."""
        if self._waiting >= self._at_most or age_s >= self._delay_s:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(self._delay_s - age_s)
        finally:
            self._waiting -= 1


def send(inbound: Inbound, written: FaultAnswer, *, keep_alive: bool, extra: tuple[bytes, ...] = ()) -> None:
    """Write an answer of ours; cut the connection if a part of another answer is on its way already.

    Raises:
        ClientGoneError: there is nobody to write to, or the answer had begun.
    """
    if inbound.sent:
        inbound.cut()
        raise ClientGoneError
    lines = extra if keep_alive else (*extra, b"Connection: close")
    version = b"1.1" if inbound.speaks_11 else b"1.0"
    head = answer_head(version, written.status, written.reason_phrase, list(written.headers), lines)
    inbound.write(head if inbound.method == b"HEAD" else head + written.body)


def what_to_do(trouble: UpstreamError) -> str:
    """Return the hint of an answer about the upstream."""
    if trouble.bytes_written:
        return "The call may have reached the source: repeat it only if its operation changes nothing."
    return "Nothing was sent: the call may be repeated once the upstream can be reached."


def plain(inbound: Inbound, status: int, what: str, request_id: str) -> bool:
    """Answer what is not a call that the gateway can take; return whether the connection goes on (it does not).

    Raises:
        ClientGoneError: as for `send`.
    """
    send(inbound, problem(status, what, request_id), keep_alive=False)
    return False


def problem(status: int, what: str, request_id: str = "") -> FaultAnswer:
    """Write an `application/problem+json` (RFC 9457) for what has no reason of the closed list."""
    phrase = HTTPStatus(status).phrase
    fields = {"title": phrase, "status": status, "detail": what, "origin": "gateway"}
    body = json.dumps(fields | ({"requestId": request_id} if request_id else {})).encode()
    headers = ((b"Content-Type", b"application/problem+json"), (b"Content-Length", b"%d" % len(body)))
    return FaultAnswer(status=status, reason_phrase=phrase.encode("ascii"), headers=headers, body=body)


def malformed_answer(status: int, what: str) -> bytes:
    """Write the whole answer to what could not be read as a request, or to a defect of ours (500)."""
    text = (
        "The gateway met a defect; its log says where." if status >= 500 else f"The request could not be read: {what}"
    )
    written = problem(status, text)
    return (
        answer_head(b"1.1", status, written.reason_phrase, list(written.headers), (b"Connection: close",))
        + written.body
    )
