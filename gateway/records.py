"""What the store takes and gives: runs, lanes, items, results, holds, interruptions. Values, the same for both engines.

A run's items lie in *lanes*: one for each (route, set of sources, repeatable or not), so that what stands behind each
other needs the same slots. In a lane an item has a *position* (0, 1, 2 ... without holes), in its run a *sequence
number* (its place in what was submitted, from 0). Work is claimed as *batches*, ranges of positions; nothing is written
for an item that waits. An item is settled by the one row that says how it ended.

Rules that always hold:
- Bodies, answers and client keys arrive sealed (`gateway.sealing`) and leave so: the store never sees what is in them.
- Counts of a run equal its rows, in every transaction.
- Times that must survive a restart are instants of the store's own clock; what is told is seconds from now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from policies.model import ItemState, RunKind, RunState

RETENTION_S = 30 * 24 * 3600.0
"""How long after its end a run is purged, where its option `retention_s` does not say."""
GATEWAY = "gateway"
"""The author of what no person did."""
ONLY_DOUBT = "in doubt"
"""Why the gateway paused a run: nothing is left of it but what a person has to decide."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made, in state `loading`."""

    public_id: str  #: 32 hex digits, random: names the run to people and in URLs
    kind: RunKind
    name: str  #: for people; no personal data
    author: str
    wrapped_key: bytes  #: its data key, wrapped by the institution's
    route: str = ""  #: prefix of the route that items go by, where they do not say so themselves
    client: str = ""  #: client-driven: the flow that may use it; async: tag of the caller's identity
    priority: int = 5  #: 0 to 9, lower first
    not_before: datetime | None = None
    max_attempts: int = 5
    options: Mapping[str, object] = field(default_factory=dict)  #: JSON: `retention_s`; async: `day`; reject ratio ...
    idempotency_key: str = ""  #: a second run of the same author with the same key is the first one


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items are settled, and how."""

    done: int = 0
    rejected: int = 0
    failed: int = 0
    in_doubt: int = 0

    @property
    def settled(self) -> int:
        """Return how many are settled."""
        return self.done + self.rejected + self.failed + self.in_doubt


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it stands."""

    id: int
    public_id: str
    kind: RunKind
    name: str
    author: str
    route: str
    client: str
    state: RunState
    reason: str  #: of the last change of state
    changed_by: str
    changed_at: datetime
    created_at: datetime
    priority: int
    not_before: datetime | None
    max_attempts: int
    options: Mapping[str, object]
    wrapped_key: bytes | None  #: None: purged
    dictionary: bytes | None  #: for compression, sealed
    received: int  #: entries of the submission that were read, duplicates included: where an upload goes on
    total: int
    counts: Counts
    attempts: int  #: calls made
    started_at: datetime | None = None
    ended_at: datetime | None = None
    purge_after: datetime | None = None

    @property
    def waiting(self) -> int:
        """Return how many items are not settled."""
        return self.total - self.counts.settled


def is_paused_for_doubt(run: RunRecord) -> bool:
    """Say whether the gateway paused a run because only items in doubt were left of it: no person stopped it."""
    return run.state is RunState.PAUSED and (run.changed_by, run.reason) == (GATEWAY, ONLY_DOUBT)


def takes_over(run: RunRecord, to: RunState, author: str) -> bool:
    """Say whether a person's pause takes the place of the gateway's own: from then on only a person ends it."""
    return to is RunState.PAUSED and run.state is to and run.changed_by == GATEWAY != author


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What the items of a lane have in common."""

    route: str
    sources: tuple[str, ...]  #: sorted; empty: unclassified
    repeatable: bool  #: declared idempotent: may be repeated when its fate is unknown
    service: str = ""  #: for people


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be stored."""

    seq: int
    lane: LaneKey
    sealed: bytes  #: the request
    key_tag: bytes = b""  #: 16 octets, keyed hash of the client key; empty: none was given
    sealed_key: bytes = b""  #: the client key
    handle: str = ""  #: 32 hex digits, random: the name under which the answer can be fetched; empty: none


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of items that were added."""

    added: int
    duplicates: int
    received: int  #: of the run, as it now is
    places: Mapping[int, tuple[int, int]] = field(default_factory=dict)  #: seq -> (lane id, position), where asked for


@dataclass(frozen=True, slots=True)
class LaneWork:
    """What is left to be done in a lane whose run may go on."""

    lane_id: int
    run_id: int
    public_id: str
    key: LaneKey
    priority: int
    unclaimed: int  #: positions never claimed
    due: int  #: returned items whose time has come
    in_batches: int  #: batches that exist, of any holder


@dataclass(frozen=True, slots=True)
class Batch:
    """Work of one process: fresh positions `lo` to `hi`, or returned items (`again`)."""

    batch_id: int
    lane_id: int
    run_id: int
    token: int
    lo: int
    hi: int  #: excluded
    armed: int  #: positions below it may be sent: committed before the first of them is
    again: bool = False


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item of a batch, to be sent."""

    lane_id: int
    position: int
    seq: int
    sealed: bytes
    attempts: int  #: made before this one


@dataclass(frozen=True, slots=True)
class Result:
    """How an item ended."""

    batch_id: int
    lane_id: int
    position: int
    attempts: int  #: made, this one included
    state: ItemState  #: one of the settled ones
    status: int = 0  #: HTTP; 0: no answer
    code: str = ""  #: business status, fault code or reason of ours
    took_ms: int = 0
    sealed: bytes = b""  #: the answer: status line, header and body


@dataclass(frozen=True, slots=True)
class Returned:
    """An item that waits again."""

    batch_id: int
    lane_id: int
    position: int
    attempts: int  #: made so far
    delay_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one group commit writes, all in one transaction."""

    holder: str
    results: Sequence[Result] = ()
    returned: Sequence[Returned] = ()
    armed: Mapping[int, int] = field(default_factory=dict)  #: batch id -> new mark
    finished: Sequence[int] = ()  #: batches of which nothing is left


@dataclass(frozen=True, slots=True)
class Settled:
    """What it came to."""

    states: Mapping[int, RunState]  #: run id -> state, of every run that was touched
    lost: frozenset[int] = frozenset()  #: batches that are not this holder's any more: drop what was not sent
    stored: int = 0  #: results that were the first for their item


@dataclass(frozen=True, slots=True)
class BatchSighting:
    """A batch as an observer sees it."""

    batch_id: int
    holder: str
    token: int
    renewal: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a batch that nobody works on any more came to."""

    again: int = 0  #: items that wait again
    in_doubt: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A person's stop."""

    scope: str  #: `all`, or `source:<name>`
    author: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class InterruptionRecord:
    """What stopped bulk for a source, and when it may go on."""

    source: str  #: `all` for every source
    number: int  #: grows with each interruption
    reason: str
    since_s: float  #: seconds ago
    cool_s: float  #: how long the cool-down lasts in all, counted from then
    skipped_by: str = ""  #: who ended the cool-down early
    ramp_s: float = 0.0  #: seconds since the ramp began (again), 0 while cooling


@dataclass(frozen=True, slots=True)
class Controls:
    """What stands against bulk, for all replicas."""

    revision: int  #: grows with every change of holds and interruptions
    now: datetime = field(compare=False)  #: by the store's clock
    holds: Sequence[Hold] = ()
    interruptions: Sequence[InterruptionRecord] = ()


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """A settled item, for people and for downloads."""

    seq: int
    lane_id: int
    position: int
    state: ItemState
    attempts: int
    status: int
    code: str
    took_ms: int
    at: datetime
    service: str
    sealed_answer: bytes = b""
    sealed_key: bytes = b""
    sealed_request: bytes = b""  #: only where asked for


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who changed what."""

    id: int
    at: datetime
    author: str
    action: str
    subject: str
    detail: str
