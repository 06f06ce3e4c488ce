"""What came of bulk callers who arrive by the thousand, until there is time to read it.

The event loop hands over, in one turn, whatever came on every connection. Reading 5,000 requests takes 100 ms, keeping
their octets aside 25 ms (measured); a real-time call that arrives meanwhile waits for all of it. So the beginning of a
request that is bulk for sure, by its target or its listener, is kept when this turn's time for bulk is used up, and
read in one of the next turns.

Rules that always hold: octets stay in order; a request is kept only where nothing of its connection is in progress;
what is kept of one connection is bounded. Decides nothing but order.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from gateway.inbound.turns import Turns

READ_S = 0.00003
"""What it costs to read a request's header and small body (measured: 20 to 40 us)."""
MAX_KEPT = 256 * 1024
"""Octets of one connection beyond which it is read no more: what arrives in one turn."""
_LINE = 32  #: octets in which a method and the tag find room


class Reads(Protocol):
    """A connection, as far as it matters here."""

    def take(self, data: memoryview | bytes) -> None:
        """Read what came."""

    def hold_reading(self) -> None:
        """Receive no more for now."""

    def go_on_reading(self) -> None:
        """Receive again."""


class Crowd:
    """Those of one listener. `is_mass` says of a target whether its calls are bulk for sure."""

    def __init__(self, turns: Turns, is_mass: Callable[[bytes], bool]) -> None:
        self._turns = turns
        self._is_mass = is_mass
        self._kept: dict[Reads, bytearray] = {}

    def keeps(self, connection: Reads, data: memoryview) -> bool:
        """Keep what came on an idle connection, if it is bulk and there is no time for it; else return False."""
        kept = self._kept.get(connection)
        if kept is not None:
            if len(kept) <= MAX_KEPT < len(kept) + len(data):
                connection.hold_reading()
            kept += data
            return True
        target = bytes(data[:_LINE]).partition(b" ")[2]
        if not self._is_mass(target) or self._turns.has_time(READ_S):
            return False
        self._kept[connection] = bytearray(data)
        self._turns.do(READ_S, partial(self._read, connection))
        return True

    def forget(self, connection: Reads) -> None:
        """Forget what was kept of a connection that has ended."""
        self._kept.pop(connection, None)

    def _read(self, connection: Reads) -> bool:
        kept = self._kept.pop(connection, None)
        if kept is None:
            return False
        if len(kept) > MAX_KEPT:
            connection.go_on_reading()
        connection.take(bytes(kept))
        return True
