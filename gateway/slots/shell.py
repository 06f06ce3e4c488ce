"""The asyncio shell of admission: turns the table's answers into waiting and waking, and holds slots until sources
are done.

Admission of a bulk call, in this order: are we stopping? Does a person hold it? Is the window open, long enough for a
call to this source? Are we cooling down? Is a slot free in each pool? Else wait in turn, unless that would take too long
anyway. A stored item of a run is refused nothing: while something stands against it, it waits aside.

Slots are in memory, or rows that several gateways share (`gateway.slots.keeper`); the table's caps are then the rows
that this gateway has.

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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

from gateway.log import EventLog
from gateway.slots.count import InProgress, PoolStatistics, RefusedError, Statistics
from gateway.slots.deadlines import Deadlines
from gateway.slots.foresight import LONGEST_PREDICTION_S, Foresight, Pacers
from gateway.slots.keeper import Keeper
from gateway.slots.obstacles import Obstacles
from gateway.slots.waiters import Waiter, Waiters
from gateway.slots.window import Terms, Window
from policies.admission import Answer, SlotTable
from policies.leases import Demand
from policies.model import UNCLASSIFIED, Clock, LeaseStore, Reason, Slot, Standing, Ticket
from policies.pools import Layout
from policies.windows import Calendar


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
        leased: bool = False,
    ) -> None:
        """Begin.

        Args:
            cooling_until: what an unclean stop leaves to be waited for, boot clock.
            occupied: what a process before this one left running.
            leased: slots are rows that several gateways share; there are none until `keep` runs.
        """
        self._layout = layout
        self._clock = clock
        self._terms = terms
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._window = Window(calendar, clock, terms, self._window_changed)
        self._obstacles = Obstacles(self._window, clock, cooling_until)
        self._waiters = Waiters()
        self._keeper = self._new_keeper() if leased else None
        self._limits: Mapping[str, int] = {}
        self._table = self._new_table()
        self._tickets = count(1)
        self._deadlines = Deadlines(self._waiters.all, self._time_is_over)
        self._reconsidering: asyncio.TimerHandle | None = None
        self._slots: dict[Ticket, Slot] = {}  # whose place in the table is taken
        self._count = InProgress()
        self._office_hours_starts = 0
        self._foresight = Foresight()
        self._pacers = Pacers(layout)
        for sources, until in occupied:
            self._occupy(sources, until)

    # One call.

    @asynccontextmanager
    async def slot(
        self, sources: frozenset[str], owner: str, *, hold_s: float = 0.0, observe: bool = False, stored: bool = False
    ) -> AsyncIterator[Slot]:
        """Hold a slot in each pool of `sources` for the duration of the block, and until the sources are done.

        Args:
            hold_s: the T of the configuration that the call came under, if that is longer than the one in force.
            observe: nothing is refused and nobody waits; the call is counted, and that is all.
            stored: an item of a run, which waits as long as it takes; only `stop` refuses it.

        Raises:
            RefusedError: the call was turned away; nothing was sent.
        """
        ticket = Ticket(next(self._tickets))
        guard = self._observing_guard() if observe else partial(self._may_start, ticket, sources)
        slot = Slot(ticket, sources, self.pools_of(sources), guard, max(hold_s, self._terms.hold_s))
        pacers = []
        try:
            if stored:
                await self._admit_stored(slot, owner)
            elif not observe:
                await self._admit(slot, owner)
            self._enter(slot, watched=not observe)
            slot.when_settled(partial(self._leave, ticket))  # the next call need not wait until this answer is relayed
            pacers = self._pacers.take(slot.pools)
            for _, pacer in pacers:
                await pacer.acquire()
            yield slot
        finally:
            Pacers.put_back(pacers)
            self._end(ticket, slot)

    def pools_of(self, sources: frozenset[str]) -> tuple[str, ...]:
        """Return the pools in each of which a call to `sources` needs a slot."""
        known = {source for source in sources if source in self._layout}
        return self._layout.needs(known or {UNCLASSIFIED})

    def would_refuse(self, sources: frozenset[str]) -> Reason | None:
        """Say why a call would be refused, or made to wait, if this were not mode observe."""
        if (reason := self.obstacle(sources)) is not None:
            return reason
        slots = self._layout.pools
        full = any(self._count.busy[pool] >= slots[pool].slots for pool in self.pools_of(sources))
        return Reason.QUEUE_TIMEOUT if full else None

    def obstacle(self, sources: frozenset[str]) -> Reason | None:
        """Say what stands against a call besides others that are in progress or wait: no use to claim work then."""
        if self._stopping:
            return Reason.SHUTTING_DOWN
        self._window.refresh()
        pools = self.pools_of(sources)
        return self._obstacle(sources, pools) or (self._keeper.reason(pools) if self._keeper is not None else None)

    def _obstacle(self, sources: frozenset[str], pools: tuple[str, ...]) -> Reason | None:
        if (reason := self._obstacles.reason(sources)) is not None:
            return reason
        return Reason.QUEUE_FULL if self._without_slots(pools) else None

    def _without_slots(self, pools: tuple[str, ...]) -> str:
        """Return a pool that has a share or a setting of 0: whoever waited there would wait for ever."""
        return next((pool for pool in pools if not self._layout.pools[pool].slots), "")

    async def _admit(self, slot: Slot, owner: str) -> None:
        if self._stopping:
            raise RefusedError(Reason.SHUTTING_DOWN)
        self._window.refresh()
        pools = slot.pools
        deadline = self._loop.time() + self._terms.queue_time
        if (refusal := self._obstacles.refusal(slot.sources)) is not None:
            opens_at = self._window.parks_until() if refusal.reason is Reason.OFFICE_HOURS else None
            if opens_at is None:
                raise refusal
            deadline = self._loop.time() + self._window.seconds_to(opens_at) + self._terms.park_time
        elif none := self._without_slots(pools):
            raise RefusedError(Reason.QUEUE_FULL, pool=none, retry_in_s=LONGEST_PREDICTION_S)
        elif self._keeper is not None and (reason := self._keeper.reason(pools)) is not None:
            raise RefusedError(reason)
        else:
            self._refuse_if_hopeless(pools, owner)
        match self._table.arrive(slot.ticket, owner, pools):
            case Answer.FULL:
                pool = self._fullest(pools)
                raise RefusedError(Reason.QUEUE_FULL, pool=pool, retry_in_s=self._predicted(pools, owner))
            case Answer.WAITING:
                waiter = self._new_waiter(slot, owner)
                self._deadlines.add(deadline, slot.ticket)
                if self._keeper is not None:
                    self._keeper.wake()
                await self._waiters.turn(waiter)
            case Answer.GRANTED:
                self._bind(slot)

    async def _admit_stored(self, slot: Slot, owner: str) -> None:
        if self._stopping:
            raise RefusedError(Reason.SHUTTING_DOWN)
        waiter = self._new_waiter(slot, owner, stored=True)
        waiter.aside = True
        self._reconsider_one(waiter)
        await self._waiters.turn(waiter)

    def _new_waiter(self, slot: Slot, owner: str, *, stored: bool = False) -> Waiter:
        return self._waiters.add(Waiter(self._loop.create_future(), self._loop.time(), slot, owner, stored))

    def _reconsider(self) -> None:
        """Something was put in the way of stored items, or taken out of it."""
        for waiter in self._waiters.stored():
            self._reconsider_one(waiter)
        if self._reconsidering is not None:
            self._reconsidering.cancel()
            self._reconsidering = None
        if (end := self._obstacles.next_end_s()) is not None:
            self._reconsidering = self._loop.call_later(end + 0.001, self._reconsider)

    def _reconsider_one(self, waiter: Waiter) -> None:
        if waiter.turn.done():
            return
        aside = self._obstacle(waiter.slot.sources, waiter.slot.pools) is not None
        if aside and not waiter.aside:
            waiter.aside = True
            self._wake(self._table.leave(waiter.slot.ticket))
        elif waiter.aside and not aside:
            waiter.aside = False
            self._line_up(waiter)

    def _line_up(self, waiter: Waiter) -> bool:
        """Have somebody who has waited wait in the table; return whether a slot was granted at once."""
        slot = waiter.slot
        answer = self._table.arrive(slot.ticket, waiter.owner, slot.pools, bounded=False, stored=waiter.stored)
        if answer is Answer.GRANTED:
            self._wake((slot.ticket,))
        elif self._keeper is not None:
            self._keeper.wake()
        return answer is Answer.GRANTED

    def _time_is_over(self, ticket: Ticket) -> None:
        waiter = self._waiters.all[ticket]
        if waiter.turn.done():
            return
        pools = waiter.slot.pools
        reason = self._keeper.reason(pools) if self._keeper is not None else None
        if reason is not None:
            waiter.turn.set_exception(RefusedError(reason))
            return
        wait = self._predicted(pools, waiter.owner)
        waiter.turn.set_exception(RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait))

    def _enter(self, slot: Slot, *, watched: bool) -> None:
        self._slots[slot.ticket] = slot
        if above := self._count.enter(slot.pools, self._slots_of_pools() if watched else None):
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
        if self._keeper is not None:
            self._keeper.unbind(ticket)
            self._set_caps()  # before it leaves: its row may be promised to another gateway
        self._wake(self._table.leave(ticket))

    def _wake(self, granted: Iterable[Ticket]) -> None:
        for ticket in granted:
            waiter = self._waiters.all[ticket]
            self._bind(waiter.slot)
            # Done already: cancelled, timed out or refused, and about to leave and pass its slot on.
            if not waiter.turn.done():
                waiter.turn.set_result(None)

    def _bind(self, slot: Slot) -> None:
        if self._keeper is not None:
            self._keeper.bind(slot.ticket, slot.pools)

    def _learn(self, slot: Slot, took_s: float) -> None:
        for source in slot.sources:
            self._window.learn(source, took_s)
        self._foresight.learn(slot.pools, took_s)

    # What speaks against it.

    def _may_start(self, ticket: Ticket, sources: frozenset[str], now: float) -> bool:
        """Guard a slot: the window is open, its rows are good, and, before the first byte, no cap was lowered and nobody
        held the source since the slot was given."""
        slot = self._slots.get(ticket)
        if slot is None:
            return False
        begun = slot.started_at is not None
        if not begun:
            if any(self._count.busy[pool] > self._at_most(pool) for pool in slot.pools):
                return False
            if not self._obstacles.let_begin(sources):
                return False
        if self._keeper is not None and not self._keeper.may_start(ticket, now, begun=begun):
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

    def _refuse_if_hopeless(self, pools: tuple[str, ...], owner: str) -> None:
        states = self._table.statistics()
        if all(states[pool].in_use + states[pool].reserved < states[pool].cap for pool in pools):
            return
        if (wait := self._predicted(pools, owner)) > self._terms.queue_time:
            raise RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait)

    def _predicted(self, pools: tuple[str, ...], owner: str) -> float:
        return self._foresight.predicted(self._table, self._layout, pools, owner)

    def _fullest(self, pools: Sequence[str]) -> str:
        states = self._table.statistics()
        return max(pools, key=lambda pool: states[pool].waiting)

    # The window.

    def _window_changed(self) -> None:
        window = self._window
        self._log.info("window", open=window.is_open, next_change=window.next_change)
        self._wake(self._table.set_open(window.is_open))
        if not window.is_open and window.parks_until() is None:
            self._waiters.refuse(Reason.OFFICE_HOURS, opens_at=window.opens_at())
        self._reconsider()

    # What stands.

    def adopt_standing(self, standing: Standing) -> None:
        """Know from now on what is held, what cools down, and how many slots a ramp allows."""
        self._obstacles.standing = standing
        self._limits = self._obstacles.limits(self._layout.pools)
        if self._keeper is not None:
            self._keeper.limit(self._limits)
        self._set_caps()
        for waiter in self._waiters.callers():
            refusal = self._obstacles.refusal(waiter.slot.sources)
            if refusal is not None and refusal.reason is not Reason.OFFICE_HOURS:  # whose opening some wait for
                waiter.refuse(refusal)
        self._reconsider()

    def _set_caps(self) -> None:
        for pool, cap in self._caps().items():
            self._wake(self._table.set_cap(pool, cap))

    # Slots that several gateways share.

    async def keep(self, store: LeaseStore) -> None:
        """Hold, renew and share rows for ever, where slots are `leased`."""
        if self._keeper is not None:
            await self._keeper.keep(store)

    async def let_go(self) -> None:
        """When `keep` has been cancelled, and what could end has ended: release what is idle."""
        if self._keeper is not None:
            await self._keeper.let_go()

    def _new_keeper(self) -> Keeper:
        return Keeper(
            self._layout,
            self._terms.hold_s,
            self._clock,
            self._log,
            demand=self._demand,
            callers_s=lambda: self._waiters.callers_s(self._loop.time()),
            changed=self._set_caps,
        )

    def _demand(self) -> Demand:
        total = self._layout.total
        if self._stopping or not self._window.is_open or (total is not None and len(self._slots) >= total):
            return Demand()
        return self._waiters.demand(self._loop.time(), self._table.reservation())

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

    def _slots_of_pools(self) -> dict[str, int]:
        return {name: pool.slots for name, pool in self._layout.pools.items()}

    def _at_most(self, pool: str) -> int:
        return min(self._layout.pools[pool].slots, self._limits.get(pool, self._layout.pools[pool].slots))

    def _caps(self) -> dict[str, int]:
        cap = self._at_most if self._keeper is None else self._keeper.cap
        return {pool: cap(pool) for pool in self._layout.pools}

    def adopt(self, layout: Layout, calendar: Calendar, terms: Terms, *, shared: bool) -> None:
        """Go on under another configuration: one step, in which nobody is let in who would not have been.

        Calls in progress are counted again into the new pools, by source, and run to their end; who waits keeps its
        place and its deadline, and is counted into the new queues even where they are full. A lowered cap stops starts
        at once.

        Args:
            shared: caps are divided between gateways. What is raised here may still be in use at another one, so it
                is counted as taken for T.
        """
        before, self._layout, self._terms = self._slots_of_pools(), layout, terms
        self._window.adopt(calendar, terms)
        self._limits = self._obstacles.limits(layout.pools)
        self._pacers = Pacers(layout)
        granted = [waiter for waiter in self._waiters if waiter.is_granted()]
        for slot in self._slots.values():
            slot.pools = self.pools_of(slot.sources)
        if self._keeper is not None:
            for waiter in granted:
                self._keeper.unbind(waiter.slot.ticket)
            self._keeper.adopt(layout, terms.hold_s)
            for ticket, slot in self._slots.items():
                self._keeper.recount(ticket, slot.pools)
        self._table = self._new_table()
        for ticket, slot in self._slots.items():
            self._table.occupy(ticket, slot.pools)
        self._count.recount(slot.pools for slot in self._slots.values())
        if shared:
            self._occupy_what_was_raised(before)
        for waiter in (*granted, *[waiter for waiter in self._waiters if not waiter.turn.done()]):
            waiter.slot.pools = self.pools_of(waiter.slot.sources)
            if not waiter.aside and not self._line_up(waiter) and waiter.turn.done():
                waiter.turn = self._loop.create_future()
        self._window_changed()

    def _occupy_what_was_raised(self, before: Mapping[str, int]) -> None:
        until = self._clock.boot() + self._terms.hold_s
        for pool, cap in self._slots_of_pools().items():
            sources = frozenset(sorted(self._layout.pools[pool].sources)[:1])
            for _ in range(cap - before.get(pool, 0)):
                self._occupy(sources, until)

    def stop(self) -> None:
        """Admit no more, and refuse everybody who waits. Calls in progress go on."""
        self._stopping = True
        self._waiters.refuse(Reason.SHUTTING_DOWN, everybody=True)

    def close(self) -> None:
        """Stop following the window."""
        self._window.close()
        self._deadlines.close()
        if self._reconsidering is not None:
            self._reconsidering.cancel()

    def held(self) -> tuple[tuple[frozenset[str], float], ...]:
        """Return what sources may still be working on, and until when by the boot clock."""
        return tuple((slot.sources, slot.busy_until) for slot in self._slots.values() if slot.busy_until is not None)

    def statistics(self) -> Statistics:
        """Return how admission stands."""
        self._window.refresh()
        oldest = self._waiters.callers_s(self._loop.time())
        held = self._keeper.rows() if self._keeper is not None else {}
        pools = {
            name: PoolStatistics(
                self._layout.pools[name].slots,
                self._count.busy[name],
                self._count.peak[name],
                state.callers,
                oldest.get(name, 0.0),
                held.get(name, 0),
            )
            for name, state in self._table.statistics().items()
        }
        return Statistics(
            pools,
            self._window.is_open,
            self._window.next_change,
            self._obstacles.cooling_s(),
            self._count.violations,
            self._office_hours_starts,
            store_up=self._keeper.store_up if self._keeper is not None else None,
            layout_conflict=self._keeper is not None and self._keeper.conflict,
        )
