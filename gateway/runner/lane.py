"""One lane at work: workers that take its items in turn, each by way of a slot.

Rules that always hold:
- A slot is held for the call and nothing else: opening an item, reading what its answer says, sealing and writing it
  happen before and after. There are some workers more than slots, so that the next call stands ready.
- A call in progress is never cut by us: who retires a lane ends those who wait, and waits for those who call.
- An item goes out as the configuration has it in the moment of its grant.
- An item whose guard said no before the first byte goes back to the head; so does one of a batch that may be another's
  by now.
- A defect ends the lane and nothing else. What it may have sent is then treated like a crash's: repeated after T where
  it may be, in doubt where not.

Which lanes work, and with how many workers, is `gateway.runner.executor`'s.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.records import LaneWork
from gateway.runner.committer import Committer
from gateway.runner.feed import Feed, Item
from gateway.runner.sending import Attempt, Site
from gateway.slots import RefusedError, Slots
from gateway.upstream import GuardClosedError

SPARE = 2
"""Workers for each slot: when several calls end in the same moment, for each of them another stands ready."""
TURNS = 2
"""Of the event loop, before an answer is read: whoever was granted the slot sends first."""
AFTER_GUARD_S = 0.5
"""Before a worker whose guard said no tries again: the executor looks at the lane every second."""


class Conclude(Protocol):
    """Judges an attempt and hands it in. `None`: the item cannot be opened."""

    async def __call__(self, item: Item, sources: frozenset[str], attempt: Attempt | None) -> None: ...


@dataclass(slots=True, eq=False)
class _Worker:
    task: "asyncio.Task[None] | None" = None
    waiting: bool = True  #: nothing is sent: may be cancelled


class Lane:
    """A lane at work. `run` is a task of the executor's."""

    def __init__(
        self,
        work: LaneWork,
        feed: Feed,
        slots: Slots,
        site: Callable[[], Site],
        committer: Committer,
        conclude: Conclude,
    ) -> None:
        self.work = work
        self.feed = feed
        self._slots = slots
        self._site = site
        self._committer = committer
        self._conclude = conclude
        self._workers: set[_Worker] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._wanted = 0
        self._fills = False
        self.retiring = False
        self.calling = 0  #: calls in progress

    async def run(self, workers: int) -> BaseException | None:
        """Work until nothing is left, or `retire`; give back what was not sent. Return a defect, if one ended it."""
        defect: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._fills = True
                tasks.create_task(self._fill())
                self.resize(workers)
        except* Exception as group:  # noqa: BLE001  # a defect ends this lane; the executor logs it, and others go on
            defect = group
        finally:
            self._tasks = None
            self.retiring = True
        hold_s = self._site().settings.hold_total if defect is not None else 0.0
        await self.feed.give_back(sent_delay_s=hold_s)
        return defect

    @property
    def workers(self) -> int:
        """Return with how many it works, the spare ones not counted."""
        return self._wanted // SPARE

    def resize(self, workers: int) -> None:
        """Work with so many from now on; those too many leave after the call they are at."""
        self._wanted = workers * SPARE
        while self._takes_workers() and len(self._workers) < self._wanted:
            assert self._tasks is not None
            worker = _Worker()
            self._workers.add(worker)
            worker.task = self._tasks.create_task(self._work(worker))

    def _takes_workers(self) -> bool:
        """Say whether somebody is still at it: the group of a lane whose last task has ended takes no other."""
        return self._tasks is not None and not self.retiring and (self._fills or bool(self._workers))

    async def _fill(self) -> None:
        try:
            await self.feed.fill()
        finally:
            self._fills = False

    def retire(self) -> None:
        """Begin no further call. `run` returns when those in progress have ended."""
        if self.retiring:
            return
        self.retiring = True
        self.feed.stop()
        for worker in self._workers:
            if worker.waiting and worker.task is not None:
                worker.task.cancel()

    async def _work(self, worker: _Worker) -> None:
        try:
            while not self.retiring and len(self._workers) <= self._wanted:
                worker.waiting = True
                await self._committer.room()
                item = await self.feed.next()
                if item is None:
                    return
                await self._serve(item, worker)
        finally:
            self._workers.discard(worker)

    async def _serve(self, item: Item, worker: _Worker) -> None:
        key = self.work.key
        site = self._site()
        sources = site.sources_of(key.route, key.sources)
        attempt: Attempt | None = None
        try:
            if item.request is not None:
                async with self._slots.slot(
                    sources, self.work.public_id, hold_s=site.settings.hold_total, stored=True
                ) as slot:
                    if not self._committer.may_send(item.batch):
                        raise GuardClosedError
                    worker.waiting = False
                    self.calling += 1
                    try:
                        attempt = await self._site().send(key.route, item.request, slot)
                    finally:
                        self.calling -= 1
        except GuardClosedError:
            worker.waiting = True
            self.feed.put_back(item)
            await asyncio.sleep(AFTER_GUARD_S)
        except RefusedError:  # admission is stopping, and so are we
            self.feed.put_back(item)
            self.retire()
        except asyncio.CancelledError:
            if worker.waiting:
                self.feed.put_back(item)
            raise
        else:
            worker.waiting = False
            for _ in range(TURNS):
                await asyncio.sleep(0)
            await self._conclude(item, sources, attempt)
