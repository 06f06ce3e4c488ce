"""What follows from an attempt: settled, again, or a person's. When bulk stops by itself, and how it comes back.

Rules that always hold:
- What was surely not sent waits again, however often: it used up nothing.
- A write (what is not declared repeatable) is never repeated when it, or a part of it, may have been carried out: it is
  in doubt.
- Attempts are bounded. When they are used up, what may succeed later is failed; what was answered in part is done, with
  the kind partial.
- An answer about authorisation holds the run, and its item waits, since every next call would fail alike.
- Only what is the source's or the way's own trouble counts for its breaker: our stops, and rejects, do not.
- A breaker's trip, a cool-down and a ramp are counted from times that come in; nothing here knows a clock or chance.

The recommendation is the BCSS's fourth: pause, resume, recover, wait between an interruption and its resumption, and
keep rejects few.
"""

from collections import deque
from dataclasses import dataclass, replace

from policies.model import ItemState, Reason
from policies.statuses import GOOD, Kind, Meaning, Said, Status, Statuses

_UPSTREAM = frozenset(
    {Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TLS, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_BROKEN}
)
_SETTLED_BY = {Kind.OK: ItemState.DONE, Kind.NOTHING_FOUND: ItemState.DONE, Kind.REJECT: ItemState.REJECTED}
_NO_MESSAGE = Meaning(Kind.UNKNOWN, "the answer is no SOAP message")
_ANSWERED = Meaning(Kind.OK, "answered")


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What an answer says, in codes only. Made by `gateway.soap.outcome`."""

    http: int
    readable: bool = True  #: it is an envelope that could be read
    fault: str = ""  #: SOAP fault: the local name of its code (Server, Client, Receiver, Sender ...)
    codes: tuple[str, ...] = ()  #: of a fault: its subcodes, and the codes in its detail
    whole: Status | None = None
    parts: tuple[Status, ...] = ()  #: of single sources, or of single services of an SSDN message
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
        code, is_technical = str(fact.reason), fact.reason in _UPSTREAM
        if fact.bytes_written:
            said = Said(code, Meaning(Kind.TECHNICAL, "no whole answer came"))
            return _again(said, repeatable=repeatable, is_left=is_left, technical=is_technical)
        waits = ItemState.WAITING
        return Disposition(waits, code, "nothing was sent", Kind.TECHNICAL, technical=is_technical, counts=False)
    said = _said(fact, statuses)
    if said.kind in _SETTLED_BY:
        return Disposition(_SETTLED_BY[said.kind], said.code, said.meaning.text, said.kind)
    if said.kind is not Kind.STOP:
        return _again(said, repeatable=repeatable, is_left=is_left, technical=True)
    held = _again(said, repeatable=repeatable, is_left=True, technical=False)
    return replace(held, holds_run=True, counts=False)


def _again(said: Said, *, repeatable: bool, is_left: bool, technical: bool) -> Disposition:
    if said.may_be_done and not repeatable:
        state = ItemState.IN_DOUBT
    elif is_left:
        state = ItemState.WAITING
    else:  # at last, a part of the answer is better than none
        state = ItemState.DONE if said.kind is Kind.PARTIAL else ItemState.FAILED
    return Disposition(state, said.code, said.meaning.text, said.kind, technical)


def _said(facts: AnswerFacts, statuses: Statuses) -> Said:
    """Return what decides: a known reason code, a fault, a status of HTTP, any business status; in that order."""
    if facts.fault:
        said: Said | None = statuses.of_fault(facts.fault, facts.codes)
    else:
        said = statuses.of_answer(facts.whole, facts.parts)
    by_http = statuses.of_http(facts.http)
    is_trouble = by_http is not None and by_http.kind not in GOOD
    if said is not None:
        if said.kind not in GOOD and said.is_precise:
            return said
        if not is_trouble or (facts.fault and not statuses.is_telling(facts.http)):
            return said
    if by_http is not None and (is_trouble or not facts.readable):
        return by_http
    if not facts.readable:
        return Said(f"HTTP {facts.http}", _NO_MESSAGE)
    shown = [code for one in (facts.whole, *facts.parts) if one for code in (*one.codes, one.return_code, one.value)]
    return Said(next(filter(None, shown), ""), _ANSWERED)


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
