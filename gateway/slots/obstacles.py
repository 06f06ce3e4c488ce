"""What stands against a call besides a want of slots: a person's hold, the closed window, a cool-down; in this order.

Rules that always hold: a hold or cool-down of any source of a call stands against the call, and so does one of
everything; times of cool-downs are the boot clock's; the ramp's limit of a pool is the least of its sources'.
"""

from collections.abc import Collection, Mapping

from gateway.slots.count import RefusedError
from gateway.slots.window import Window
from policies.model import ALL_SOURCES, Clock, Reason, Standing
from policies.pools import Pool


class Obstacles:
    """Looks at the window, at what stands (`standing`, replaced as a whole), and at the cool-down of an unclean
    start."""

    def __init__(self, window: Window, clock: Clock, cooling_until: float | None) -> None:
        self.standing = Standing()
        self._window = window
        self._clock = clock
        self._cooling_until = cooling_until or 0.0

    def reason(self, sources: frozenset[str]) -> Reason | None:
        """Return why a call to `sources` may not start now."""
        now = self._clock.boot()
        if self._is_held(sources):
            return Reason.HELD
        if not self._window.may_start(sources, now):
            return Reason.OFFICE_HOURS
        return Reason.COOLING_DOWN if self.cooling_s(sources) > 0 else None

    def refusal(self, sources: frozenset[str]) -> RefusedError | None:
        """Return the same as a refusal, with the time to come back."""
        match self.reason(sources):
            case None:
                return None
            case Reason.OFFICE_HOURS:
                return RefusedError(Reason.OFFICE_HOURS, opens_at=self._window.opens_at())
            case Reason.COOLING_DOWN:
                return RefusedError(Reason.COOLING_DOWN, retry_in_s=self.cooling_s(sources))
            case reason:
                return RefusedError(reason)

    def let_begin(self, sources: frozenset[str]) -> bool:
        """Say whether neither a hold nor a cool-down stands against the first byte of a call."""
        return not self._is_held(sources) and self.cooling_s(sources) <= 0

    def cooling_s(self, sources: Collection[str] = ()) -> float:
        """Return for how long a call to `sources` still has to wait; none named: any call."""
        until, now = self._cooling_until, self._clock.boot()
        for source in (ALL_SOURCES, *sources) if self.standing.cooling_until else ():
            until = max(until, self.standing.cooling_until.get(source, 0.0))
        return max(0.0, until - now)

    def next_end_s(self) -> float | None:
        """Return when the next cool-down is over, in seconds."""
        now = self._clock.boot()
        ends = (until - now for until in (*self.standing.cooling_until.values(), self._cooling_until))
        return min((end for end in ends if end > 0), default=None)

    def limits(self, pools: Mapping[str, Pool]) -> dict[str, int]:
        """Return how many slots of a pool may be used while a ramp lasts, for the pools that one concerns."""
        at_most = self.standing.at_most
        return {
            name: min(at_most[source] for source in (*pool.sources, ALL_SOURCES) if source in at_most)
            for name, pool in pools.items()
            if any(source in at_most for source in (*pool.sources, ALL_SOURCES))
        }

    def _is_held(self, sources: frozenset[str]) -> bool:
        held = self.standing.held
        return bool(held) and (ALL_SOURCES in held or not held.isdisjoint(sources))
