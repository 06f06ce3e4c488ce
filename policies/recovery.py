"""What follows from an attempt: settled, again, or a person's. When bulk stops by itself, and how it comes back.

Rules that always hold:
- What was surely not sent waits again, however often: it used up nothing.
- A write (what is not declared repeatable) is never repeated when it may have been carried out: it is in doubt.
- Attempts are bounded; what may succeed later is failed when they are used up.
- An answer about authorisation holds the run, and its item waits, since every next call would fail alike.
- A breaker's trip, a cool-down and a ramp are counted from times that come in; nothing here knows a clock or chance.

The recommendation is the BCSS's fourth: pause, resume, recover, wait between an interruption and its resumption, and
keep rejects few.
"""

from collections import deque
from dataclasses import dataclass

from policies.model import ItemState, Reason
from policies.statuses import Kind, Meaning, Statuses

_NOT_ALLOWED = Meaning(Kind.STOP, "not allowed: look at certificate and credentials")
_NOT_THERE = Meaning(Kind.STOP, "there is no such service at this address: look at route and path")
_GAVE_UP = Meaning(Kind.TECHNICAL, "an intermediary gave up: the source may have done it")
_HTTP = {
    401: _NOT_ALLOWED,
    403: _NOT_ALLOWED,
    407: _NOT_ALLOWED,
    404: _NOT_THERE,
    405: _NOT_THERE,
    410: _NOT_THERE,
    429: Meaning(Kind.TECHNICAL, "the upstream asks for fewer calls", not_done=True),
    502: _GAVE_UP,
    503: Meaning(Kind.TECHNICAL, "the upstream takes no calls for the moment"),
    504: _GAVE_UP,
}
_HTTP_CLASS = {
    3: _NOT_THERE,
    4: Meaning(Kind.REJECT, "the upstream does not take the request"),
    5: Meaning(Kind.TECHNICAL, "the upstream failed"),
}
"""What a status of HTTP says where no SOAP message says more."""
_FAULT = {
    "Client": Meaning(Kind.REJECT, "a SOAP fault says that the request is at fault"),
    "Sender": Meaning(Kind.REJECT, "a SOAP fault says that the request is at fault"),
}
_OTHER_FAULT = Meaning(Kind.TECHNICAL, "a SOAP fault")
_GOOD = (Kind.OK, Kind.NOTHING_FOUND)
_SETTLED_BY = {Kind.OK: ItemState.DONE, Kind.NOTHING_FOUND: ItemState.DONE, Kind.REJECT: ItemState.REJECTED}


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What an answer says, in codes only. Made by `gateway.soap.outcome`."""

    http: int
    readable: bool = True  #: it is an envelope that could be read
    fault: str = ""  #: SOAP fault: the local name of its code (Server, Client, Receiver, Sender ...)
    codes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    return_codes: tuple[str, ...] = ()
    ticket: str = ""  #: ticketCBSS, which the BCSS asks for when a problem is reported


@dataclass(frozen=True, slots=True)
class Trouble:
    """There was no answer, or not a whole one."""

    reason: Reason
    bytes_written: bool


@dataclass(frozen=True, slots=True)
class Disposition:
    """What follows from one attempt."""

    state: ItemState  #: WAITING: again
    code: str
    meaning: str
    kind: Kind
    technical: bool = False  #: counts for the source's breaker
    holds_run: bool = False
    counts: bool = True  #: uses up one of the attempts


def disposition(
    fact: AnswerFacts | Trouble, statuses: Statuses, *, repeatable: bool, attempts: int, max_attempts: int
) -> Disposition:
    """Say what follows from an attempt.

    Args:
        repeatable: the operation is declared idempotent.
        attempts: made so far, this one included.
    """
    is_left = attempts < max_attempts
    if isinstance(fact, Trouble):
        code = str(fact.reason)
        if fact.bytes_written:
            return _technical(code, Meaning(Kind.TECHNICAL, "no whole answer came"), repeatable, is_left)
        return Disposition(ItemState.WAITING, code, "nothing was sent", Kind.TECHNICAL, technical=True, counts=False)
    code, said = _said(fact, statuses)
    if said.kind in (Kind.TECHNICAL, Kind.UNKNOWN):
        return _technical(code, said, repeatable, is_left)
    if said.kind is Kind.PARTIAL:  # at last, what there is, is better than nothing
        state = ItemState.WAITING if repeatable and is_left else ItemState.DONE
        return Disposition(state, code, said.text, said.kind, technical=True)
    if said.kind is Kind.STOP:
        return Disposition(ItemState.WAITING, code, said.text, said.kind, holds_run=True, counts=False)
    return Disposition(_SETTLED_BY[said.kind], code, said.text, said.kind)


def _technical(code: str, meaning: Meaning, repeatable: bool, is_left: bool) -> Disposition:
    if not (repeatable or meaning.not_done):
        state = ItemState.IN_DOUBT
    else:
        state = ItemState.WAITING if is_left else ItemState.FAILED
    return Disposition(state, code, meaning.text, meaning.kind, technical=True)


def _said(facts: AnswerFacts, statuses: Statuses) -> tuple[str, Meaning]:
    """Return the code that decides, and what it means: of a fault, a business status, or of HTTP."""
    known = statuses.gravest(facts.codes, facts.values, facts.return_codes)
    if facts.fault:
        if known is not None and known[1].kind not in _GOOD:
            return known
        return (*facts.codes, f"fault {facts.fault}")[0], _FAULT.get(facts.fault, _OTHER_FAULT)
    by_http = _HTTP.get(facts.http) or _HTTP_CLASS.get(facts.http // 100)
    if by_http is not None:
        return f"HTTP {facts.http}", by_http
    if known is not None:
        return known
    if not facts.readable:
        return f"HTTP {facts.http}", Meaning(Kind.UNKNOWN, "the answer is no SOAP message")
    return (*facts.codes, *facts.values, *facts.return_codes, "")[0], Meaning(Kind.OK, "answered")


def backoff_s(attempts: int, first_s: float, longest_s: float, dice: float) -> float:
    """Return the pause before the next attempt, seconds: doubled with each made, capped, and spread over its upper half
    by `dice` (0 to 1), so that what failed together does not return together."""
    pause: float = min(longest_s, first_s * 2.0 ** min(max(attempts, 1) - 1, 60))
    return pause * (0.5 + 0.5 * dice)


def too_many_rejects(done: int, rejected: int, failed: int, ratio: float, minimum: int) -> bool:
    """Say whether so much was rejected, or failed, that a person should look before more is sent."""
    settled = done + rejected + failed
    return settled >= minimum and rejected + failed > ratio * settled


class Breaker:
    """One source's last calls: tells when they are a burst of faults.

    A burst is `faults` technical faults among the last `calls` calls within `within_s` seconds, if they are at least
    half of them (design section 6).
    """

    def __init__(self, faults: int, calls: int, within_s: float) -> None:
        self._faults = faults
        self._within_s = within_s
        self._calls: deque[tuple[float, bool]] = deque(maxlen=calls)

    def note(self, technical: bool, now: float) -> bool:
        """Note how a call ended, at boot-clock time `now`; return whether that makes a burst. Then all is forgotten."""
        self._calls.append((now, technical))
        recent = [one for at, one in self._calls if now - at <= self._within_s]
        faults = sum(recent)
        if not technical or faults < self._faults or faults * 2 < len(recent):
            return False
        self._calls.clear()
        return True


def ramp_slots(since_s: float, step_s: float) -> int:
    """Return how many slots a source may use so long after its ramp began: one, and one more for each step."""
    return 1 + int(max(0.0, since_s) // step_s)
