"""Buffers into which connections receive: all of one listener or pool share one, since what came is read at once.

A large body is not copied out of such a buffer: the buffer is lent out with it, and another takes its place. It is
used again once nobody looks into it any more; until then Python refuses to resize it (`BufferError`), which is asked.

Rules that always hold: what was lent out is not written to until every view of it is gone; how many buffers are kept
for later is bounded, how many are lent out is not (those who hold them bound what they hold).
"""

READ_SIZE = 256 * 1024
"""Octets that are read at once at the most."""
LARGE = 64 * 1024
"""Octets of a piece from which lending is worth it: a buffer is held for it, and copying it would cost 10 us."""
MOST_OF_HEAD = 8 * 1024
"""Octets in which it is looked for a header's end, so that a large body behind it need not go through llhttp."""
_MOST_KEPT = 32


class Lender:
    """The buffers of one listener or pool."""

    __slots__ = ("_kept", "octets", "view")

    def __init__(self) -> None:
        self._kept: list[bytearray] = []  # lent out longest ago first
        self.octets = _buffer()  #: what was received last
        self.view = memoryview(self.octets)  #: of the same, to receive into

    def lend(self) -> None:
        """Leave what was received to those who look into it, and receive into another buffer from now on."""
        lent, self.octets = self.octets, self._another()
        self.view = memoryview(self.octets)
        if len(self._kept) < _MOST_KEPT:
            self._kept.append(lent)

    def _another(self) -> bytearray:
        # One lent out just now is in the caches, and free again if its octets went to the kernel at once; else the one
        # lent out first is most likely to be.
        for place in (-1, -2, 0, 1):
            if len(self._kept) > 1 and _is_free(self._kept[place]):
                return self._kept.pop(place)
        return _buffer()


def _buffer() -> bytearray:
    buffer = bytearray(READ_SIZE + 1)
    buffer.pop()  # leaves room for the octet that `_is_free` puts there
    return buffer


def _is_free(buffer: bytearray) -> bool:
    try:
        buffer.append(0)
    except BufferError:  # somebody looks into it
        return False
    buffer.pop()
    return True
