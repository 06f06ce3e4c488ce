"""Slots for bulk calls: the asyncio shell of `policies.admission` (`shell`), and the window over time (`window`)."""

from gateway.slots.count import PoolStatistics, RefusedError, Statistics
from gateway.slots.shell import Slots
from gateway.slots.window import Terms

__all__ = ["PoolStatistics", "RefusedError", "Slots", "Statistics", "Terms"]
