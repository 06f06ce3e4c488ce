"""When a shared slot may be taken, used, renewed and let go: several gateways, one cap, one store.

A slot is a row `(pool, n)` with a holder, a token that grows with each change of holder and a renewal number that grows
while the holder lives. Whoever holds a row may begin calls under it as long as its own renewals prove that nobody can
have taken it over. Rules, each with its reason; `tests/policies/test_lease_model.py` takes them out one by one and
shows what breaks:

1. A row may be taken when it was released, or when token *and* renewal number stood unchanged for L by the taker's own
   boot clock. No clock is ever compared with another machine's, nor with the store's.
2. A sighting is timed *after* its answer arrived; a take and a renewal *before* they were sent. So the taker's L ends
   after the holder's L, whatever the network does in between.
3. A call may begin while `now + T + margin <= good until`: it is over before the row can be anybody else's.
4. A holder's id is random, and an id under which an answer was lost takes nothing more: a statement that comes too
   late, from a connection long given up, then finds nothing to harm. Rows of our own that we do not know (a take whose
   answer was lost) are released as soon as they are seen.
5. Everybody agrees on the layout (source -> pool, caps, T and L), or gets no row. It is replaced when every row was
   released, or stood unchanged for the L of those who wrote it. New rows are born occupied, since a layout before it
   may have had calls where they are now.
6. A call for several pools takes all its rows at once or none; after a second of waiting it takes them one by one in
   the order of their names, keeping what it has. What it got out of that order it gives up to whoever waits elsewhere:
   one total order, so no deadlock.
7. A row is kept over successive calls, and idle for a while; but a gateway whose caller has waited longer gets it
   after 100 ms.

Pure: the rules, and the words for what may be done next. `policies.tenure` keeps what one gateway knows and holds, and
says what to do; `gateway.slots.keeper` does it. Never waits, never talks to a store, never asks a clock.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from policies.model import LayoutRow, SlotBook, SlotRow
from policies.pools import Layout

STICKY_S = 0.1
"""For how long a row stays where it is while another gateway's caller has waited longer. 100 ms: 0.92 of the slots'
time in calls; handing over after each call gives 0.79 (measured)."""
ONE_BY_ONE_S = 1.0
"""After how long a call for several pools takes rows one by one."""
IDLE_S = 5.0
"""For how long a row without calls is kept: a batch that pauses finds it again, and a crash strands fewer."""
LOOK_S = 0.25
"""How often all rows are read while somebody waits and none is free: a missed awakening costs no more."""
HEARSAY_S = 1.0
"""For how long it counts that another gateway said it waits."""

Place = tuple[str, int]
"""Pool and n of a row."""


@dataclass(frozen=True, slots=True)
class Times:
    """Design, section 5. Seconds."""

    hold_s: float  #: T: for how long a source may work on a call after the last check
    renew_s: float = 5.0  #: R
    margin_s: float = 1.0

    @property
    def lease_s(self) -> float:
        """L: two renewals may fail, and a third be late, before a call has to wait."""
        return self.hold_s + 3 * self.renew_s + self.margin_s


@dataclass(frozen=True, slots=True)
class Sighting:
    """Since when a row is known to stand as it stands."""

    token: int
    renewal: int
    since: float


def sighted(before: Sighting | None, row: SlotRow, received_at: float) -> Sighting:
    """Return a row's sighting after it was seen once more, in an answer that arrived at `received_at`."""
    if before is not None and (before.token, before.renewal) == (row.token, row.renewal):
        return before
    return Sighting(row.token, row.renewal, received_at)


def is_free(row: SlotRow, sighting: Sighting, now: float, lease_s: float) -> bool:
    """Say whether nobody can be using a row: it was released, or its holder has not renewed it for L."""
    return not row.holder or now - sighting.since >= lease_s


def good_until(sent_at: float, times: Times) -> float:
    """Return until when a row is surely ours, if a take or renewal that was sent at `sent_at` succeeded."""
    return sent_at + times.lease_s


def may_start(now: float, good: float, times: Times, hold_s: float = 0.0) -> bool:
    """Say whether a byte of a call may be written: it will be over before the row can be anybody else's. `hold_s`: its
    own T, which may be longer where a reload has shortened the others'."""
    return now + max(times.hold_s, hold_s) + times.margin_s <= good


def may_replace(book: SlotBook, sightings: Mapping[Place, Sighting], now: float) -> bool:
    """Say whether the layout in the store may give way to another: nobody can have a call under it."""
    layout = book.layout
    if layout is None:
        return True
    return all(is_free(row, sightings[row.pool, row.n], now, layout.lease_s) for row in book.rows)


def next_places(needs: tuple[str, ...], had: Set[str], free: Set[str], waited_s: float) -> tuple[str, ...]:
    """Return in which pools a call for several takes a row now, of those where one is `free`: all that it lacks, or,
    once it has waited, the first that it lacks in the order of names."""
    lacking = tuple(pool for pool in sorted(needs) if pool not in had)
    if all(pool in free for pool in lacking):
        return lacking
    return lacking[:1] if waited_s >= ONE_BY_ONE_S and lacking[0] in free else ()


def kept_places(needs: tuple[str, ...], had: Set[str], waited_s: float) -> frozenset[str]:
    """Return in which pools a call for several keeps what it has reserved, whoever waits elsewhere: where it has a row
    in every pool before, by name."""
    if waited_s < ONE_BY_ONE_S:
        return frozenset()
    kept: set[str] = set()
    for pool in sorted(needs):
        if pool not in had:
            break
        kept.add(pool)
    return frozenset(kept)


def layout_text(layout: Layout, times: Times) -> str:
    """Return what all gateways must agree on, as a text to be digested."""
    pools = sorted((name, pool.slots, sorted(pool.sources)) for name, pool in layout.pools.items())
    return f"{pools} total={layout.total} T={times.hold_s} L={times.lease_s}"


# What to do next.


@dataclass(frozen=True, slots=True)
class Observe:
    """Read all rows."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew rows."""

    holder: str
    rows: tuple[SlotRow, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Release rows. They are forgotten already: whatever comes back, they are not ours."""

    holder: str
    rows: tuple[SlotRow, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """Put our layout in place of another."""

    layout: LayoutRow
    seen: SlotBook


@dataclass(frozen=True, slots=True)
class Take:
    """Take all of these rows, or none."""

    holder: str
    rows: tuple[SlotRow, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Say for how long callers have waited here, and hear for how long elsewhere."""

    holder: str
    waited_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do for so long, unless something happens."""

    seconds: float


Step = Observe | Renew | Release | Install | Take | Announce | Rest


@dataclass(frozen=True, slots=True)
class Demand:
    """Who waits for a slot here and could begin if there were one."""

    singles: Mapping[str, int] = field(default_factory=dict)  #: calls that need this pool alone
    callers_s: Mapping[str, float] = field(default_factory=dict)  #: how long the oldest caller at the line has waited
    stored_s: Mapping[str, float] = field(default_factory=dict)  #: the oldest stored item
    needs: tuple[str, ...] = ()  #: of the call for several pools that reserves
    reserved: frozenset[str] = frozenset()  #: where it has
    waited_s: float = 0.0

    def __bool__(self) -> bool:
        """Say whether anybody waits."""
        return bool(self.singles or self.needs)
