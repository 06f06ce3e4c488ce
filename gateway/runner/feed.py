"""The items of one lane, ready to be sent: claimed in batches, opened ahead of their turn, given back when not sent.

Rules that always hold:
- Items leave in the order of their positions, returned ones first; one that could not start goes back to the head.
- The next batch is claimed before the last item of the one before has left, so that no slot waits for the store.
- No item leaves before the mark above it is committed (`Committer.armed`).
- Whoever stops gives back: what was armed and not sent is returned as it was, and the batch is ended through
  `Store.recover`; then nothing of the lane is in this process's hands.

Never sends, never decides what becomes of an item that was sent.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from gateway.packing import StoredRequest
from gateway.records import Batch, LaneWork, Returned, StoredItem
from gateway.runner.committer import RETRY_S, BatchInHand, Bell, Committer
from gateway.store.interface import Store
from policies.model import StoreDownError

BATCH = 64
"""Items claimed at once: a third of a second of work for four slots at 20 ms."""
LOW = 32
"""Items left at which the next batch is claimed."""
WINDOW = 24
"""Positions that may be sent before the next commit: four slots, times the lag of a commit, times three."""
CAREFUL = 4
"""The same where what may have been sent may not be repeated: a crash puts each of them in doubt, and a worker had
rather wait for a commit now and then."""
FIRST = 4
"""Items of a lane's first claim: how large they are is not known yet."""
MOST_BYTES = 64 * 1024 * 1024
"""Requests in hand, over all lanes. A lane that has none claims a few all the same."""
SMALLEST = 1024
"""What an item takes besides its body."""
NOT_SENT = "not sent"

Open = Callable[[Iterable[StoredItem]], Awaitable["list[StoredRequest | None]"]]
"""Opens what is stored; None for an item that cannot be opened."""


@dataclass(slots=True, eq=False)
class Item:
    """One item in this process's hands."""

    stored: StoredItem
    request: StoredRequest | None  #: None: it cannot be opened
    batch: BatchInHand


class Room:
    """The memory that requests in hand may take, over all lanes. Nobody waits for it who has nothing to send."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self.taken = 0
        self.changed = Bell()

    def is_for(self, octets: int) -> bool:
        """Say whether there is room for one of this size, and a few others."""
        return self.left > max(octets, self._most // 8)

    @property
    def left(self) -> int:
        """Return how many octets are left."""
        return max(0, self._most - self.taken)

    def take(self, octets: int) -> None:
        """Have less of it."""
        self.taken += octets

    def give(self, octets: int) -> None:
        """Have it back."""
        self.taken -= octets
        if self.is_for(0):  # else nobody goes on by it: many may wait
            self.changed.ring()


class Feed:
    """The items of one lane. `fill` is a task of the lane's; workers call `next`."""

    def __init__(
        self, work: LaneWork, store: Store, holder: str, committer: Committer, opened: Open, room: Room
    ) -> None:
        self.lane_id = work.lane_id
        self._run_id = work.run_id
        self._store = store
        self._holder = holder
        self._committer = committer
        self._opened = opened
        self._room = room
        self._largest = 0  #: octets of a request of this lane; 0: none has been seen
        self._items: deque[Item] = deque()
        self._batches: dict[int, BatchInHand] = {}
        self._window = WINDOW if work.key.repeatable else CAREFUL
        # Of what may not be repeated, nothing counts as sent by being claimed: a claim's answer may be lost. Of reads
        # that wait again all does, so that there are few of them in hand at a time: each crash costs those an attempt.
        self._repeatable = work.key.repeatable
        self._armed_at_once = WINDOW if self._repeatable else 0
        self._again, self._again_low = (WINDOW, WINDOW // 2) if self._repeatable else (BATCH, LOW)
        self._changed = Bell()
        self._ended = False
        self._stopped = False
        self.claimed = 0  #: batches
        self.due = work.due > 0  #: returned items wait whose time has come

    # The workers' side.

    async def next(self) -> Item | None:
        """Return the next item, once it may be sent; None: there is nothing left."""
        while True:
            await self._changed.until(lambda: self._items or self._ended)
            if not self._items:
                return None
            item = self._items.popleft()
            self._room.give(_octets(item))
            if not self._items:
                self._room.changed.ring()
            if len(self._items) in (LOW, self._again_low):
                self._changed.ring()
            batch = item.batch
            try:
                batch.wanted = max(batch.wanted, min(batch.hi, item.stored.position + 1 + self._window))
                await self._committer.armed(batch, item.stored.position)
            except BaseException:
                self.put_back(item)
                raise
            if not batch.lost:
                return item

    def put_back(self, item: Item) -> None:
        """Take an item back that was not sent: it is the next one."""
        self._items.appendleft(item)
        self._room.take(_octets(item))

    def drop_lost(self) -> None:
        """Forget items of batches that are another's by now."""
        if any(batch.lost for batch in self._batches.values()):
            self._room.give(sum(_octets(item) for item in self._items if item.batch.lost))
            self._items = deque(item for item in self._items if not item.batch.lost)
            self._batches = {number: batch for number, batch in self._batches.items() if not batch.lost}
            self._changed.ring()  # there may be too few left: `fill` sleeps until somebody says so
            self._room.changed.ring()  # or none, and who has none waits for no room

    @property
    def in_hand(self) -> int:
        """Return how many items are at hand."""
        return len(self._items)

    # The store's side.

    async def fill(self) -> None:
        """Claim batches ahead of need, until there is nothing left to claim."""
        while True:
            await self._changed.until(lambda: len(self._items) <= self._low or self._stopped)
            await self._room.changed.until(lambda: not self._items or self._stopped or self._room.is_for(self._largest))
            if self._stopped:
                break
            self._forget_finished()
            asked = self._committer.now()
            size = self._size()
            reserved = size * self._largest
            self._room.take(reserved)
            try:
                batch = await self._claimed(size)
                items = await self._store.fetch(batch) if batch is not None else ()
                if batch is not None:
                    await self._take(batch, items, asked)
            except StoreDownError as error:
                # A batch whose claim was not answered stands in the store under this holder, and is found there.
                self._committer.note_down(error, writing=True)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._room.give(reserved)
            self._committer.note_up(wrote=batch is not None)
            if batch is None:
                break
        self._ended = True
        self._changed.ring()

    @property
    def _low(self) -> int:
        return self._again_low if self.due else LOW

    def _size(self) -> int:
        """Return how many items to claim: as many as there is room for, one at least."""
        if not self._largest:
            return FIRST
        return max(1, min(BATCH, self._room.left // self._largest))

    async def _claimed(self, size: int) -> Batch | None:
        if self.due:
            batch = await self._claimed_again(size)
            if batch is not None:
                return batch
            self.due = False
        batch = await self._store.claim(self.lane_id, self._holder, size=size, window=self._armed_at_once)
        if batch is None:
            batch = await self._claimed_again(size)
            self.due = batch is not None
        return batch

    async def _claimed_again(self, size: int) -> Batch | None:
        size = min(size, self._again)
        return await self._store.claim_returned(self.lane_id, self._holder, size=size, armed=self._repeatable)

    async def _take(self, batch: Batch, items: Iterable[StoredItem], asked: float) -> None:
        stored = list(items)
        mark = batch.armed
        in_hand = BatchInHand(batch.batch_id, batch.run_id, batch.hi, mark, mark, len(stored), asked)
        self._batches[batch.batch_id] = in_hand
        self.claimed += 1
        self._committer.take_charge(in_hand)
        if not stored:
            self._committer.nothing_left(in_hand)
            return
        requests = await self._opened(stored)
        for one, request in zip(stored, requests, strict=True):
            item = Item(replace(one, sealed=b""), request, in_hand)  # it is open: not in hand twice
            self._largest = max(self._largest, _octets(item))
            self._items.append(item)
            self._room.take(_octets(item))
        self._changed.ring()

    def _forget_finished(self) -> None:
        self._batches = {number: batch for number, batch in self._batches.items() if not batch.finished}

    # The end.

    def stop(self) -> None:
        """Claim no more. A claim that is under way is waited for, and given back with the rest."""
        self._stopped = True
        self._changed.ring()
        self._room.changed.ring()

    async def give_back(self, *, sent_delay_s: float = 0.0) -> None:
        """Return what was not sent, make everything durable, and end the batches. Waits for the store.

        Args:
            sent_delay_s: for items of which nobody knows whether they were sent (after a defect of ours).
        """
        items, self._items = self._items, deque()
        self._room.give(sum(_octets(item) for item in items))
        self.drop_lost()
        for item in items:
            if item.batch.lost:
                continue
            # Below what was asked for: the next commit, or one that is under way, makes it the mark.
            if item.stored.position < item.batch.wanted:
                one = item.stored
                self._committer.add(
                    Returned(item.batch.batch_id, one.lane_id, one.position, one.attempts, 0.0, NOT_SENT)
                )
        await self._committer.flushed()
        self._forget_finished()
        for number in list(self._batches):
            self._committer.let_go(number)
        await end_batches(self._store, self._holder, set(self._batches), delay_s=sent_delay_s)
        self._batches.clear()


def _octets(item: Item) -> int:
    """Return about how much memory a request takes."""
    return SMALLEST + (len(item.request.body) if item.request is not None else 0)


async def end_batches(store: Store, holder: str, numbers: set[int], *, delay_s: float) -> None:
    """Have what is left of these batches wait again. Tries until the store has answered."""
    while numbers:
        try:
            for sighting in await store.batches():
                if sighting.batch_id in numbers and sighting.holder == holder:
                    await store.recover(sighting, delay_s=delay_s)
            left = {one.batch_id for one in await store.batches() if one.holder == holder}
        except StoreDownError:
            await asyncio.sleep(RETRY_S)
        else:
            numbers = numbers & left
