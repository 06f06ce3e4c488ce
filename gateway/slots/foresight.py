"""What is expected of calls: how long they take in each pool, how long a newcomer will wait, how fast they may start.

Rules that always hold: a prediction is never longer than an hour, since a pool without slots would make a caller come
back never; a pace is not a cap: each slot of a paced pool has a limiter of its own, taken after the slot is had.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from policies.admission import SlotTable, predicted_wait
from policies.pools import Layout

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

MEAN_WEIGHT = 0.1
"""Weight of a new duration in a pool's running mean, which predicts waits: the last ten calls or so."""
LONGEST_PREDICTION_S = 3600.0
"""A pool without slots would make a caller come back never; an hour later its configuration may have changed."""


class Foresight:
    """Durations by pool."""

    def __init__(self) -> None:
        self._mean_s: dict[str, float] = {}

    def learn(self, pools: Iterable[str], took_s: float) -> None:
        """Note how long a call in these pools took."""
        for pool in pools:
            mean = self._mean_s.get(pool, took_s)
            self._mean_s[pool] = mean + MEAN_WEIGHT * (took_s - mean)

    def predicted(self, table: SlotTable, layout: Layout, pools: tuple[str, ...], owner: str) -> float:
        """Return how long a new caller will probably wait, seconds."""
        ahead = table.ahead(owner, pools)
        known = [
            predicted_wait(ahead, _for_callers(table, layout, pool), self._mean_s[pool])
            for pool in pools
            if pool in self._mean_s
        ]
        return min(max(known, default=0.0), LONGEST_PREDICTION_S)


def _for_callers(table: SlotTable, layout: Layout, pool: str) -> float:
    """Return how many slots of a pool serve callers: all but one while stored items wait, half of one slot."""
    slots = layout.pools[pool].slots
    return max(slots - 1, slots / 2) if table.has_stored(pool) else slots


class Pacers:
    """Limiters of the pools that have a rate: one for each slot, so that they add up to the pool's rate."""

    def __init__(self, layout: Layout) -> None:
        self._of: "dict[str, deque[AsyncLimiter]]" = {}  # noqa: UP037  # imported below, where it is needed
        paced = [(pool, pool.rate_per_s) for pool in layout.pools.values() if pool.rate_per_s is not None]
        if not paced:
            return
        from aiolimiter import AsyncLimiter  # a fortieth of the time until the gateway is ready, and seldom needed

        for pool, rate in paced:
            self._of[pool.name] = deque(AsyncLimiter(1, pool.slots / rate) for _ in range(pool.slots))

    async def wait(self, pools: Iterable[str], rows: Mapping[str, int]) -> None:
        """Wait until a call may start in these pools. `rows`: the shared slots that it has, by pool; each has a limiter
        of its own, so that the gateways that share a pool keep its rate together."""
        for pool in pools:
            limiters = self._of.get(pool)
            if not limiters:
                continue
            if pool in rows:
                limiter = limiters[(rows[pool] - 1) % len(limiters)]
            else:
                limiters.rotate(-1)
                limiter = limiters[0]
            await limiter.acquire()
