"""The asyncio shell of admission: turns the table's answers into waiting and waking, and holds slots until sources
are done.

Admission of a bulk call, in this order: are we stopping? Is the window open, long enough for a call to this source?
Are we cooling down after an unclean stop? Is a slot free in each pool? Else wait in turn, unless that would take too
long anyway.

Rules that always hold:
- Only here is a `Slot` made. It is left exactly once: when its block ended and the source is done, or T after its
  last check.
- A slot is handed to a specific waiter; there is no moment in which it is free and nobody's. A waiter that is
  cancelled in the tick of its grant passes it on.
- Every waiter gets an answer: granted, refused with a reason, or cancelled because its caller left.
- The window is asked again by the slot's guard, before every write. While two clocks disagree, both must say open.
- The count that `cap_violations` watches is kept apart from the table's (`gateway.slots.count`).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from gateway.log import EventLog
from gateway.slots.count import InProgress, PoolStatistics, RefusedError, Statistics
from gateway.slots.deadlines import Deadlines
from gateway.slots.window import Terms, Window
from policies.admission import Answer, SlotTable, predicted_wait
from policies.model import UNCLASSIFIED, Clock, Reason, Slot, Ticket
from policies.pools import Layout
from policies.windows import Calendar

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

MEAN_WEIGHT = 0.1
"""Weight of a new duration in a pool's running mean, which predicts waits: the last ten calls or so."""
LONGEST_PREDICTION_S = 3600.0
"""A pool without slots would make a caller come back never; an hour later its configuration may have changed."""


@dataclass(slots=True)
class _Waiter:
    turn: "asyncio.Future[None]"
    since: float
    slot: Slot
    owner: str


def _pacers(layout: Layout) -> "dict[str, deque[AsyncLimiter]]":
    paced = [(pool, pool.rate_per_s) for pool in layout.pools.values() if pool.rate_per_s is not None and pool.slots]
    if not paced:
        return {}
    from aiolimiter import AsyncLimiter  # a fortieth of the time until the gateway is ready, and seldom needed

    return {pool.name: deque(AsyncLimiter(1, pool.slots / rate) for _ in range(pool.slots)) for pool, rate in paced}


def _is_granted(turn: "asyncio.Future[None]") -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None


class Slots:
    """Admission of bulk calls. Made inside the running event loop; `close` when done."""

    def __init__(
        self,
        layout: Layout,
        calendar: Calendar,
        clock: Clock,
        terms: Terms,
        log: EventLog,
        *,
        cooling_until: float | None = None,
        occupied: Iterable[tuple[frozenset[str], float]] = (),
    ) -> None:
        self._layout = layout
        self._clock = clock
        self._terms = terms
        self._log = log
        self._cooling_until = cooling_until
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._window = Window(calendar, clock, terms, self._window_changed)
        self._table = self._new_table()
        self._tickets = count(1)
        self._waiters: dict[Ticket, _Waiter] = {}
        self._deadlines = Deadlines(self._waiters, self._time_is_over)
        self._slots: dict[Ticket, Slot] = {}  # whose place in the table is taken
        self._count = InProgress()
        self._office_hours_starts = 0
        self._mean_s: dict[str, float] = {}
        self._pacers = _pacers(layout)
        for sources, until in occupied:
            self._occupy(sources, until)

    # One call.

    @asynccontextmanager
    async def slot(
        self, sources: frozenset[str], owner: str, *, hold_s: float = 0.0, observe: bool = False
    ) -> AsyncIterator[Slot]:
        """Hold a slot in each pool of `sources` for the duration of the block, and until the sources are done.

        Args:
            hold_s: the T of the configuration that the call came under, if that is longer than the one in force.
            observe: nothing is refused and nobody waits; the call is counted, and that is all.

        Raises:
            RefusedError: the call was turned away; nothing was sent.
        """
        ticket = Ticket(next(self._tickets))
        guard = self._observing_guard() if observe else partial(self._may_start, ticket, sources)
        slot = Slot(ticket, sources, self.pools_of(sources), guard, max(hold_s, self._terms.hold_s))
        try:
            if not observe:
                await self._admit(slot, owner)
            self._enter(slot, watched=not observe)
            slot.when_settled(partial(self._leave, ticket))  # the next call need not wait until this answer is relayed
            for pool in slot.pools:
                if paced := self._pacers.get(pool):
                    paced.rotate(-1)
                    await paced[0].acquire()
            yield slot
        finally:
            self._end(ticket, slot)

    def pools_of(self, sources: frozenset[str]) -> tuple[str, ...]:
        """Return the pools in each of which a call to `sources` needs a slot."""
        known = {source for source in sources if source in self._layout}
        return self._layout.needs(known or {UNCLASSIFIED})

    def would_refuse(self, sources: frozenset[str]) -> Reason | None:
        """Say why a call would be refused, or made to wait, if this were not mode observe."""
        self._window.refresh()
        if not self._window.may_start(sources, self._clock.boot()):
            return Reason.OFFICE_HOURS
        if self._cooling_s() > 0:
            return Reason.COOLING_DOWN
        caps = self._caps()
        full = any(self._count.busy[pool] >= caps[pool] for pool in self.pools_of(sources))
        return Reason.QUEUE_TIMEOUT if full else None

    async def _admit(self, slot: Slot, owner: str) -> None:
        if self._stopping:
            raise RefusedError(Reason.SHUTTING_DOWN)
        self._window.refresh()
        pools = slot.pools
        deadline = self._loop.time() + self._terms.queue_time
        if not self._window.may_start(slot.sources, self._clock.boot()):
            opens_at = self._window.parks_until()
            if opens_at is None:
                raise RefusedError(Reason.OFFICE_HOURS, opens_at=self._window.opens_at())
            deadline = self._loop.time() + self._window.seconds_to(opens_at) + self._terms.park_time
        elif (cooling := self._cooling_s()) > 0:
            raise RefusedError(Reason.COOLING_DOWN, retry_in_s=cooling)
        elif (none := next((pool for pool in pools if not self._layout.pools[pool].slots), None)) is not None:
            # A share or a setting of 0: whoever waited would wait for ever.
            raise RefusedError(Reason.QUEUE_FULL, pool=none, retry_in_s=LONGEST_PREDICTION_S)
        else:
            self._refuse_if_hopeless(pools, owner)
        match self._table.arrive(slot.ticket, owner, pools):
            case Answer.FULL:
                pool = self._fullest(pools)
                raise RefusedError(Reason.QUEUE_FULL, pool=pool, retry_in_s=self._predicted(pools, owner))
            case Answer.WAITING:
                await self._turn(slot, owner, deadline)
            case Answer.GRANTED:
                pass

    async def _turn(self, slot: Slot, owner: str, deadline: float) -> None:
        waiter = _Waiter(self._loop.create_future(), self._loop.time(), slot, owner)
        self._waiters[slot.ticket] = waiter
        self._deadlines.add(deadline, slot.ticket)
        try:
            turn = None
            while turn is not waiter.turn:  # `adopt` may take back what was granted and not yet begun
                turn = waiter.turn
                await turn
        finally:
            del self._waiters[slot.ticket]

    def _time_is_over(self, ticket: Ticket) -> None:
        waiter = self._waiters[ticket]
        if waiter.turn.done():
            return
        pools = waiter.slot.pools
        wait = self._predicted(pools, waiter.owner)
        waiter.turn.set_exception(RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait))

    def _enter(self, slot: Slot, *, watched: bool) -> None:
        self._slots[slot.ticket] = slot
        if above := self._count.enter(slot.pools, self._caps() if watched else None):
            remedy = "Stop bulk, and report this line: it is a defect."
            self._log.error("cap violated", pool=above, in_use=self._count.busy[above], remedy=remedy)

    def _end(self, ticket: Ticket, slot: Slot) -> None:
        if slot.busy_until is None or ticket not in self._slots:
            self._leave(ticket)
        else:  # the source may still be working
            self._expire_at(ticket, slot.busy_until)

    def _expire_at(self, ticket: Ticket, until: float) -> None:
        self._loop.call_later(max(0.0, until - self._clock.boot()), self._expire, ticket, until)

    def _expire(self, ticket: Ticket, until: float) -> None:
        if ticket not in self._slots:
            return
        if self._clock.boot() < until:  # the loop's clock stands while the machine is suspended; the boot clock counts
            self._expire_at(ticket, until)
        else:
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        slot = self._slots.pop(ticket, None)
        if slot is not None:
            self._count.leave(slot.pools)
            if slot.started_at is not None and slot.busy_until is None:
                self._learn(slot, self._clock.boot() - slot.started_at)
        self._wake(self._table.leave(ticket))

    def _wake(self, granted: Iterable[Ticket]) -> None:
        for ticket in granted:
            # Done already: cancelled, timed out or refused, and about to leave and pass its slot on.
            if not (turn := self._waiters[ticket].turn).done():
                turn.set_result(None)

    def _learn(self, slot: Slot, took_s: float) -> None:
        for source in slot.sources:
            self._window.learn(source, took_s)
        for pool in slot.pools:
            mean = self._mean_s.get(pool, took_s)
            self._mean_s[pool] = mean + MEAN_WEIGHT * (took_s - mean)

    # What speaks against it.

    def _may_start(self, ticket: Ticket, sources: frozenset[str], now: float) -> bool:
        """Guard a slot: the window is open and, before the first byte, no cap was lowered since the slot was given."""
        slot = self._slots.get(ticket)
        if slot is None:
            return False
        if slot.started_at is None:
            pools = self._layout.pools
            if any(self._count.busy[pool] > pools[pool].slots for pool in slot.pools):
                return False
        return self._window.may_start(sources, now)

    def _observing_guard(self) -> Callable[[float], bool]:
        counted = False

        def guard(_now: float) -> bool:
            nonlocal counted
            if not counted:
                counted = True
                self._office_hours_starts += not self._window.is_open_by_wall_clock()
            return True

        return guard

    def _cooling_s(self) -> float:
        return max(0.0, (self._cooling_until or 0.0) - self._clock.boot())

    def _refuse_if_hopeless(self, pools: tuple[str, ...], owner: str) -> None:
        states = self._table.statistics()
        if all(states[pool].in_use + states[pool].reserved < states[pool].cap for pool in pools):
            return
        if (wait := self._predicted(pools, owner)) > self._terms.queue_time:
            raise RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait)

    def _predicted(self, pools: tuple[str, ...], owner: str) -> float:
        ahead = self._table.ahead(owner, pools)
        known = [
            predicted_wait(ahead, self._layout.pools[pool].slots, self._mean_s[pool])
            for pool in pools
            if pool in self._mean_s
        ]
        return min(max(known, default=0.0), LONGEST_PREDICTION_S)

    def _fullest(self, pools: Sequence[str]) -> str:
        states = self._table.statistics()
        return max(pools, key=lambda pool: states[pool].waiting)

    # The window.

    def _window_changed(self) -> None:
        window = self._window
        self._log.info("window", open=window.is_open, next_change=window.next_change)
        self._wake(self._table.set_open(window.is_open))
        if not window.is_open and window.parks_until() is None:
            self._refuse_waiters(Reason.OFFICE_HOURS, window.opens_at())

    def _refuse_waiters(self, reason: Reason, opens_at: datetime | None = None) -> None:
        for waiter in self._waiters.values():
            if not waiter.turn.done():
                waiter.turn.set_exception(RefusedError(reason, opens_at=opens_at))

    # Beginning and end.

    def _occupy(self, sources: frozenset[str], until: float) -> None:
        ticket = Ticket(next(self._tickets))
        slot = Slot(ticket, sources, self.pools_of(sources), lambda _now: False, self._terms.hold_s, busy_until=until)
        self._table.occupy(ticket, slot.pools)
        self._slots[ticket] = slot
        self._count.recount(one.pools for one in self._slots.values())
        self._expire_at(ticket, until)

    def _new_table(self) -> SlotTable:
        return SlotTable(
            self._caps(),
            queue_length=self._terms.queue_length,
            park_length=self._terms.park_length,
            total=self._layout.total,
            is_open=self._window.is_open,
        )

    def _caps(self) -> dict[str, int]:
        return {name: pool.slots for name, pool in self._layout.pools.items()}

    def adopt(self, layout: Layout, calendar: Calendar, terms: Terms, *, shared: bool) -> None:
        """Go on under another configuration: one step, in which nobody is let in who would not have been.

        Calls in progress are counted again into the new pools, by source, and run to their end; who waits keeps its
        place and its deadline, and is counted into the new queues even where they are full. A lowered cap stops starts
        at once.

        Args:
            shared: caps are divided between gateways. What is raised here may still be in use at another one, so it
                is counted as taken for T.
        """
        before, self._layout, self._terms = self._caps(), layout, terms
        self._window.adopt(calendar, terms)
        self._pacers = _pacers(layout)
        self._table = self._new_table()
        for ticket, slot in self._slots.items():
            slot.pools = self.pools_of(slot.sources)
            self._table.occupy(ticket, slot.pools)
        self._count.recount(slot.pools for slot in self._slots.values())
        if shared:
            self._occupy_what_was_raised(before)
        granted = [waiter for waiter in self._waiters.values() if _is_granted(waiter.turn)]
        waiting = [waiter for waiter in self._waiters.values() if not waiter.turn.done()]
        for waiter in (*granted, *waiting):
            slot = waiter.slot
            slot.pools = self.pools_of(slot.sources)
            is_granted = self._table.arrive(slot.ticket, waiter.owner, slot.pools, bounded=False) is Answer.GRANTED
            if is_granted:
                self._wake((slot.ticket,))
            elif waiter.turn.done():
                waiter.turn = self._loop.create_future()
        self._window_changed()

    def _occupy_what_was_raised(self, before: Mapping[str, int]) -> None:
        until = self._clock.boot() + self._terms.hold_s
        for pool, cap in self._caps().items():
            sources = frozenset(sorted(self._layout.pools[pool].sources)[:1])
            for _ in range(cap - before.get(pool, 0)):
                self._occupy(sources, until)

    def stop(self) -> None:
        """Admit no more, and refuse everybody who waits. Calls in progress go on."""
        self._stopping = True
        self._refuse_waiters(Reason.SHUTTING_DOWN)

    def close(self) -> None:
        """Stop following the window."""
        self._window.close()
        self._deadlines.close()

    def held(self) -> tuple[tuple[frozenset[str], float], ...]:
        """Return what sources may still be working on, and until when by the boot clock."""
        return tuple((slot.sources, slot.busy_until) for slot in self._slots.values() if slot.busy_until is not None)

    def statistics(self) -> Statistics:
        """Return how admission stands."""
        self._window.refresh()
        now = self._loop.time()
        oldest: dict[str, float] = {}
        for waiter in self._waiters.values():
            for pool in waiter.slot.pools:
                oldest.setdefault(pool, now - waiter.since)
        pools = {
            name: PoolStatistics(
                state.cap, self._count.busy[name], self._count.peak[name], state.waiting, oldest.get(name, 0.0)
            )
            for name, state in self._table.statistics().items()
        }
        return Statistics(
            pools,
            self._window.is_open,
            self._window.next_change,
            self._cooling_s(),
            self._count.violations,
            self._office_hours_starts,
        )
