"""Who waits for a slot, in the order of arrival.

Rules that always hold: each is answered once; stored items of runs are refused only when everybody is. A stored item
that something stands against waits *aside*, out of the table's sight, so that it keeps nobody from a slot.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from gateway.slots.count import RefusedError
from policies.leases import Demand
from policies.model import Reason, Slot, Ticket


@dataclass(slots=True)
class Waiter:
    """One who waits. Times are the event loop's."""

    turn: "asyncio.Future[None]"
    since: float
    slot: Slot
    owner: str
    stored: bool
    aside: bool = False

    def is_granted(self) -> bool:
        """Say whether a slot was granted, and not begun to be used."""
        return self.turn.done() and not self.turn.cancelled() and self.turn.exception() is None

    def refuse(self, refusal: RefusedError) -> None:
        """Turn it away, unless it was answered."""
        if not self.turn.done():
            self.turn.set_exception(refusal)


class Waiters:
    """All of them."""

    def __init__(self) -> None:
        self.all: dict[Ticket, Waiter] = {}

    def add(self, waiter: Waiter) -> Waiter:
        """Note somebody who begins to wait."""
        self.all[waiter.slot.ticket] = waiter
        return waiter

    async def turn(self, waiter: Waiter) -> None:
        """Wait for a waiter's turn, and forget it then.

        Raises RefusedError.
        """
        try:
            turn = None
            while turn is not waiter.turn:  # `Slots.adopt` may take back what was granted and not yet begun
                turn = waiter.turn
                await turn
        finally:
            del self.all[waiter.slot.ticket]

    def __iter__(self) -> Iterator[Waiter]:
        """Go through all of them, as they are now."""
        return iter(tuple(self.all.values()))

    def stored(self) -> list[Waiter]:
        """Return the stored items."""
        return [waiter for waiter in self.all.values() if waiter.stored]

    def callers(self) -> list[Waiter]:
        """Return the others."""
        return [waiter for waiter in self.all.values() if not waiter.stored]

    def refuse(self, reason: Reason, *, opens_at: datetime | None = None, everybody: bool = False) -> None:
        """Turn callers away, or everybody."""
        for waiter in self.all.values():
            if everybody or not waiter.stored:
                waiter.refuse(RefusedError(reason, opens_at=opens_at))

    def callers_s(self, now: float) -> dict[str, float]:
        """Return how long the oldest caller has waited, by pool."""
        return self._oldest(now, stored=False)

    def _oldest(self, now: float, *, stored: bool) -> dict[str, float]:
        oldest: dict[str, float] = {}
        for waiter in self.all.values():
            if waiter.stored is stored and not waiter.aside:
                for pool in waiter.slot.pools:
                    oldest.setdefault(pool, now - waiter.since)
        return oldest

    def demand(self, now: float, reservation: tuple[tuple[str, ...], frozenset[str]] | None) -> Demand:
        """Return who could begin if there were a slot. `reservation`: what the table's reserver needs and has."""
        needs, reserved = reservation or ((), frozenset())
        singles: dict[str, int] = {}
        waited_s = 0.0
        for waiter in self.all.values():
            if waiter.aside or waiter.turn.done():
                continue
            pools = waiter.slot.pools
            if len(pools) == 1:
                singles[pools[0]] = singles.get(pools[0], 0) + 1
            elif pools == needs:
                waited_s = max(waited_s, now - waiter.since)
        return Demand(
            singles,
            self._oldest(now, stored=False),
            self._oldest(now, stored=True),
            needs,
            reserved,
            waited_s,
        )
