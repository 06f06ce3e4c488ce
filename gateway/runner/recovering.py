"""What dead processes left in hand: batches that nobody works on any more wait again, through `Store.recover` alone.

Whether a process is dead is observed, never asked: with SQLite there is one process, so whatever another holder has is
a dead one's; with PostgreSQL a batch is a dead one's when (token, renewal) was seen unchanged for L by the boot clock.

Rules that always hold:
- A sighting is timed after its answer arrived, so the time in which nothing changed is never overrated.
- Batches under this process's own holder that it does not know (a claim whose answer was lost) are ended after two
  looks, so that a claim that is just being answered is left alone.
- Of its own batches this process believes only what the store says after a renewal: one that is gone is another's.
- What may have been sent waits T before it is repeated: its source may still be working on it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from gateway.log import EventLog
from gateway.records import BatchSighting
from gateway.store.interface import Store
from policies.model import Clock


@dataclass(frozen=True, slots=True)
class _Seen:
    sighting: BatchSighting
    since: float  #: boot clock, after the answer that showed it first


class Recovery:
    """Watches batches. `look` is called by its owner, every R."""

    def __init__(
        self,
        store: Store,
        holder: str,
        clock: Clock,
        log: EventLog,
        *,
        shared: bool,
        lease_s: Callable[[], float],
        hold_s: Callable[[], float],
        in_hand: Callable[[], Collection[int]],
        seen: Callable[[Collection[int], Collection[int], float], None],
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._log = log
        self._shared = shared
        self._lease_s = lease_s
        self._hold_s = hold_s
        self._in_hand = in_hand
        self._seen_own = seen
        self._renewed: tuple[frozenset[int], float] = frozenset(), 0.0  # batches, and when that was asked
        self._seen: dict[int, _Seen] = {}
        self._strays: set[int] = set()

    async def renew(self) -> None:
        """Say that this process lives, if others could ask.

        Raises:
            StoreDownError: the store does not answer.
        """
        in_hand = frozenset(self._in_hand())
        if self._shared and in_hand:
            asked = self._clock.boot()
            await self._store.renew_batches(self._holder)
            self._renewed = in_hand, asked

    async def look(self) -> int:
        """Look at all batches, and end those of the dead; return how many.

        Raises:
            StoreDownError: the store does not answer.
        """
        batches = await self._store.batches()
        now = self._clock.boot()
        renewed, asked = self._renewed
        self._seen_own(renewed, {one.batch_id for one in batches if one.holder == self._holder}, asked)
        self._note(batches, now)
        ended = 0
        for sighting in batches:
            if self._is_dead(sighting, now):
                ended += await self._end(sighting)
        known = set(self._in_hand())
        self._strays = {one.batch_id for one in batches if one.holder == self._holder} - known
        return ended

    def _note(self, batches: Collection[BatchSighting], now: float) -> None:
        seen = {}
        for sighting in batches:
            before = self._seen.get(sighting.batch_id)
            seen[sighting.batch_id] = (
                before if before is not None and before.sighting == sighting else _Seen(sighting, now)
            )
        self._seen = seen

    def _is_dead(self, sighting: BatchSighting, now: float) -> bool:
        if sighting.holder == self._holder:
            return sighting.batch_id in self._strays and sighting.batch_id not in self._in_hand()
        if not self._shared:
            return True
        return now - self._seen[sighting.batch_id].since >= self._lease_s()

    async def _end(self, sighting: BatchSighting) -> int:
        recovered = await self._store.recover(sighting, delay_s=self._hold_s())
        if recovered is None:
            return 0
        self._seen.pop(sighting.batch_id, None)
        self._log.warning(
            "batch recovered",
            of="a claim whose answer was lost" if sighting.holder == self._holder else "a process that is gone",
            again=recovered.again,
            in_doubt=recovered.in_doubt,
            remedy="None, unless items are in doubt: see `bcss-gateway runs doubts`.",
        )
        return 1
