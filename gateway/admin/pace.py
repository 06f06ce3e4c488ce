"""How fast runs go, and when they end: samples of their counts, taken every few seconds while they run.

Rules that always hold: a pace is told only from two samples or more, of the same stretch of running, so that a closed
window or a pause does not count as slowness; at most 50 runs are sampled; a store that is down costs a sample. Of a
run that has not run yet an end is told too, on an assumption, and it is said that it is one.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import datetime

from gateway.records import LaneWork, RunRecord
from gateway.store.interface import Store, StoreError
from policies.model import UNCLASSIFIED, Clock, RunState, StoreDownError
from policies.planning import ends_at
from policies.pools import Layout
from policies.windows import Calendar

EVERY_S = 5.0
MOST_RUNS = 50
KEPT = 25
"""Samples of a run: the last two minutes."""
ASSUMED_CALL_S = 1.0
"""What a call takes, until a run's own pace is known: services of the BCSS answer within a second or two."""


class Paces:
    """The samples."""

    def __init__(
        self,
        store: Callable[[], Store],
        clock: Clock,
        is_open: Callable[[], bool],
        on_defect: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        self._store = store
        self._on_defect = on_defect
        self._clock = clock
        self._is_open = is_open
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._last: dict[int, float] = {}  # the pace that a run had when it ran, for the expected end while it waits

    async def sample_for_ever(self) -> None:
        """Sample every few seconds."""
        while True:
            try:
                await self.sample()
            except Exception as error:  # noqa: BLE001  # paces are for people: nothing else may end because of them
                self._on_defect(error)
            await asyncio.sleep(EVERY_S)

    async def sample(self) -> None:
        """Sample the runs that run; forget the others."""
        try:
            running = await self._store().runs((RunState.RUNNING,), limit=MOST_RUNS)
        except (StoreDownError, StoreError):  # the runner says so, in the log and in `store_up`
            return
        now = self._clock.boot()
        known, self._samples = self._samples, {}
        if self._is_open():
            for run in running:
                self._samples[run.id] = known.get(run.id, deque(maxlen=KEPT))
                self._samples[run.id].append((now, run.counts.settled))
                if rate := self.rate(run, now):
                    self._last.pop(run.id, None)
                    self._last[run.id] = rate
        for old in list(self._last)[: -2 * MOST_RUNS]:
            del self._last[old]

    def rate(self, run: RunRecord, now: float) -> float | None:
        """Return how many items are settled a second; None: it is not known, or nothing is being sent."""
        samples = self._samples.get(run.id)
        if not samples or run.state is not RunState.RUNNING:
            return None
        since, before = samples[0]
        elapsed = now - since
        if elapsed < EVERY_S:
            return None
        return max(0, run.counts.settled - before) / elapsed

    def known(self, run: RunRecord) -> float | None:
        """Return the pace that a run has, or had when it last ran; None: it has not run yet."""
        return self.rate(run, self._clock.boot()) or self._last.get(run.id)

    def ends_at(self, run: RunRecord, pace: float | None, calendar: Calendar, now: datetime) -> datetime | None:
        """Return when a run is expected to end at a pace; None: it is not known."""
        if run.state not in (RunState.READY, RunState.RUNNING) or run.waiting <= 0 or not pace:
            return None
        return ends_at(calendar, now, run.waiting, pace)


def assumed(run: RunRecord, lanes: Sequence[tuple[LaneWork, int]], layout: Layout) -> float | None:
    """Return the pace of a run that is alone, all slots being used and each call taking `ASSUMED_CALL_S`; None: nothing
    is left of it, or it may not go on."""
    left: Counter[str] = Counter()
    for lane, _ in lanes:
        known = frozenset(source for source in lane.key.sources if source in layout)
        for pool in layout.needs(known or frozenset({UNCLASSIFIED})):
            left[pool] += lane.unclaimed + lane.due
    times = [(number, layout.pools[pool].slots) for pool, number in left.items() if number]
    if any(not slots for _, slots in times):
        return None
    longest_s = max((number * ASSUMED_CALL_S / slots for number, slots in times), default=0.0)
    return run.waiting / longest_s if longest_s else None
