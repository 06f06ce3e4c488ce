"""The event loop's time, shared out: bulk gets a slice of each of its turns, whoever is in real time all the rest.

When thousands of bulk calls arrive at once, taking them in costs some 100 us each, in a row, and a large message takes
20 ms to digest; a real-time call that arrives meanwhile would wait for all of that. So bulk asks before each piece of
such work: what does not fit into this turn of the loop is done in the next ones, in its order, and the sockets are
looked at in between.

Rules that always hold: first come, first served; nobody waits while there is time left; who is cancelled while waiting
is passed over. Costs are estimates, in seconds. Decides nothing but order.
"""

import asyncio
from collections import deque
from collections.abc import Callable

SLICE_S = 0.0003
"""Of each turn of the loop for bulk: about what a real-time call, and a slot that passes from call to call, may be late
by. 0.1 ms less gains nothing more: looking at the sockets costs some 30 us each time (measured)."""
BEGIN_S = 0.00004
"""What it costs to begin a call whose header has come: its task, its route, its class (measured: 30 to 50 us)."""
ARRIVAL_S = 0.0001
"""What it costs to take a bulk call in: digested, queued (measured: 60 to 120 us)."""


class Turns:
    """Made inside the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[], bool], float]] = deque()
        self._left_s = SLICE_S
        self._is_counting = False  # somebody has used some of this turn's time

    async def take(self, cost_s: float) -> None:
        """Return when there is time for work of `cost_s`: at once, or in one of the loop's next turns."""
        if self.has_time(cost_s):
            return
        mine: asyncio.Future[None] = self._loop.create_future()

        def wake() -> bool:
            if mine.done():
                return False
            mine.set_result(None)
            return True

        self._waiting.append((wake, cost_s))
        await mine

    def do(self, cost_s: float, work: Callable[[], bool]) -> None:
        """Do `work` when there is time for it. It returns whether there was anything to do."""
        if self.has_time(cost_s):
            work()
        else:
            self._waiting.append((work, cost_s))

    def has_time(self, cost_s: float) -> bool:
        """Say whether there is time for work of `cost_s` in this turn; if so, it is used."""
        if not self._is_counting:
            self._is_counting = True
            self._loop.call_soon(self._next_turn)
        if self._waiting or self._left_s <= 0:
            return False
        self._left_s -= cost_s
        return True

    def _next_turn(self) -> None:
        self._left_s = SLICE_S
        self._is_counting = bool(self._waiting)
        if self._is_counting:
            self._loop.call_soon(self._next_turn)
        while self._waiting and self._left_s > 0:
            work, cost_s = self._waiting.popleft()
            if work():
                self._left_s -= cost_s
