"""What is in progress, counted apart from the table that grants: so that a defect of the table is found, not hidden.

Rules that always hold: a call counts in each of its pools from its grant until its source is done; the peak is the most
that ever counted at once; a call that admission let in above a cap is a violation. What a process before this one left
running is none, nor what mode observe lets through: nobody was asked, and `would_refuse_total` counts that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from policies.model import Reason


class RefusedError(Exception):
    """A bulk call that may not start. Nothing was sent."""

    def __init__(
        self, reason: Reason, *, pool: str = "", opens_at: datetime | None = None, retry_in_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pool = pool  #: the pool that had no room
        self.opens_at = opens_at
        self.retry_in_s = retry_in_s


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How one pool stands."""

    cap: int
    in_use: int
    peak: int
    waiting: int  #: callers at the line; stored items of runs are counted elsewhere
    oldest_s: float  #: how long the oldest of them has waited
    rows: int = 0  #: slots that this gateway holds, where several share them


@dataclass(frozen=True, slots=True)
class Statistics:
    """How admission stands."""

    pools: Mapping[str, PoolStatistics]
    window_open: bool
    next_change: datetime | None
    cooling_s: float  #: for how long bulk still waits after an unclean stop
    violations: int  #: times that admission let a call into a pool that had as many as its cap: a defect
    office_hours_starts: int  #: calls whose first byte went out while the window was closed: only in mode observe
    store_up: bool | None = None  #: whether the store of shared slots answers; None: there is none, or not asked yet
    layout_conflict: bool = False  #: other gateways on the store have other pools, caps or times: bulk waits


class InProgress:
    """The count."""

    def __init__(self) -> None:
        self.busy: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.violations = 0

    def enter(self, pools: Iterable[str], caps: Mapping[str, int] | None) -> str:
        """Count a call that was let in; return the pool whose cap it is above, if any. No caps: nobody was asked."""
        above = ""
        for pool in pools:
            self.busy[pool] += 1
            self.peak[pool] = max(self.peak[pool], self.busy[pool])
            if caps is not None and self.busy[pool] > caps[pool]:
                above = pool
        self.violations += bool(above)
        return above

    def leave(self, pools: Iterable[str]) -> None:
        """Count a call that is over."""
        self.busy.subtract(pools)

    def recount(self, calls: Iterable[Iterable[str]]) -> None:
        """Count what is in progress anew, by the pools of another layout."""
        self.busy = Counter(pool for pools in calls for pool in pools)
        for pool, number in self.busy.items():
            self.peak[pool] = max(self.peak[pool], number)
