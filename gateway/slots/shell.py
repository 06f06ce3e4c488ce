"""Slots for bulk calls: each is asked for, used and left here, and held until its source is done.

Admission of a bulk call, in this order: are we stopping? Does a person hold it? Is the window open, long enough for a
call to this source? Are we cooling down? Is a slot free in each pool? Else wait in turn, unless that would take too
long anyway (`gateway.slots.line`). A stored item of a run is refused nothing: it waits.

Slots are in memory, or rows that several gateways share (`gateway.slots.keeper`).

Rules that always hold:
- Only here is a `Slot` made. It is left exactly once: when its block ended and the source is done, or T after its
  last check.
- The window, and the rows of a shared slot, are asked again by the slot's guard before every write; holds and
  cool-downs, and whether a cap was lowered, before the first. While two clocks disagree, both must say open.
- The count that `cap_violations` watches is kept apart from the table's (`gateway.slots.count`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count

from gateway.log import EventLog
from gateway.slots.count import InProgress, PoolStatistics, RefusedError, Statistics
from gateway.slots.foresight import Pacers
from gateway.slots.keeper import Keeper
from gateway.slots.line import Line, Rules
from gateway.slots.obstacles import Obstacles
from gateway.slots.window import Terms, Window
from policies.leases import Demand, Times
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
        standing_known: bool = True,
        times: Callable[[float], Times] = Times,
    ) -> None:
        """Begin.

        Args:
            cooling_until: what an unclean stop leaves to be waited for, boot clock.
            occupied: what a process before this one left running.
            leased: slots are rows that several gateways share; there are none until `keep` runs.
            standing_known: False: what persons hold is to be read first; bulk waits for `standing_is_known`.
            times: of shared slots, for a T; only tests have others than the design's.
        """
        self._layout = layout
        self._clock = clock
        self._terms = terms
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._window = Window(calendar, clock, terms, self._window_changed)
        self._obstacles = Obstacles(self._window, clock, cooling_until)
        self.times = times
        self._keeper = self._new_keeper() if leased else None
        self._line = Line(Rules(layout, terms), self._window, self._obstacles, self._keeper)
        self._tickets = count(1)
        self._slots: dict[Ticket, Slot] = {}  # whose place in the table is taken
        self._timers: dict[Ticket, asyncio.TimerHandle] = {}  # of those that a source may be working on
        self._count = InProgress()
        self._office_hours_starts = 0
        self._pacers = Pacers(layout)
        self._standing_known = standing_known
        self._standing_told = asyncio.Event()
        for sources, until in occupied:
            self._occupy(sources, until)

    # One call.

    @asynccontextmanager
    async def slot(
        self,
        sources: frozenset[str],
        owner: str,
        *,
        hold_s: float = 0.0,
        observe: bool = False,
        stored: bool = False,
        again: Slot | None = None,
    ) -> AsyncIterator[Slot]:
        """Hold a slot in each pool of `sources` for the duration of the block, and until the sources are done.

        Args:
            hold_s: the T of the configuration that the call came under, if that is longer than the one in force.
            observe: nothing is refused and nobody waits; the call is counted, and that is all.
            stored: an item of a run, which waits as long as it takes; only `stop` refuses it.
            again: the slot that the call had, and whose guard said no before the first byte: it goes to the head of
                its queue, and waits no longer than it would have.

        Raises:
            RefusedError: the call was turned away; nothing was sent.
        """
        if not (observe or stored or self._standing_known):  # whoever sends stored items has read it
            await self._until_standing_is_known(sources)
        ticket = Ticket(next(self._tickets))
        guard = self._observing_guard() if observe else partial(self._may_start, ticket, sources)
        slot = Slot(ticket, sources, self.pools_of(sources), guard, max(hold_s, self._terms.hold_s))
        try:
            if not observe:
                await self._admit(slot, owner, stored=stored, again=again)
            self._enter(slot, watched=not observe)
            slot.when_settled(partial(self._leave, slot))  # the next call need not wait until this answer is relayed
            await self._pacers.wait(slot.pools, self._keeper.rows_of(ticket) if self._keeper is not None else {})
            yield slot
        finally:
            self._end(slot)

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
        return self._line.obstacle(sources, pools) or (self._keeper.reason(pools) if self._keeper is not None else None)

    async def _until_standing_is_known(self, sources: frozenset[str]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._terms.queue_time):
                await self._standing_told.wait()
        if not self._standing_known and not self._stopping:
            raise self._obstacles.refusal(sources) or RefusedError(Reason.STORE_UNAVAILABLE)

    async def _admit(self, slot: Slot, owner: str, *, stored: bool, again: Slot | None) -> None:
        if self._stopping:
            raise RefusedError(Reason.SHUTTING_DOWN)
        self._window.refresh()
        await (self._line.admit_stored(slot, owner) if stored else self._line.admit(slot, owner, again))

    def _enter(self, slot: Slot, *, watched: bool) -> None:
        self._slots[slot.ticket] = slot
        caps = {pool: self._layout.pools[pool].slots for pool in slot.pools} if watched else None
        if above := self._count.enter(slot.pools, caps):
            remedy = "Stop bulk, and report this line: it is a defect."
            self._log.error("cap violated", pool=above, in_use=self._count.busy[above], remedy=remedy)

    def _end(self, slot: Slot) -> None:
        if slot.busy_until is None or slot.ticket not in self._slots:
            self._leave(slot)
        else:  # the source may still be working
            self._expire_at(slot, slot.busy_until)

    def _expire_at(self, slot: Slot, until: float) -> None:
        self._forget_timer(slot)
        delay_s = max(0.0, until - self._clock.boot())
        self._timers[slot.ticket] = self._loop.call_later(delay_s, self._expire, slot)

    def _expire(self, slot: Slot) -> None:
        until = slot.busy_until  # later than it was, where more was written
        if until is not None and self._clock.boot() < until:  # the loop's clock stands while the machine is suspended
            self._expire_at(slot, until)
        else:
            self._leave(slot)

    def _forget_timer(self, slot: Slot) -> None:
        if (timer := self._timers.pop(slot.ticket, None)) is not None:
            timer.cancel()

    def _leave(self, slot: Slot) -> None:
        self._forget_timer(slot)
        if self._slots.pop(slot.ticket, None) is not None:
            self._count.leave(slot.pools)
            if slot.started_at is not None and slot.busy_until is None:
                self._learn(slot, self._clock.boot() - slot.started_at)
        self._line.leave(slot.ticket, slot.pools)

    def _learn(self, slot: Slot, took_s: float) -> None:
        for source in slot.sources:
            self._window.learn(source, took_s)
        self._line.foresight.learn(slot.pools, took_s)

    # What speaks against it.

    def _may_start(self, ticket: Ticket, sources: frozenset[str], now: float) -> bool:
        """Guard a slot: the window is open, its rows are good. Before the first byte also: since it was given, no cap
        was lowered, and nobody held the source."""
        slot = self._slots.get(ticket)
        if slot is None:
            return False
        begun = slot.started_at is not None
        if not begun:
            if any(self._count.busy[pool] > self._line.at_most(pool) for pool in slot.pools):
                return False
            if not self._obstacles.let_begin(sources):
                return False
        if self._keeper is not None and not self._keeper.may_start(ticket, now, begun=begun, hold_s=slot.hold_s):
            return False
        if not self._window.may_start(sources, now):
            return False
        if not begun:  # the block may last longer than T: its client need not take what an intermediary answered
            self._expire_at(slot, now + slot.hold_s)
        return True

    def _observing_guard(self) -> Callable[[float], bool]:
        counted = False

        def guard(_now: float) -> bool:
            nonlocal counted
            if not counted:
                counted = True
                self._office_hours_starts += not self._window.is_open_by_wall_clock()
            return True

        return guard

    # What changes.

    def _window_changed(self) -> None:
        self._log.info("window", open=self._window.is_open, next_change=self._window.next_change)
        self._line.window_changed()

    def adopt_standing(self, standing: Standing) -> None:
        """Know from now on what is held, what cools down, and how many slots a ramp allows."""
        self._line.adopt_standing(standing)

    def standing_is_known(self) -> None:
        """What persons hold was read once."""
        self._standing_known = True
        self._standing_told.set()

    def no_store_yet(self) -> None:
        """The store could not be opened, so nobody knows what persons hold: bulk is told so at once."""
        self._standing_told.set()
        if self._keeper is not None:
            self._keeper.store_up = False

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
            callers_s=lambda: self._line.callers_s(),
            changed=lambda: self._line.set_caps(),
            times=self.times,
        )

    def _demand(self) -> Demand:
        total = self._layout.total
        is_full = total is not None and len(self._slots) >= total
        return Demand() if self._stopping or is_full else self._line.demand()

    # Beginning and end.

    def _occupy(self, sources: frozenset[str], until: float) -> None:
        ticket = Ticket(next(self._tickets))
        slot = Slot(ticket, sources, self.pools_of(sources), lambda _now: False, self._terms.hold_s, busy_until=until)
        self._line.occupy(ticket, slot.pools)
        self._slots[ticket] = slot
        self._count.recount(one.pools for one in self._slots.values())
        self._expire_at(slot, until)

    def adopt(self, layout: Layout, calendar: Calendar, terms: Terms, *, shared: bool) -> None:
        """Go on under another configuration: one step, in which nobody is let in who would not have been.

        Calls in progress are counted again into the new pools, by source, and run to their end; who waits keeps its
        place and its deadline, and is counted into the new queues even where they are full. A lowered cap stops starts
        at once.

        Args:
            shared: caps are divided between gateways. What is raised here may still be in use at another one, so it
                is counted as taken for T, the longer one where this changes it.
        """
        before, longest_s = Rules(self._layout, self._terms).slots(), max(self._terms.hold_s, terms.hold_s)
        self._layout, self._terms = layout, terms
        self._window.adopt(calendar, terms)
        self._pacers = Pacers(layout)
        granted = self._line.begin_change()
        for slot in (*self._slots.values(), *[waiter.slot for waiter in self._line.waiters]):
            slot.pools = self.pools_of(slot.sources)
            if slot.started_at is None:  # a stored item goes out under the configuration in force then
                slot.hold_s = max(slot.hold_s, terms.hold_s)
        self._line.adopt(Rules(layout, terms), self._slots)
        self._count.recount(slot.pools for slot in self._slots.values())
        if shared:
            self._occupy_what_was_raised(before, until=self._clock.boot() + longest_s)
        self._line.line_up_again(granted)
        self._window_changed()

    def _occupy_what_was_raised(self, before: Mapping[str, int], *, until: float) -> None:
        for pool, cap in Rules(self._layout, self._terms).slots().items():
            sources = frozenset(sorted(self._layout.pools[pool].sources)[:1])
            for _ in range(cap - before.get(pool, 0)):
                self._occupy(sources, until)

    def stop(self) -> None:
        """Admit no more, and refuse everybody who waits. Calls in progress go on."""
        self._stopping = True
        self._standing_told.set()
        self._line.waiters.refuse(Reason.SHUTTING_DOWN, everybody=True)

    def close(self) -> None:
        """Stop following the window."""
        self._window.close()
        self._line.close()

    def held(self) -> tuple[tuple[frozenset[str], float], ...]:
        """Return what sources may still be working on, and until when by the boot clock."""
        return tuple((slot.sources, slot.busy_until) for slot in self._slots.values() if slot.busy_until is not None)

    def statistics(self) -> Statistics:
        """Return how admission stands."""
        self._window.refresh()
        oldest = self._line.callers_s()
        waiting = self._line.waiting()
        held = self._keeper.rows() if self._keeper is not None else {}
        pools = {
            name: PoolStatistics(
                pool.slots,
                self._count.busy[name],
                self._count.peak[name],
                waiting[name],
                oldest.get(name, 0.0),
                held.get(name, 0),
            )
            for name, pool in self._layout.pools.items()
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
