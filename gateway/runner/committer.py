"""Group commits: what became of items goes into the store behind the calls, never in their way.

Results and returned items gather in memory and are written in one transaction, at most once in `FLUSH_S`, together with
the marks up to which positions may be sent. A worker that has handed in a result goes on at once.

Rules that always hold:
- A mark counts only once its commit has returned: no position at or above it is sent before.
- What was handed in is kept until a commit that held it has returned, and written again after one that failed: the
  store takes the first result of an item and ignores a second.
- What the store refuses though it works holds up nothing else: a commit that is refused is written by halves, and the
  entry that is refused alone is put in doubt. While nothing at all can be written, everything is kept.
- While the store is down nothing is lost and nothing grows without bound: no new marks, no new claims, and `room`
  holds workers back when answers of `MOST_BYTES` wait.

Decides nothing about items.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gateway.log import EventLog
from gateway.records import Result, Returned, Settled, Settlement
from gateway.runner.gathering import Entry, Gathered, joined, octets
from gateway.store.interface import StateError, Store
from policies.model import Clock, ItemState, StoreDownError

FLUSH_S = 0.02
"""From the begin of one commit to the next. 20 ms: keeps the disk quiet, and a crash repeats a dozen calls at most."""
RETRY_S = 1.0
"""How often a commit is tried again while the store is down."""
MOST_BYTES = 256 * 1024 * 1024
"""Answers that may wait in memory for the store."""

NOT_STORED = "not_stored"
"""The code of an item in doubt because the store refuses what became of it."""
MOST_REFUSED = 16
"""Entries that cannot even be in doubt: where nothing else could be written before, it is not for what is in them."""


class Bell:
    """Wakes everybody who waits for something to become true."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Have everybody look again."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, is_so: Callable[[], object]) -> None:
        """Wait until it is so."""
        while not is_so():
            await self._event.wait()


@dataclass(slots=True, eq=False)
class BatchInHand:
    """A batch that this process works on, and how far it may."""

    batch_id: int
    run_id: int
    hi: int
    armed: int  #: committed: positions below it may be sent
    wanted: int  #: the mark to ask for with the next commit
    left: int  #: items of it that are neither settled nor returned
    seen_at: float  #: boot clock: it was claimed, or renewed, after that
    lost: bool = False  #: it is another's now
    finished: bool = False  #: the store has been told that nothing is left of it


class Committer:
    """Writes for one process. `run` is a task of its owner's; `on_settled` is told what each commit came to."""

    def __init__(
        self,
        store: Store,
        holder: str,
        clock: Clock,
        log: EventLog,
        on_settled: Callable[[Settled], None],
        on_back: Callable[[float], None],
        sure_s: Callable[[], float] | None = None,
    ) -> None:
        """Begin.

        Args:
            sure_s: how long after a renewal no other process ends this one's batches; None: there is no other.
        """
        self._store = store
        self._holder = holder
        self._clock = clock
        self._log = log
        self._on_settled = on_settled
        self._on_back = on_back
        self._sure_s = sure_s
        self._batches: dict[int, BatchInHand] = {}
        self._next = Gathered()
        self._bytes = 0
        self._work = asyncio.Event()
        self._committed = Bell()
        self._handed_in = 0
        self._written = 0
        self._cannot_write = False
        self.down_since: float | None = None  #: boot clock, while the store does not answer

    # The workers' side.

    def now(self) -> float:
        """Return the boot clock's time."""
        return self._clock.boot()

    def take_charge(self, batch: BatchInHand) -> None:
        """Look after a batch from now on."""
        self._batches[batch.batch_id] = batch

    def may_send(self, batch: BatchInHand) -> bool:
        """Say whether a batch is surely this process's still. Another ends those of a process that was frozen or cut
        off: what may have been sent of them is in doubt then, and what a person decides of it must stay true."""
        return not batch.lost and (self._sure_s is None or self._clock.boot() <= batch.seen_at + self._sure_s())

    def seen(self, renewed: Collection[int], standing: Collection[int], asked: float) -> None:
        """Note which of the batches that were renewed at `asked` stood after it; the others are not ours any more."""
        ours = {number: self._batches[number] for number in renewed if number in self._batches}
        for number in ours.keys() & standing:
            ours[number].seen_at = max(ours[number].seen_at, asked)
        if lost := frozenset(ours.keys() - standing):
            self._lose(lost)
            self._on_settled(Settled({}, lost=lost))
            self._committed.ring()

    def _lose(self, numbers: Collection[int]) -> None:
        for number in numbers:
            batch = self._batches.pop(number, None)
            if batch is not None:
                batch.lost = True

    def let_go(self, batch_id: int) -> None:
        """Look after it no more."""
        self._batches.pop(batch_id, None)

    def add(self, entry: Entry) -> None:
        """Take what became of an item. The last one of a batch finishes it."""
        self._next.entries.append(entry)
        self._bytes += octets((entry,))
        self._handed_in += 1
        batch = self._batches.get(entry.batch_id)
        if batch is not None:
            batch.left -= 1
            if not batch.left:
                self._finish(batch)
        self._work.set()

    def nothing_left(self, batch: BatchInHand) -> None:
        """Note that a batch holds no item any more."""
        self._finish(batch)
        self._work.set()

    async def room(self) -> None:
        """Wait until there is memory for another answer."""
        if self._bytes < MOST_BYTES:
            return
        await self._committed.until(lambda: self._bytes < MOST_BYTES)

    async def armed(self, batch: BatchInHand, position: int) -> None:
        """Wait until a position may be sent, or the batch is lost."""
        if position < batch.armed or batch.lost:
            return
        batch.wanted = max(batch.wanted, min(batch.hi, position + 1))
        self._work.set()
        await self._committed.until(lambda: position < batch.armed or batch.lost)

    async def flushed(self) -> None:
        """Wait until everything that was handed in so far is durable."""
        target = self._handed_in
        self._work.set()
        await self._committed.until(
            lambda: self._written >= target and not any(batch.finished for batch in self._batches.values())
        )

    def numbers(self) -> Collection[int]:
        """Return the numbers of the batches in hand."""
        return self._batches.keys()

    @property
    def waiting(self) -> int:
        """Return how many entries are not durable yet."""
        return self._handed_in - self._written

    @property
    def has_nothing_to_try_with(self) -> bool:
        """Whether the store could not write, and nothing waits that would show whether it can by now."""
        return self.down_since is not None and self._cannot_write and not self.waiting

    def _finish(self, batch: BatchInHand) -> None:
        if not batch.finished:
            batch.finished = True
            self._next.finished.add(batch.batch_id)

    # The store's side.

    async def run(self) -> None:
        """Commit for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            began = loop.time()
            await self._commit()
            await asyncio.sleep(max(0.0, FLUSH_S - (loop.time() - began)))

    async def _commit(self) -> None:
        while True:
            gathered, marks = self._gathered()
            if not gathered and not marks:
                return
            try:
                settled = await self._settle(gathered, marks)
            except StoreDownError as error:
                await self._later(gathered, error)
            except Exception as error:  # noqa: BLE001  # whatever it is: what was handed in is kept, and tried again
                left = await self._by_halves(gathered, error) if gathered else (gathered, error)
                if left is None:
                    self._work.set()  # the marks are asked for anew
                    return
                await self._later(*left)
            else:
                self._done(gathered, marks, settled)
                return

    async def _settle(self, gathered: Gathered, marks: Mapping[int, int]) -> Settled:
        return await self._store.settle(
            Settlement(
                holder=self._holder,
                results=[one for one in gathered.entries if isinstance(one, Result)],
                returned=[one for one in gathered.entries if isinstance(one, Returned)],
                armed=marks,
                finished=sorted(gathered.finished),
            )
        )

    async def _later(self, gathered: Gathered, error: Exception) -> None:
        self._next.entries[:0] = gathered.entries
        self._next.finished |= gathered.finished
        self.note_down(error, writing=True)
        await asyncio.sleep(RETRY_S)

    async def _by_halves(self, gathered: Gathered, error: Exception) -> tuple[Gathered, Exception] | None:
        """Write what the store refused as a whole, but for what it refuses alone.

        Returns:
            What is to be tried again, and why: the store is down by now, or refuses everything. None: all is done.
        """
        todo = gathered.halves()[::-1] or [gathered]
        refused: list[tuple[Gathered, Exception]] = []
        works = False
        troubles = 0
        while todo and (works or troubles < MOST_REFUSED):
            part = todo.pop()
            try:
                why = await self._refusal(part)
                halves = part.halves() if why is not None else []
                if why is not None and part.entries and not halves and await self._put_in_doubt(part, why):
                    why = None
            except StoreDownError as down:
                return joined([*(one for one, _ in refused), part, *reversed(todo)]), down
            works = works or (why is None and bool(part.entries or not gathered.entries))  # of the same kind
            todo += reversed(halves)
            if why is not None and not halves:
                refused.append((part, why))
                # A batch that cannot end says nothing of the database: what is left of it may be refused, too.
                troubles += not isinstance(why, StateError)
                error = error if isinstance(why, StateError) else why
        if troubles and not works:
            return joined([*(one for one, _ in refused), *reversed(todo)]), error
        for part, why in refused:
            self._leave_to_recovery(part, why)
        return None

    async def _refusal(self, part: Gathered, instead: Gathered | None = None) -> Exception | None:
        """Write this (or something else in its place), or return why it is refused."""
        try:
            settled = await self._settle(instead or part, {})
        except StoreDownError:
            raise
        except Exception as error:  # noqa: BLE001  # its caller tells, and goes on with the others
            return error
        self._done(part, {}, settled)
        return None

    async def _put_in_doubt(self, part: Gathered, why: Exception) -> bool:
        """Put an item in doubt of which the store refuses what became of it; say whether it lets that be written."""
        (entry,) = part.entries
        where, state = (entry.batch_id, entry.lane_id, entry.position, entry.attempts), ItemState.IN_DOUBT
        if await self._refusal(part, Gathered([Result(*where, state, code=NOT_STORED)])) is not None:
            return False
        self._log.error(
            "item cannot be stored",
            lane=entry.lane_id,
            position=entry.position,
            what=str(why),
            remedy="It is in doubt (`bcss-gateway runs doubts`): decide of it, and report this line.",
        )
        return True

    def _leave_to_recovery(self, part: Gathered, why: Exception) -> None:
        """Stop trying to write it: its batch is a stray by the time that it ends, and `Recovery` ends those."""
        self._written += len(part.entries)
        self._bytes -= part.octets
        for number in part.finished:
            self.let_go(number)
        self._log.error(
            "what became of an item is refused",
            batches=sorted({*part.finished, *(one.batch_id for one in part.entries)}),
            what=str(why),
            remedy="What is left of these batches is repeated or put in doubt. Look at the database; report this line.",
        )
        self._committed.ring()

    def _gathered(self) -> tuple[Gathered, Mapping[int, int]]:
        """Take what there is to write: the entries in their order, and a finish only with the last of its batch."""
        gathered, self._next = self._next.cut()
        marks = {
            batch.batch_id: batch.wanted
            for batch in self._batches.values()
            if batch.wanted > batch.armed and not batch.lost and not batch.finished
        }
        return gathered, marks

    def note_down(self, error: Exception, *, writing: bool) -> None:
        """Note that the store did not answer, or could not write."""
        self._cannot_write = self._cannot_write or writing
        if self.down_since is None:
            self.down_since = self._clock.boot()
            self._log.error(
                "store down",
                what=str(error),
                waiting=self.waiting,
                remedy="Items go on as soon as it answers; real-time does not need it. Look at the database.",
            )

    def note_up(self, *, wrote: bool) -> None:
        """Note that the store has answered. One that could not write (a full disk) is up when it has written."""
        if self.down_since is None or (self._cannot_write and not wrote):
            return
        seconds = self._clock.boot() - self.down_since
        self.down_since = None
        self._cannot_write = False
        self._log.info("store up", after_s=round(seconds, 1))
        self._on_back(seconds)

    def _done(self, gathered: Gathered, marks: Mapping[int, int], settled: Settled) -> None:
        self.note_up(wrote=True)
        self._written += len(gathered.entries)
        self._bytes -= gathered.octets
        for batch_id, mark in marks.items():
            batch = self._batches.get(batch_id)
            if batch is not None and batch_id not in settled.lost:
                batch.armed = max(batch.armed, mark)
        self._lose(settled.lost)
        for batch_id in gathered.finished:
            self._batches.pop(batch_id, None)
        self._on_settled(settled)
        if self._next:
            self._work.set()
        self._committed.ring()
