"""Which bulk call gets a slot, which waits, which is turned away.

A slot table counts; it never waits, sleeps, logs or reads a clock. Its owner tells it what happened (`arrive`, `leave`,
`set_open`) and acts on the answer. Seven rules hold after every call, and `tests/policies/test_admission.py` checks
them against independent books:

1. No pool has more calls in progress than its cap, nor are there more calls in all than the total. What `occupy`
brings in
   from the process before this one counts, and is the one thing that may stand above the cap: then nobody is granted.
2. While the table is closed nobody is granted.
3. Inside a flow, service is first come, first served.
4. No slot lies idle while a waiter may have it. A reserved slot is not idle.
5. No flow starves: a flow's head is served after each flow that was served, or began to wait, before it.
6. A call that needs several pools gets all its slots at once or none, and nobody waits for ever: only one call
reserves. 7. A call leaves once, whether served or not; leaving twice is harmless.

Theory of operation. A *flow* is one owner's calls with the same needs. Every grant and every awakening of a flow
takes a number from one counter; a flow's *turn* is the number of its last grant or, if later, of its awakening.
Flows are served by lowest turn, which is round robin among those that wait, and comparable between pools. Calls for
one pool compete for its free slots by turn. Of the calls that need several pools, the one with the lowest turn is
the *reserver*: in each of its pools it competes by its turn like the others, but what it wins is kept aside until it
has won in all. The choice stands from its first reservation until it is granted or leaves, giving all back: one
reserver at a time, so no two calls can hold what the other needs. The other calls for several pools are granted when
all their pools have a free slot that nobody before them could use.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from policies.model import Ticket

Needs = tuple[str, ...]
"""The pools in each of which a call needs a slot, sorted."""
FlowKey = tuple[str, Needs]
"""An owner, and what its calls need."""


class Answer(StrEnum):
    """The answer to an arrival."""

    GRANTED = "granted"
    WAITING = "waiting"
    FULL = "full"  #: a queue is as long as it may be; the ticket is not in the books


@dataclass(frozen=True, slots=True)
class PoolState:
    """How one pool stands."""

    cap: int
    in_use: int
    reserved: int
    waiting: int


class _Flow:
    __slots__ = ("queue", "turn")

    def __init__(self) -> None:
        # Ordered, because waiters leave from the middle all the time; a plain dict finds its first key slower and
        # slower.
        self.queue: OrderedDict[Ticket, None] = OrderedDict()
        self.turn = 0

    def head(self) -> Ticket:
        return next(iter(self.queue))


class SlotTable:
    """The books of all pools. `caps` are slots by pool; `total` caps calls over all; queues are bounded by pool."""

    def __init__(
        self,
        caps: Mapping[str, int],
        *,
        queue_length: int,
        park_length: int,
        total: int | None = None,
        is_open: bool = True,
    ) -> None:
        self._caps = dict(caps)
        self._total = total
        self._queue_length = queue_length
        self._park_length = park_length
        self._open = is_open
        self._in_use = dict.fromkeys(caps, 0)
        self._waiting = dict.fromkeys(caps, 0)
        self._held: dict[Ticket, FlowKey] = {}
        self._flow_of: dict[Ticket, FlowKey] = {}
        # Flows with waiters. Turns only grow, and a flow that gets a new one moves to the end: each is sorted by turn.
        self._flows: OrderedDict[FlowKey, _Flow] = OrderedDict()
        self._by_pool: dict[str, OrderedDict[FlowKey, _Flow]] = {pool: OrderedDict() for pool in caps}
        self._several: OrderedDict[FlowKey, _Flow] = OrderedDict()
        self._events = 0
        self._reserver: FlowKey | None = None
        self._won: set[str] = set()  # where the reserver has reserved

    def arrive(self, ticket: Ticket, owner: str, needs: Needs, *, bounded: bool = True) -> Answer:
        """Take a newcomer in, if there is room for it to run or to wait. Not `bounded`: it has waited elsewhere."""
        longest = self._queue_length if self._open else self._park_length
        full = bounded and any(self._waiting[pool] >= longest for pool in needs)
        self._enqueue(ticket, (owner, needs))
        if ticket in self._settle():
            return Answer.GRANTED
        if full:
            self.leave(ticket)
            return Answer.FULL
        return Answer.WAITING

    def leave(self, ticket: Ticket) -> tuple[Ticket, ...]:
        """Forget a ticket; return those whose turn has now come."""
        if ticket in self._held:
            self._let_go(ticket)
        elif (key := self._flow_of.get(ticket)) is not None:
            if key == self._reserver and ticket == self._flows[key].head():
                self._give_back()
            self._dequeue(ticket)
        else:
            return ()
        return self._settle()

    def return_to_head(self, ticket: Ticket) -> tuple[Ticket, ...]:
        """Put a granted call, of which nothing was sent, back before all others; return who is granted.

        Raises KeyError for a ticket that holds no slot.
        """
        key = self._let_go(ticket)
        self._enqueue(ticket, key)
        flow = self._flows[key]
        flow.queue.move_to_end(ticket, last=False)
        self._take_turn(key, 0)
        return self._settle()

    def set_open(self, is_open: bool) -> tuple[Ticket, ...]:
        """Open or close the table; return the waiters it lets in. Calls in progress run on."""
        self._open = is_open
        if not is_open:
            self._give_back()
        return self._settle()

    def occupy(self, ticket: Ticket, needs: Needs) -> None:
        """Count a call of the process before this one, which may still be running. It leaves like any other."""
        self._hold(ticket, ("", needs))

    def ahead(self, owner: str, needs: Needs) -> int:
        """Return how many waiters will be served before a newcomer, at the most, in the fullest of its pools.

        In round robin each other flow is served at most as often as the newcomer's place in its own flow.
        """
        own = self._flows.get((owner, needs))
        place = len(own.queue) + 1 if own is not None else 1
        return max(min(self._waiting[pool], len(self._by_pool[pool]) * place) for pool in needs)

    def waiting(self) -> tuple[Ticket, ...]:
        """Return every waiter."""
        return tuple(self._flow_of)

    def statistics(self) -> Mapping[str, PoolState]:
        """Return how each pool stands."""
        return {
            pool: PoolState(cap, self._in_use[pool], int(pool in self._won), self._waiting[pool])
            for pool, cap in self._caps.items()
        }

    # The decision, made after every change.

    def _settle(self) -> tuple[Ticket, ...]:
        granted: list[Ticket] = []
        while self._open and (ticket := self._next()) is not None:
            granted.append(ticket)
        return tuple(granted)

    def _next(self) -> Ticket | None:
        """Hand free slots to whose turn it is, until a call has all that it needs; return that call."""
        while True:
            if not self._won:
                self._reserver = next(iter(self._several), None)
            contenders = [key for pool in self._caps if (key := self._first_in(pool)) is not None]
            if not contenders:
                return self._next_of_several()
            key = min(contenders, key=lambda one: self._flows[one].turn)
            if len(key[1]) == 1:
                return self._grant(key)
            self._won.update(pool for pool in key[1] if self._first_in(pool) == key)
            if self._won == set(key[1]):
                return self._grant(key)

    def _first_in(self, pool: str) -> FlowKey | None:
        """Return whose turn it is for a free slot of a pool, if there is one of both."""
        has_room = self._has_room()
        if not self._is_free(pool) or not (has_room or self._won):
            return None
        for key in self._by_pool[pool]:
            if len(key[1]) == 1:
                if has_room:
                    return key
                # The total is reached, and the reserver's share of it is what it waits with: it may go on, or all
                # would wait.
            elif key == self._reserver and pool not in self._won:
                return key
        return None

    def _next_of_several(self) -> Ticket | None:
        """Grant a call for several pools that finds them all free after those who come first have had their turn."""
        for key in self._several:
            if key != self._reserver and self._has_room() and all(self._is_free(pool) for pool in key[1]):
                return self._grant(key)
        return None

    def _is_free(self, pool: str) -> bool:
        return self._in_use[pool] + (pool in self._won) < self._caps[pool]

    def _has_room(self) -> bool:
        return self._total is None or len(self._held) + bool(self._won) < self._total

    def _give_back(self) -> None:
        self._won.clear()
        self._reserver = None

    def _grant(self, key: FlowKey) -> Ticket:
        if key == self._reserver:
            self._give_back()
        ticket = self._flows[key].head()
        self._events += 1
        self._take_turn(key, self._events)
        self._dequeue(ticket)
        self._hold(ticket, key)
        return ticket

    # The books.

    def _hold(self, ticket: Ticket, key: FlowKey) -> None:
        self._held[ticket] = key
        for pool in key[1]:
            self._in_use[pool] += 1

    def _let_go(self, ticket: Ticket) -> FlowKey:
        key = self._held.pop(ticket)
        for pool in key[1]:
            self._in_use[pool] -= 1
        return key

    def _enqueue(self, ticket: Ticket, key: FlowKey) -> None:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow()
            for flows in self._kept_in(key):
                flows[key] = flow
            self._events += 1
            flow.turn = self._events
        flow.queue[ticket] = None
        self._flow_of[ticket] = key
        for pool in key[1]:
            self._waiting[pool] += 1

    def _dequeue(self, ticket: Ticket) -> None:
        key = self._flow_of.pop(ticket)
        flow = self._flows[key]
        del flow.queue[ticket]
        for pool in key[1]:
            self._waiting[pool] -= 1
        if not flow.queue:
            del self._flows[key]
            for flows in self._kept_in(key):
                del flows[key]

    def _take_turn(self, key: FlowKey, turn: int) -> None:
        self._flows[key].turn = turn
        for flows in self._kept_in(key):
            flows.move_to_end(key, last=turn > 0)

    def _kept_in(self, key: FlowKey) -> list[OrderedDict[FlowKey, _Flow]]:
        kept = [self._by_pool[pool] for pool in key[1]]
        return [*kept, self._several] if len(key[1]) > 1 else kept


def predicted_wait(ahead: int, slots: int, mean_s: float) -> float:
    """Return how long a newcomer will probably wait, seconds: `ahead` calls and itself, `slots` at a time, `mean_s`
    each."""
    return math.inf if slots <= 0 else (ahead + 1) / slots * mean_s
