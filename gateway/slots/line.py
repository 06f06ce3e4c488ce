"""The line before the slots: turns the table's answers into waiting and waking.

Rules that always hold:
- A slot is handed to a specific waiter, with its rows where slots are shared; there is no moment in which it is free
  and nobody's. A waiter that is cancelled in the tick of its grant passes it on.
- Every waiter gets an answer: granted, refused with a reason, or cancelled because its caller left.
- A stored item of a run is refused only when everybody is. While something stands against it, it waits aside.
- The table's caps are the pools' slots, less what a ramp withholds; or, where slots are shared, the rows that are good.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.slots.count import RefusedError
from gateway.slots.deadlines import Deadlines
from gateway.slots.foresight import LONGEST_PREDICTION_S, Foresight
from gateway.slots.keeper import Keeper
from gateway.slots.obstacles import Obstacles
from gateway.slots.waiters import Waiter, Waiters
from gateway.slots.window import Terms, Window
from policies.admission import Answer, SlotTable
from policies.leases import Demand
from policies.model import Reason, Slot, Standing, Ticket
from policies.pools import Layout


@dataclass(frozen=True, slots=True)
class Rules:
    """What a configuration says of the line."""

    layout: Layout
    terms: Terms

    def slots(self) -> dict[str, int]:
        """Return the cap of each pool."""
        return {name: pool.slots for name, pool in self.layout.pools.items()}

    def without_slots(self, pools: tuple[str, ...]) -> str:
        """Return a pool that has a share or a setting of 0: whoever waited there would wait for ever."""
        return next((pool for pool in pools if not self.layout.pools[pool].slots), "")


class Line:
    """Who waits, and the table that says whose turn it is. `keeper`: of shared slots; None: they are in memory."""

    def __init__(self, rules: Rules, window: Window, obstacles: Obstacles, keeper: Keeper | None) -> None:
        self.waiters = Waiters()
        self.foresight = Foresight()
        self._rules = rules
        self._window = window
        self._obstacles = obstacles
        self._keeper = keeper
        self._limits: Mapping[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._table = self._new_table()
        self._deadlines = Deadlines(self.waiters.all, self._time_is_over)
        self._reconsidering: asyncio.TimerHandle | None = None

    # Joining it.

    async def admit(self, slot: Slot, owner: str, again: Slot | None = None) -> None:
        """Wait for a caller's turn. Raises RefusedError.

        Args:
            again: what it had, and nothing was sent: it goes before all others, and waits no longer than it would have.
        """
        pools = slot.pools
        deadline = self._loop.time() + self._rules.terms.queue_time if again is None else again.waits_until
        if (refusal := self._obstacles.refusal(slot.sources)) is not None:
            opens_at = self._window.parks_until() if refusal.reason is Reason.OFFICE_HOURS else None
            if opens_at is None:
                raise refusal
            deadline = self._loop.time() + self._window.seconds_to(opens_at) + self._rules.terms.park_time
        elif none := self._rules.without_slots(pools):
            raise RefusedError(Reason.QUEUE_FULL, pool=none, retry_in_s=LONGEST_PREDICTION_S)
        elif self._keeper is not None and (reason := self._keeper.reason(pools)) is not None:
            raise RefusedError(reason)
        else:
            self._see_rows(pools)
            if again is None:
                self._refuse_if_hopeless(pools, owner)
        slot.waits_until = deadline
        match self._table.arrive(slot.ticket, owner, pools, first=again is not None):
            case Answer.FULL:
                pool = self._fullest(pools)
                raise RefusedError(Reason.QUEUE_FULL, pool=pool, retry_in_s=self._predicted(pools, owner))
            case Answer.WAITING:
                waiter = self._new_waiter(slot, owner)
                self._deadlines.add(deadline, slot.ticket)
                if self._keeper is not None:
                    self._keeper.wake()
                await self.waiters.turn(waiter)
            case Answer.GRANTED:
                self._bind(slot)

    async def admit_stored(self, slot: Slot, owner: str) -> None:
        """Wait for a stored item's turn, however long it takes. Raises RefusedError when everybody is refused."""
        waiter = self._new_waiter(slot, owner, stored=True)
        waiter.aside = True
        self._reconsider_one(waiter)
        await self.waiters.turn(waiter)

    def obstacle(self, sources: frozenset[str], pools: tuple[str, ...]) -> Reason | None:
        """Say what stands against a call besides others, and besides a store that is away."""
        if (reason := self._obstacles.reason(sources)) is not None:
            return reason
        return Reason.QUEUE_FULL if self._rules.without_slots(pools) else None

    def _new_waiter(self, slot: Slot, owner: str, *, stored: bool = False) -> Waiter:
        return self.waiters.add(Waiter(self._loop.create_future(), self._loop.time(), slot, owner, stored))

    def _refuse_if_hopeless(self, pools: tuple[str, ...], owner: str) -> None:
        if self._table.has_free(pools):
            return
        if (wait := self._predicted(pools, owner)) > self._rules.terms.queue_time:
            raise RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait)

    def _predicted(self, pools: tuple[str, ...], owner: str) -> float:
        return self.foresight.predicted(self._table, self._rules.layout, pools, owner)

    def _fullest(self, pools: Sequence[str]) -> str:
        states = self._table.statistics()
        return max(pools, key=lambda pool: states[pool].waiting)

    def _time_is_over(self, ticket: Ticket) -> None:
        waiter = self.waiters.all[ticket]
        pools = waiter.slot.pools
        reason = self._keeper.reason(pools) if self._keeper is not None else None
        if reason is not None:
            waiter.refuse(RefusedError(reason))
        else:
            wait = self._predicted(pools, waiter.owner)
            waiter.refuse(RefusedError(Reason.QUEUE_TIMEOUT, pool=self._fullest(pools), retry_in_s=wait))

    # Moving up.

    def leave(self, ticket: Ticket, pools: tuple[str, ...]) -> None:
        """A call is over, or gone. Harmless when repeated."""
        if self._keeper is not None:
            self._keeper.unbind(ticket)
            # Before it leaves: its row may be promised to another gateway. One that was settled before its block ended
            # may name pools that a reload has taken away since.
            self.set_caps(pool for pool in pools if pool in self._rules.layout.pools)
        self._wake(self._table.leave(ticket))

    def occupy(self, ticket: Ticket, pools: tuple[str, ...]) -> None:
        """Count a call that began before this process, or under another configuration."""
        self._table.occupy(ticket, pools)

    def set_caps(self, pools: Iterable[str] | None = None) -> None:
        """Let in whom the caps, as they are now, let in; of these pools, or all."""
        for pool in self._rules.layout.pools if pools is None else pools:
            if (cap := self._cap(pool)) != self._table.cap(pool):
                self._wake(self._table.set_cap(pool, cap))

    def _see_rows(self, pools: Iterable[str]) -> None:
        """Look again how many shared rows are good: while a statement is under way, time passes."""
        if self._keeper is not None:
            self.set_caps(pools)

    def at_most(self, pool: str) -> int:
        """Return how many calls may begin in a pool as far as configuration and ramp go."""
        slots = self._rules.layout.pools[pool].slots
        return min(slots, self._limits.get(pool, slots))

    def _cap(self, pool: str) -> int:
        return self.at_most(pool) if self._keeper is None else self._keeper.cap(pool)

    def _wake(self, granted: Iterable[Ticket]) -> None:
        for ticket in granted:
            waiter = self.waiters.all[ticket]
            self._bind(waiter.slot)
            # Done already: cancelled, timed out or refused, and about to leave and pass its slot on.
            if not waiter.turn.done():
                waiter.turn.set_result(None)

    def _bind(self, slot: Slot) -> None:
        if self._keeper is not None:
            self._keeper.bind(slot.ticket, slot.pools)

    def _line_up(self, waiter: Waiter) -> bool:
        """Have somebody who has waited wait in the table; return whether a slot was granted at once."""
        slot = waiter.slot
        self._see_rows(slot.pools)
        answer = self._table.arrive(slot.ticket, waiter.owner, slot.pools, bounded=False, stored=waiter.stored)
        if answer is Answer.GRANTED:
            self._wake((slot.ticket,))
        elif self._keeper is not None:
            self._keeper.wake()
        return answer is Answer.GRANTED

    # What changes.

    def window_changed(self) -> None:
        """The window opened or closed, or another calendar says so."""
        window = self._window
        self._wake(self._table.set_open(window.is_open))
        if not window.is_open and window.parks_until() is None:
            self.waiters.refuse(Reason.OFFICE_HOURS, opens_at=window.opens_at())
        self._reconsider()

    def adopt_standing(self, standing: Standing) -> None:
        """Know from now on what is held, what cools down, and how many slots a ramp allows."""
        self._obstacles.standing = standing
        self._limit()
        self.set_caps()
        for waiter in self.waiters.callers():
            refusal = self._obstacles.refusal(waiter.slot.sources)
            if refusal is not None and refusal.reason is not Reason.OFFICE_HOURS:  # whose opening some wait for
                waiter.refuse(refusal)
        self._reconsider()

    def _limit(self) -> None:
        self._limits = self._obstacles.limits(self._rules.layout.pools)
        if self._keeper is not None:
            self._keeper.limit(self._limits)

    def _reconsider(self) -> None:
        """Something was put in the way of stored items, or taken out of it."""
        for waiter in self.waiters.stored():
            self._reconsider_one(waiter)
        self._forget_timer()
        if (end := self._obstacles.next_end_s()) is not None:
            self._reconsidering = self._loop.call_later(end + 0.001, self._reconsider)

    def _reconsider_one(self, waiter: Waiter) -> None:
        if waiter.turn.done():
            return
        aside = self.obstacle(waiter.slot.sources, waiter.slot.pools) is not None
        if aside and not waiter.aside:
            waiter.aside = True
            self._wake(self._table.leave(waiter.slot.ticket))
        elif waiter.aside and not aside:
            waiter.aside = False
            self._line_up(waiter)

    def begin_change(self) -> list[Waiter]:
        """Take back what was granted and not begun, for another configuration; return whose it was."""
        granted = [waiter for waiter in self.waiters if waiter.is_granted()]
        if self._keeper is not None:
            for waiter in granted:
                self._keeper.unbind(waiter.slot.ticket)
        return granted

    def adopt(self, rules: Rules, slots: Mapping[Ticket, Slot]) -> None:
        """Go on with an empty table under another configuration, in which these calls are in progress."""
        self._rules = rules
        if self._keeper is not None:
            self._keeper.adopt(rules.layout, rules.terms.hold_s)
            for ticket, slot in slots.items():
                self._keeper.recount(ticket, slot.pools)
        self._limit()  # a ramp goes on under the new tenure
        self._table = self._new_table()
        for ticket, slot in slots.items():
            self._table.occupy(ticket, slot.pools)

    def line_up_again(self, first: Iterable[Waiter]) -> None:
        """Let everybody wait in the new table: those first who had been granted a slot."""
        for waiter in (*first, *[waiter for waiter in self.waiters if not waiter.turn.done()]):
            if not waiter.aside and not self._line_up(waiter) and waiter.turn.done():
                waiter.turn = self._loop.create_future()

    def close(self) -> None:
        """Tell nobody any more."""
        self._deadlines.close()
        self._forget_timer()

    def _forget_timer(self) -> None:
        if self._reconsidering is not None:
            self._reconsidering.cancel()
            self._reconsidering = None

    def _new_table(self) -> SlotTable:
        terms = self._rules.terms
        return SlotTable(
            {pool: self._cap(pool) for pool in self._rules.layout.pools},
            queue_length=terms.queue_length,
            park_length=terms.park_length,
            total=self._rules.layout.total,
            is_open=self._window.is_open,
        )

    # For those who look on.

    def callers_s(self) -> Mapping[str, float]:
        """Return how long the oldest caller has waited, by pool."""
        return self.waiters.callers_s(self._loop.time())

    def waiting(self) -> Mapping[str, int]:
        """Return how many callers wait, by pool."""
        return {pool: state.callers for pool, state in self._table.statistics().items()}

    def demand(self) -> Demand:
        """Return who could begin if there were a slot."""
        if not self._window.is_open:
            return Demand()
        return self.waiters.demand(self._loop.time(), self._table.reservation())
