"""The nouns of the gateway, each defined once. See README, Glossary.

Everything here is a value, except `Slot`, the one thing that admission and the upstream share: admission makes it,
the upstream asks it before every write and settles it when the source is done. Only `gateway.slots` makes one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType, Protocol

Ticket = NewType("Ticket", int)
"""One bulk call's place in the books, from its arrival until it leaves."""

UNCLASSIFIED = "unclassified"
"""The pool, and the label, of bulk whose sources are not known."""


class Clock(Protocol):
    """The two times that the gateway uses. `gateway.app` makes the real one; the demo shifts the wall."""

    def boot(self) -> float:
        """Return seconds since the machine booted, suspend included (CLOCK_BOOTTIME). The only clock of the cap."""

    def wall(self) -> datetime:
        """Return the instant by the host's wall clock, with its zone. The only clock of the windows."""


class TrafficClass(StrEnum):
    """Whether somebody is waiting at a screen."""

    REALTIME = "realtime"  #: goes straight through: no slot, no queue, no window
    BULK = "bulk"  #: obeys the windows and the caps


class SoapVersion(StrEnum):
    """Which SOAP a message speaks; decides how a refusal looks."""

    SOAP_11 = "1.1"
    SOAP_12 = "1.2"


class Style(StrEnum):
    """How a message names what it asks for."""

    SOA = "soa"  #: new style: the Body's first child is the operation
    SSDN = "ssdn"  #: classic style: a document as text inside `xmlString`, with one or several ServiceRequests
    UNKNOWN = "unknown"  #: neither, or unsound


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a message asks for."""

    name: str  #: SOA: local name of the Body's first child; SSDN: the ServiceId
    namespace: str = ""  #: SOA only
    version: str = ""  #: SSDN only
    inner: str = ""  #: SSDN `XMLite` only: the element inside `Data/XML`, as `{namespace}name`

    def __str__(self) -> str:
        if self.namespace:
            return f"{{{self.namespace}}}{self.name}"
        return "/".join(part for part in (self.name, self.version, self.inner) if part)


@dataclass(frozen=True, slots=True)
class Digest:
    """All that classification may look at in a message. Holds no personal data."""

    style: Style
    soap: SoapVersion | None = None  #: None: not an envelope
    operations: tuple[Operation, ...] = ()
    choices: frozenset[tuple[str, str]] = frozenset()  #: (path of local names below the operation, text)
    unsound: str = ""  #: why the message was not understood, for people; empty when it was


@dataclass(frozen=True, slots=True)
class Source:
    """An authentic source."""

    name: str  #: the slug used in configuration, metrics and logs
    sector: str = ""  #: official sector number, where there is one
    title: str = ""
    base: bool = False  #: data of the BCSS and of the National Register, whose cap is 4 and not 2


class Reason(StrEnum):
    """Why the gateway answers a call itself. A closed list: metrics, faults and documentation share it."""

    OFFICE_HOURS = "office_hours"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    COOLING_DOWN = "cooling_down"
    UNKNOWN_RUN = "unknown_run"
    SHUTTING_DOWN = "shutting_down"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TLS = "upstream_tls"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BROKEN = "upstream_broken"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the gateway tells a caller whose call it does not forward, or whose upstream failed."""

    reason: Reason
    request_id: str
    source: str = ""
    pool: str = ""
    opens_at: datetime | None = None  #: exact, for `office_hours`
    retry_at: datetime | None = None  #: never earlier than the call can succeed; None: do not retry as it is
    retry_after_s: int | None = None  #: the same in whole seconds from now, rounded up
    hint: str = ""  #: what to do next, in English, without personal data


@dataclass(slots=True, eq=False)
class Slot:
    """Leave to have one bulk call in progress.

    The upstream must ask `may_start` in the last synchronous step before *every* write, and call `settle` once the
    source cannot be working on the call any more: its answer's last byte came, or not one byte was written.
    A slot that is left unsettled stays occupied until `busy_until`.
    """

    ticket: Ticket
    sources: frozenset[str]
    pools: tuple[str, ...]
    guard: Callable[[float], bool]  #: window open and lease good at this boot-clock time
    hold_s: float  #: T: for how long the source may work after the last check, seconds
    busy_until: float | None = None  #: boot clock; None: the source is not working on this call
    started_at: float | None = None  #: boot clock at the first check that passed
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def may_start(self, now: float) -> bool:
        """Say whether a byte of this call may be written at boot-clock time `now`; if so, count the source as busy."""
        if not self.guard(now):
            return False
        self.busy_until = now + self.hold_s
        if self.started_at is None:
            self.started_at = now
        return True

    def settle(self) -> None:
        """Say that the source is done. Harmless when repeated."""
        self.busy_until = None
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def when_settled(self, listener: Callable[[], None]) -> None:
        """Call `listener` once, when the slot is settled."""
        self._listeners.append(listener)
