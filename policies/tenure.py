"""What one gateway knows of the shared slots, holds of them, and does about them next.

It is told what came of each statement (`observed`, `took`, `renewed`, ...), which calls begin and end under its rows
(`bind`, `unbind`), and who waits; `next_step` says what to do next: renew first, then let go, look, replace a layout,
take, tell others who waits here. The rules are those of `policies.leases`.

Rules that always hold: a row counts as ours from the answer to its take until it is found lost, or until just before
its release is sent; two calls never share one; what cannot be known (an answer that was lost) counts against us.

Pure, like the rules. Every statement must be answered, or reported `lost`, before the next step is asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from policies.leases import (
    HEARSAY_S,
    IDLE_S,
    LOOK_S,
    STICKY_S,
    Announce,
    Demand,
    Install,
    Observe,
    Place,
    Release,
    Renew,
    Rest,
    Sighting,
    Step,
    Take,
    Times,
    good_until,
    is_free,
    kept_places,
    may_replace,
    may_start,
    next_places,
    sighted,
)
from policies.model import LayoutRow, SlotBook, SlotRow, Ticket, WaitingReplica


@dataclass(slots=True)
class _Held:
    row: SlotRow
    holder: str
    good_until: float
    taken_at: float
    idle_since: float
    ticket: Ticket | None = None  #: the call that is in progress under it
    leaving: bool = False  #: promised to another gateway


class Leases:
    """What one gateway knows and holds under one layout. Each statement of a `Step` is answered before the next."""

    def __init__(self, layout: LayoutRow, times: Times, holder: str) -> None:
        self.layout = layout
        self.limits: Mapping[str, int] = {}  #: slots while the ramp lasts, by pool
        self.closing = False  #: takes and renews no more; lets go of what is idle
        self._caps = dict(layout.caps)
        self._times = times
        self._holder = holder
        self._holders = {holder}
        self._held: dict[Place, _Held] = {}
        self._book: SlotBook | None = None  # as it was last read
        self._rows: dict[Place, SlotRow] = {}  # the same, and what our own statements made of it
        self._sightings: dict[Place, Sighting] = {}
        self._look = True
        self._retry_at = 0.0
        self._looked_at = 0.0
        self._renewed_at: dict[str, float] = {}  # by holder
        self._elsewhere: tuple[WaitingReplica, ...] = ()
        self._heard_at = 0.0
        self._given: Counter[str] = Counter()  # rows released since, by pool
        self._announced = False
        self._was_installed = False
        self._other_since: float | None = None  # since when the layout is another one
        self._spared_until = 0.0  # the layout that took the place of ours

    # What it knows.

    def inherit(self, before: "Leases") -> None:
        """Know what another tenure of this process saw: since when each row stands as it stands."""
        self._sightings = dict(before._sightings)

    def conflict_s(self, now: float) -> float:
        """Return for how long the store's layout has been another one, beyond the time that a change takes."""
        if self._other_since is None:
            return 0.0
        return max(0.0, now - self._other_since - self._times.renew_s)

    def _agrees(self) -> bool:
        return (
            self._book is not None and self._book.layout is not None and self._book.layout.digest == self.layout.digest
        )

    def rows(self) -> Mapping[str, int]:
        """Return how many rows are held, by pool."""
        return {pool: sum(place[0] == pool for place in self._held) for pool in self._caps}

    def idle(self, pool: str, now: float) -> int:
        """Return under how many more rows of a pool a call may begin."""
        return sum(self._is_usable(held, now) for held in self._in(pool))

    def is_empty(self) -> bool:
        """Say whether nothing is held."""
        return not self._held

    def _in(self, pool: str) -> Iterable[_Held]:
        return (held for place, held in self._held.items() if place[0] == pool)

    def _is_usable(self, held: _Held, now: float) -> bool:
        if held.ticket is not None or held.leaving or self.closing:
            return False
        return held.row.n <= self._limit(held.row.pool) and may_start(now, held.good_until, self._times)

    def _limit(self, pool: str) -> int:
        return min(self._caps.get(pool, 0), self.limits.get(pool, self._caps.get(pool, 0)))

    # Calls under rows.

    def bind(self, ticket: Ticket, pools: Iterable[str], now: float) -> tuple[Place, ...]:
        """Give a call a row in each pool, the one that is good for longest; return them. Fewer than pools: a row went
        bad since the grant, and the call may not start."""
        bound: list[Place] = []
        for pool in pools:
            usable = [held for held in self._in(pool) if self._is_usable(held, now)]
            if usable:
                best = max(usable, key=lambda held: held.good_until)
                best.ticket = ticket
                bound.append((pool, best.row.n))
        return tuple(bound)

    def may_start(
        self, ticket: Ticket, places: Iterable[Place], now: float, *, begun: bool, hold_s: float = 0.0
    ) -> bool:
        """Guard a call: each of its rows is still ours, and good for its own T (`hold_s`) too. One that has `begun` may
        go on above the ramp."""
        for place in places:
            held = self._held.get(place)
            if held is None or held.ticket != ticket or not may_start(now, held.good_until, self._times, hold_s):
                return False
            if not begun and held.row.n > self._limit(place[0]):
                return False
        return True

    def unbind(
        self, ticket: Ticket, places: Iterable[Place], now: float, callers_s: Callable[[], Mapping[str, float]]
    ) -> bool:
        """Say that a call is over; return whether there is a row to release, for somebody who has waited longer
        elsewhere than the oldest caller here (asked only if anybody waits elsewhere)."""
        leaving = False
        here_s = callers_s() if self._elsewhere else {}
        for place in places:
            held = self._held.get(place)
            if held is None or held.ticket != ticket:  # lost since
                continue
            held.ticket, held.idle_since = None, now
            is_sticky = now - held.taken_at < STICKY_S
            if self.closing or (not is_sticky and self._owed(place[0], now, here_s.get(place[0], 0.0)) > 0):
                held.leaving = leaving = True
        return leaving

    def _owed(self, pool: str, now: float, here_s: float) -> int:
        """Return how many rows of a pool others have waited for longer than anybody here, besides those on their
        way."""
        on_their_way = self._given[pool] + sum(held.leaving for held in self._in(pool))
        return self._older(pool, now, here_s) - on_their_way

    def _older(self, pool: str, now: float, here_s: float) -> int:
        since = now - self._heard_at
        if since > HEARSAY_S:
            return 0
        return sum(
            other.pool == pool and other.holder not in self._holders and other.waited_s + since >= max(STICKY_S, here_s)
            for other in self._elsewhere
        )

    # What to do next.

    def next_step(self, now: float, demand: Demand) -> Step:
        """Return the next thing to do. It must be answered (or `lost`) before the next is asked for."""
        return (
            self._renewing(now)
            or self._letting_go(now, demand)
            or self._looking(now, demand)
            or self._installing(now)
            or self._taking(now, demand)
            or self._announcing(now, demand)
            or Rest(self._rest_s(now, demand))
        )

    def _letting_go(self, now: float, demand: Demand) -> Release | None:
        for held in self._held.values():
            if held.ticket is None and self._is_to_go(held, now, demand):
                held.leaving = True
        going = [held for held in self._held.values() if held.leaving]
        going = [held for held in going if held.holder == going[0].holder]
        for held in going:
            del self._held[held.row.pool, held.row.n]
            self._given[held.row.pool] += 1
        if going:
            return Release(going[0].holder, tuple(held.row for held in going))
        strays = [row for row in self._rows.values() if self._is_stray(row)]
        return (
            Release(strays[0].holder, tuple(row for row in strays if row.holder == strays[0].holder))
            if strays
            else None
        )

    def _is_to_go(self, held: _Held, now: float, demand: Demand) -> bool:
        """Say whether a row without a call is to be let go."""
        pool = held.row.pool
        if self.closing or held.leaving or held.row.n > self._limit(pool):
            return True
        if pool in demand.reserved:
            kept = pool in kept_places(demand.needs, demand.reserved, demand.waited_s)
            return not kept and self._owed(pool, now, 0.0) > 0
        if pool in demand.singles:  # about to be used, if it is good
            return False
        return now - held.idle_since >= IDLE_S or self._owed(pool, now, 0.0) > 0

    def _is_stray(self, row: SlotRow) -> bool:
        if row.holder not in self._holders:
            return False
        held = self._held.get((row.pool, row.n))
        return held is None or held.row.token != row.token

    def _renewing(self, now: float) -> Renew | None:
        if self.closing:
            return None
        for holder in {held.holder: None for held in self._held.values()}:
            if now - self._renewed_at[holder] >= self._times.renew_s:
                return Renew(holder, tuple(held.row for held in self._held.values() if held.holder == holder))
        return None

    def _looking(self, now: float, demand: Demand) -> Observe | None:
        if self.closing:
            return None
        return Observe() if self._look or now - self._looked_at >= self._look_every(demand) else None

    def _look_every(self, demand: Demand) -> float:
        return LOOK_S if demand else self._times.renew_s

    def _installing(self, now: float) -> Install | None:
        if self.closing or self._book is None or self._agrees():
            return None
        if now < max(self._retry_at, self._spared_until) or not may_replace(self._book, self._sightings, now):
            return None
        return Install(self.layout, self._book)

    def _taking(self, now: float, demand: Demand) -> Take | None:
        if self.closing or now < self._retry_at or not self._agrees():
            return None
        if demand.needs:
            free = {
                pool: self._free(pool, now, max(self._here_s(pool, demand), demand.waited_s)) for pool in demand.needs
            }
            had = demand.reserved | {pool for pool in demand.needs if self.idle(pool, now)}
            places = next_places(demand.needs, had, {pool for pool in free if free[pool]}, demand.waited_s)
            if places:
                return Take(self._holder, tuple(free[pool][0] for pool in places))
        for pool, wanted in demand.singles.items():
            lacking = max(0, wanted - self.idle(pool, now))
            if rows := self._free(pool, now, self._here_s(pool, demand))[:lacking]:
                return Take(self._holder, rows)
        return None

    def _free(self, pool: str, now: float, here_s: float) -> tuple[SlotRow, ...]:
        """Return the rows of a pool that may be taken, less those that others have waited for longer."""
        rows = tuple(
            row
            for place, row in sorted(self._rows.items())
            if row.pool == pool and row.n <= self._limit(pool) and place not in self._held
            if is_free(row, self._sightings[place], now, self._times.lease_s)
        )
        return rows[: max(0, len(rows) - self._older(pool, now, here_s))]

    def _here_s(self, pool: str, demand: Demand) -> float:
        """Return for how long a pool is waited for here, as told to others: stored items count where none has a row."""
        if pool in demand.callers_s:
            return demand.callers_s[pool]
        return 0.0 if any(self._in(pool)) else demand.stored_s.get(pool, 0.0)

    def _announcing(self, now: float, demand: Demand) -> Announce | None:
        if self.closing or self._book is None or now - self._heard_at < STICKY_S:
            return None
        if not demand and not self._held and not self._announced:
            return None
        waited_s = {pool: self._here_s(pool, demand) for pool in {*demand.callers_s, *demand.stored_s}}
        return Announce(self._holder, {pool: waited for pool, waited in waited_s.items() if waited})

    def _rest_s(self, now: float, demand: Demand) -> float:
        if self.closing:
            return self._times.renew_s
        due = [self._looked_at + self._look_every(demand)]
        due += [self._renewed_at[held.holder] + self._times.renew_s for held in self._held.values()]
        if demand or self._held or self._announced:
            due.append(self._heard_at + STICKY_S)
        return max(0.001, min(due) - now)

    # What came of it.

    def observed(self, book: SlotBook, received_at: float) -> None:
        """All rows were read."""
        self._book, self._look, self._looked_at = book, False, received_at
        self._rows = {(row.pool, row.n): row for row in book.rows}
        self._sightings = {
            place: sighted(self._sightings.get(place), row, received_at) for place, row in self._rows.items()
        }
        for place, held in list(self._held.items()):
            row = self._rows.get(place)
            if row is None or (row.token, row.holder) != (held.row.token, held.holder):
                self._lose(place)  # taken over: our own renewals must have failed for long
        if self._agrees() or book.layout is None:
            self._other_since = None
        elif self._other_since is None:
            self._other_since = received_at
        if self._agrees():
            self._was_installed = True
        elif self._was_installed and book.layout is not None:
            # Somebody put another in place of ours. It may live for a while, or the two would chase each other.
            self._was_installed = False
            self._spared_until = received_at + book.layout.lease_s

    def renewed(self, step: Renew, rows: Iterable[SlotRow], sent_at: float) -> None:
        """Rows were renewed, as far as they are among `rows`; the others are lost."""
        self._renewed_at[step.holder] = sent_at
        again = {(row.pool, row.n): row for row in rows}
        for row in step.rows:
            place = row.pool, row.n
            if place in again:
                self._held[place].row = self._rows[place] = again[place]
                self._held[place].good_until = good_until(sent_at, self._times)
            else:
                self._lose(place)
                self._look = True

    def _lose(self, place: Place) -> None:
        if self._held[place].ticket is None:
            del self._held[place]
        else:  # kept in mind until the call is over, but good for nothing, unless a renewal says that it is ours
            self._held[place].good_until = -inf

    def took(self, step: Take, rows: Iterable[SlotRow], sent_at: float) -> None:
        """Rows were taken; none: somebody was faster, or the layout is another one."""
        self._look = True
        if all(held.holder != step.holder for held in self._held.values()):
            self._renewed_at[step.holder] = sent_at
        for row in rows:
            self._look = False
            place = row.pool, row.n
            self._rows[place] = row
            self._held[place] = _Held(row, step.holder, good_until(sent_at, self._times), sent_at, sent_at)
        if self._look:
            self._retry_at = sent_at + STICKY_S / 4

    def released(self, step: Release) -> None:
        """Rows were released."""
        for row in step.rows:
            self._rows.pop((row.pool, row.n), None)
        self._look = True

    def installed(self, *, done: bool, sent_at: float) -> None:
        """Our layout was installed, or not."""
        self._look = True
        if not done:
            self._retry_at = sent_at + LOOK_S

    def heard(self, step: Announce, elsewhere: tuple[WaitingReplica, ...], received_at: float) -> None:
        """Others said who waits."""
        self._elsewhere, self._heard_at, self._announced = elsewhere, received_at, bool(step.waited_s)
        self._given.clear()

    def look(self) -> None:
        """Something was released: read all rows."""
        self._look = True

    def lost(self, step: Step, holder: str) -> None:
        """No answer came: it may have happened, or may happen yet. `holder`: an id that nobody has had."""
        self._look = True
        match step:
            case Take() | Renew() if step.holder == self._holder:
                self._holder = holder
                self._holders.add(holder)
            case Release():
                self.released(step)
            case _:
                pass
