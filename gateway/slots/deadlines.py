"""Until when each waiter waits: one timer of the loop for all, since ten thousand of them would take a kilobyte each.

Rules that always hold: whoever is still known when its time is over is told, once; those who are gone are forgotten
when their time would have come. Decides nothing.
"""

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush

from policies.model import Ticket


class Deadlines:
    """Times are the event loop's. `is_over` is told of each ticket for which `is_known` is still true."""

    def __init__(self, is_known: Callable[[Ticket], bool], is_over: Callable[[Ticket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_known = is_known
        self._is_over = is_over
        self._heap: list[tuple[float, Ticket]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: float, ticket: Ticket) -> None:
        """Note until when a ticket waits."""
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
            is_known = self._is_known(ticket)
            if is_known and deadline > now:
                self._timer = self._loop.call_at(deadline, self._ring)
                return
            heappop(self._heap)
            if is_known:
                self._is_over(ticket)
