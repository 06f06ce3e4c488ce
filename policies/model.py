"""The nouns of the gateway, each defined once. See README, Glossary.

Everything here is a value, except `Slot`, the one thing that admission and the upstream share: admission makes it,
the upstream asks it before every write and settles it when the source is done. Only `gateway.slots` makes one.
"""

from collections.abc import Callable, Mapping
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
    HELD = "held"
    RUN_PAUSED = "run_paused"
    UNKNOWN_RUN = "unknown_run"
    NOT_STORABLE = "not_storable"
    STORE_UNAVAILABLE = "store_unavailable"
    LAYOUT_CONFLICT = "layout_conflict"
    SHUTTING_DOWN = "shutting_down"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TLS = "upstream_tls"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_BROKEN = "upstream_broken"


class RunState(StrEnum):
    """How a run stands. `policies.runs` says which changes exist."""

    LOADING = "loading"  #: items may still be added
    READY = "ready"  #: complete, and nothing of it is being sent: it waits for its turn, a window, a slot
    RUNNING = "running"  #: a part of it is being sent
    PAUSED = "paused"  #: stopped until somebody resumes it
    COMPLETED = "completed"  #: every item is settled
    CANCELLED = "cancelled"  #: a person ended it; what was settled stays
    FAILED = "failed"  #: it cannot go on, and never will


class ItemState(StrEnum):
    """How an item stands. The last four are settled: one of them, once."""

    WAITING = "waiting"
    SENT = "sent"  #: it may have reached the source, and nothing is known yet
    DONE = "done"
    REJECTED = "rejected"  #: the answer says that the request cannot succeed as it is
    FAILED = "failed"  #: attempts are used up, or it can never be sent
    IN_DOUBT = "in_doubt"  #: nobody knows whether it reached the source, and it may not be repeated: a person decides


class RunKind(StrEnum):
    """Where a run's items come from."""

    FILE = "file"  #: submitted as a whole
    ASYNC = "async"  #: callers' own calls, stored one by one (`Prefer: respond-async`, `closed: queue`)
    CLIENT = "client"  #: a client loops by itself and tags its calls `X-Bulk-Run`; nothing of it is stored


ALL_SOURCES = "all"
"""What a hold or an interruption of everything names in place of a source."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands against bulk besides the window, by source or `ALL_SOURCES`."""

    held: frozenset[str] = frozenset()  #: a person's stop
    cooling_until: Mapping[str, float] = field(default_factory=dict)  #: boot clock; times that are over mean nothing
    at_most: Mapping[str, int] = field(default_factory=dict)  #: slots while the ramp lasts


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot of a pool that several gateways share, as it stands in their common store."""

    pool: str
    n: int  #: 1 to the pool's cap
    token: int  #: grows with each change of holder
    renewal: int = 0  #: grows while the holder lives
    holder: str = ""  #: empty: released


@dataclass(frozen=True, slots=True)
class WaitingReplica:
    """How long another gateway's oldest caller has waited for a pool."""

    holder: str
    pool: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class LayoutRow:
    """What caps and times the rows stand for; all gateways must agree."""

    digest: str  #: of source -> pool, caps, T and L
    lease_s: float  #: L of those who wrote it
    caps: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SlotBook:
    """All rows as one statement saw them."""

    layout: LayoutRow | None
    rows: tuple[SlotRow, ...]
    waiting: tuple[WaitingReplica, ...] = ()


class StoreDownError(Exception):
    """The store cannot be reached, or did not answer in time. What was asked may or may not have happened."""


class LeaseStore(Protocol):
    """Slots as rows that several gateways share (design section 5). Every method is one transaction.

    Tokens and renewal numbers are compared, never clocks. Each method raises `StoreDownError` when no answer came; what
    was asked may have happened all the same.
    """

    async def observe(self) -> SlotBook:
        """Return everything, as of one moment."""

    async def install(self, layout: LayoutRow, seen: SlotBook) -> bool:
        """Put a layout in place of the one in `seen`, if layout and rows still stand exactly as seen. New rows get a
        holder that nobody is, and a token higher than any before: born occupied. Rows that both layouts have stay
        as they are. Return whether it happened."""

    async def take(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        """Take all of these rows, or none: each must still have the token and renewal number that it was seen with,
        and the layout this digest. Return them as they are now (token + 1, renewal 0), or nothing."""

    async def renew(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        """Raise the renewal number of those of these rows that are still held with the same token, under this digest,
        and return them; release every other row of this holder (a take whose answer was lost)."""

    async def release(self, holder: str, rows: tuple[SlotRow, ...]) -> None:
        """Release those of these rows that are still held with the same token, and wake who waits for their pools."""

    async def wait(self, holder: str, waited_s: Mapping[str, float]) -> tuple[WaitingReplica, ...]:
        """Say for how long the oldest caller here has waited, by pool (none: nobody waits); return the others who wait,
        and have said so within the last second."""

    async def woken(self, timeout_s: float) -> None:
        """Return when a pool's slot was released that somebody waited for, or when the time is over."""


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
    waits_until: float = 0.0  #: until when its caller waits for it; the event loop's clock
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
