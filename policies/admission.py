"""Which bulk call gets a slot, which waits, which is turned away.

A slot table counts; it never waits, sleeps, logs or reads a clock. Its owner tells it what happened (`arrive`, `leave`,
`set_open`, `set_cap`) and acts on the answer. Eight rules hold after every call, and `tests/policies/test_admission.py`
checks them against independent books:

1. Nobody is granted in a pool that has as many calls in progress as its cap, nor when there are as many in all as the
   total. What `occupy` brings in from the process before this one counts. Only that, and a cap that was lowered, may
   leave a pool above its cap.
2. While the table is closed nobody is granted.
3. Inside a flow, service is first come, first served.
4. No slot lies idle while a waiter may have it. A reserved slot is not idle.
5. No flow starves: a flow's head is served after each flow of its kind that was served, or began to wait, before it.
6. A call that needs several pools gets all its slots at once or none, and nobody waits for ever: only one call
   reserves.
7. A call leaves once, whether served or not; leaving twice is harmless.
8. Callers who wait at the line go before stored items of runs. But while stored items wait for a pool, one slot of it
   is theirs; in a pool of one slot the two kinds alternate.

Theory of operation. A *flow* is one owner's calls with the same needs and of one kind. Every grant and every awakening
of a flow takes a number from one counter; a flow's *turn* is the number of its last grant or, if later, of its
awakening. Flows of a kind are served by lowest turn, which is round robin among those that wait, and comparable between
pools. In each pool the kind that goes first (rule 8) competes for free slots before the other, each by turn. Of the
calls that need several pools, the one with the lowest turn is the *reserver* (of the two kinds in turn, where both
wait): in each of its pools it competes like the others, but what it wins is kept aside until it has won in all. The
choice stands from its first reservation until it is granted or leaves, giving all back: one reserver at a time, so no
two calls can hold what the other needs. The other calls for several pools are granted when all their pools have a free
slot that nobody before them could use.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

from policies.model import Ticket

Needs = tuple[str, ...]
"""The pools in each of which a call needs a slot, sorted."""


class FlowKey(NamedTuple):
    """Whose calls, what they need, and whether they are stored items of runs."""

    owner: str
    needs: Needs
    stored: bool = False


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
    callers: int  #: of those waiting, who is no stored item


class _Flow:
    __slots__ = ("queue", "turn")

    def __init__(self) -> None:
        # Ordered, because waiters leave from the middle all the time; a plain dict finds its first key slower and
        # slower.
        self.queue: OrderedDict[Ticket, None] = OrderedDict()
        self.turn = 0

    def head(self) -> Ticket:
        return next(iter(self.queue))


_Kinds = tuple["OrderedDict[FlowKey, _Flow]", "OrderedDict[FlowKey, _Flow]"]


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
        self._stored = dict.fromkeys(caps, 0)  # of those in use, how many by stored items
        self._last_was_stored = dict.fromkeys(caps, False)  # who won the pool's last slot
        self._waiting = dict.fromkeys(caps, 0)
        self._callers = dict.fromkeys(caps, 0)  # of those waiting, how many at the line
        self._held: dict[Ticket, FlowKey] = {}
        self._flow_of: dict[Ticket, FlowKey] = {}
        self._flows: dict[FlowKey, _Flow] = {}  # those with waiters
        # The same, callers' flows first, then stored ones. Turns only grow, and a flow that gets a new one moves to the
        # end: each is sorted by turn.
        self._by_pool: dict[str, _Kinds] = {pool: (OrderedDict(), OrderedDict()) for pool in caps}
        self._several: _Kinds = (OrderedDict(), OrderedDict())
        self._events = 0
        self._reserver: FlowKey | None = None
        self._last_reserver_was_stored = True
        self._won: set[str] = set()  # where the reserver has reserved

    def arrive(
        self,
        ticket: Ticket,
        owner: str,
        needs: Needs,
        *,
        bounded: bool = True,
        stored: bool = False,
        first: bool = False,
    ) -> Answer:
        """Take a newcomer in, if there is room for it to run or to wait.

        Args:
            bounded: False: it has waited elsewhere, so that it may wait here too.
            stored: it is an item of a run, which waits as long as it takes and is in nobody's way.
            first: it had a slot, and nothing of it was sent: it goes before all others of its kind, however many wait.
        """
        longest = self._queue_length if self._open else self._park_length
        full = bounded and not (stored or first) and any(self._callers[pool] >= longest for pool in needs)
        key = FlowKey(owner, needs, stored)
        self._enqueue(ticket, key)
        if first:
            self._flows[key].queue.move_to_end(ticket, last=False)
            self._take_turn(key, 0)
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

    def set_open(self, is_open: bool) -> tuple[Ticket, ...]:
        """Open or close the table; return the waiters it lets in. Calls in progress run on."""
        self._open = is_open
        if not is_open:
            self._give_back()
        return self._settle()

    def set_cap(self, pool: str, cap: int) -> tuple[Ticket, ...]:
        """Change a pool's cap; return the waiters that it lets in. Calls in progress run on, above it too."""
        self._caps[pool] = cap
        if self._in_use[pool] >= cap:
            self._won.discard(pool)
        return self._settle()

    def cap(self, pool: str) -> int:
        """Return a pool's cap."""
        return self._caps[pool]

    def occupy(self, ticket: Ticket, needs: Needs) -> None:
        """Count a call of the process before this one, which may still be running. It leaves like any other."""
        self._hold(ticket, FlowKey("", needs))
        self._won.difference_update([pool for pool in needs if self._in_use[pool] >= self._caps[pool]])

    def ahead(self, owner: str, needs: Needs) -> int:
        """Return how many callers will be served before a new one, at the most, in the fullest of its pools.

        In round robin each other flow is served at most as often as the newcomer's place in its own flow.
        """
        own = self._flows.get(FlowKey(owner, needs))
        place = len(own.queue) + 1 if own is not None else 1
        return max(min(self._callers[pool], len(self._by_pool[pool][0]) * place) for pool in needs)

    def has_free(self, needs: Needs) -> bool:
        """Say whether each of these pools has a slot that nobody uses or has reserved."""
        return all(self._is_free(pool) for pool in needs)

    def has_stored(self, pool: str) -> bool:
        """Say whether stored items wait for a pool, so that one of its slots is theirs."""
        return self._waiting[pool] > self._callers[pool]

    def reservation(self) -> tuple[Needs, frozenset[str]] | None:
        """Return what the call needs that reserves, or would be the first to, and in which pools it has reserved."""
        if not self._won:
            self._reserver = self._next_reserver()
        return (self._reserver.needs, frozenset(self._won)) if self._reserver is not None else None

    def waiting(self) -> tuple[Ticket, ...]:
        """Return every waiter."""
        return tuple(self._flow_of)

    def statistics(self) -> Mapping[str, PoolState]:
        """Return how each pool stands."""
        return {
            pool: PoolState(cap, self._in_use[pool], int(pool in self._won), self._waiting[pool], self._callers[pool])
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
                self._reserver = self._next_reserver()
            contenders = [
                (key, pool)
                for pool, waiting in self._waiting.items()
                if waiting and (key := self._first_in(pool)) is not None
            ]
            if not contenders:
                return self._next_of_several()
            key, _ = min(contenders, key=self._rank)
            if len(key.needs) == 1:
                return self._grant(key)
            self._won.update([pool for pool in key.needs if self._first_in(pool) == key])
            if self._won == set(key.needs):
                return self._grant(key)

    def _next_reserver(self) -> FlowKey | None:
        callers, stored = (next(iter(flows), None) for flows in self._several)
        first, second = (callers, stored) if self._last_reserver_was_stored else (stored, callers)
        return first or second

    def _rank(self, contender: tuple[FlowKey, str]) -> tuple[bool, int]:
        """Return a contender's place in the line for what is left of the total."""
        key, pool = contender
        return key.stored and not self._is_theirs(pool), self._flows[key].turn

    def _is_theirs(self, pool: str) -> bool:
        """Say whether the next slot of a pool is for stored items, if any wait."""
        reserved = self._reserver is not None and self._reserver.stored and pool in self._won
        if self._stored[pool] or reserved:
            return False
        return self._caps[pool] > 1 or not self._last_was_stored[pool]

    def _first_in(self, pool: str) -> FlowKey | None:
        """Return whose turn it is for a free slot of a pool, if there is one of both."""
        has_room = self._has_room()
        if not self._is_free(pool) or not (has_room or self._won):
            return None
        callers, stored = self._by_pool[pool]
        for key in chain(stored, callers) if self._is_theirs(pool) else chain(callers, stored):
            if len(key.needs) == 1:
                if has_room:
                    return key
                # The total is reached, and the reserver's share of it is what it waits with: it may go on, or all
                # would wait.
            elif key == self._reserver and pool not in self._won:
                return key
        return None

    def _next_of_several(self) -> Ticket | None:
        """Grant a call for several pools that finds them all free after those who come first have had their turn."""
        for key in chain(*self._several):
            if key != self._reserver and self._has_room() and self.has_free(key.needs):
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
            self._last_reserver_was_stored = key.stored
        for pool in key.needs:
            self._last_was_stored[pool] = key.stored
        ticket = self._flows[key].head()
        self._events += 1
        self._take_turn(key, self._events)
        self._dequeue(ticket)
        self._hold(ticket, key)
        return ticket

    # The books.

    def _hold(self, ticket: Ticket, key: FlowKey) -> None:
        self._held[ticket] = key
        for pool in key.needs:
            self._in_use[pool] += 1
            self._stored[pool] += key.stored

    def _let_go(self, ticket: Ticket) -> None:
        key = self._held.pop(ticket)
        for pool in key.needs:
            self._in_use[pool] -= 1
            self._stored[pool] -= key.stored

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
        for pool in key.needs:
            self._waiting[pool] += 1
            self._callers[pool] += not key.stored

    def _dequeue(self, ticket: Ticket) -> None:
        key = self._flow_of.pop(ticket)
        flow = self._flows[key]
        del flow.queue[ticket]
        for pool in key.needs:
            self._waiting[pool] -= 1
            self._callers[pool] -= not key.stored
        if not flow.queue:
            del self._flows[key]
            for flows in self._kept_in(key):
                del flows[key]

    def _take_turn(self, key: FlowKey, turn: int) -> None:
        self._flows[key].turn = turn
        for flows in self._kept_in(key):
            flows.move_to_end(key, last=turn > 0)

    def _kept_in(self, key: FlowKey) -> list[OrderedDict[FlowKey, _Flow]]:
        kept = [self._by_pool[pool][key.stored] for pool in key.needs]
        return [*kept, self._several[key.stored]] if len(key.needs) > 1 else kept


def predicted_wait(ahead: int, slots: float, mean_s: float) -> float:
    """Return how long a newcomer will probably wait, seconds: `ahead` calls and itself, `slots` at a time, `mean_s`
    each."""
    return math.inf if slots <= 0 else (ahead + 1) / slots * mean_s
