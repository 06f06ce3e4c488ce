"""Slots for bulk calls: the asyncio shell of `policies.admission` (`shell`), and the window over time (`window`)."""

from gateway.slots.shell import PoolStatistics, RefusedError, Slots, Statistics
from gateway.slots.window import Terms

__all__ = ["PoolStatistics", "RefusedError", "Slots", "Statistics", "Terms"]
