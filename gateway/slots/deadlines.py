"""Until when each waiter waits: one timer of the loop for all, since ten thousand of them would take a kilobyte each.

Rules that always hold: whoever is still known when its time is over is told, once; those who are gone are forgotten
when their time would have come, or when they outnumber the others. Decides nothing.
"""

import asyncio
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush

from policies.model import Ticket

_FEW = 64


class Deadlines:
    """Times are the event loop's. `is_over` is told of each ticket that is still among the `known`."""

    def __init__(self, known: Collection[Ticket], is_over: Callable[[Ticket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._known = known
        self._is_over = is_over
        self._heap: list[tuple[float, Ticket]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: float, ticket: Ticket) -> None:
        """Note until when a ticket waits."""
        if len(self._heap) > _FEW + 2 * len(self._known):
            self._heap = [entry for entry in self._heap if entry[1] in self._known]
            heapify(self._heap)
        heappush(self._heap, (deadline, ticket))
        if self._timer is None or deadline < self._timer.when():
            self.close()
            self._timer = self._loop.call_at(deadline, self._ring)

    def close(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time() + 0.001
        while self._heap:
            deadline, ticket = self._heap[0]
            is_known = ticket in self._known
            if is_known and deadline > now:
                self._timer = self._loop.call_at(deadline, self._ring)
                return
            heappop(self._heap)
            if is_known:
                self._is_over(ticket)
