"""The loop that executes runs: which lanes work now, with how many workers; and what is due every second, every R and
every hour.

Rules that always hold:
- Lanes work only while nothing stands against them (window, hold, cool-down, ramp at 0): what cannot be sent now is not
  kept in hand. Until the store has said what stands, none begins.
- Of a run that was paused or cancelled nothing more is begun, from the next commit or second on.
- When the last lane of a run has left, the store is told (`rest`): it says whether the run is done.
- While the store is down the loop goes on asking; calls in progress end, and what they came to is kept.
- Stopping: claim no more, let calls in progress end, make everything durable, give back what was not sent.

What a lane does is `gateway.runner.lane`'s; which lanes may work is decided in `policies.runs`.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from gateway.log import EventLog
from gateway.packing import StoredRequest
from gateway.records import GATEWAY, LaneWork, RunRecord, Settled, StoredItem
from gateway.runner.accounts import Accounts
from gateway.runner.committer import Committer
from gateway.runner.feed import Feed, Item, Room
from gateway.runner.judging import Judge, RunInHand
from gateway.runner.lane import Lane
from gateway.runner.sending import Attempt, Site
from gateway.sealing import KeyRing, SealError
from gateway.slots import Slots
from gateway.store.interface import StateError, Store, StoreError
from policies.model import Clock, RunKind, RunState, StoreDownError
from policies.runs import plan

TICK_S = 1.0
REST_AFTER_DEFECT_S = 60.0
"""For so long a lane that ended by a defect is left alone."""
GOES_ON = frozenset({RunState.READY, RunState.RUNNING})


class Executor:
    """Keeps the lanes at work that should be. `run` is a task of its owner's, and ends after `stop`."""

    def __init__(
        self,
        store: Store,
        holder: str,
        slots: Slots,
        committer: Committer,
        accounts: Accounts,
        keys: KeyRing,
        clock: Clock,
        log: EventLog,
        site: Callable[[], Site],
        on_defect: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._holder = holder
        self._slots = slots
        self._committer = committer
        self._accounts = accounts
        self._keys = keys
        self._clock = clock
        self._log = log
        self._site = site
        self._on_defect = on_defect
        self.judge: Judge  # set by whoever puts the parts together: each needs the other
        self.may_begin: Callable[[], bool] = lambda: True  # likewise
        self.lanes: dict[int, Lane] = {}
        self.runs: dict[int, RunInHand] = {}
        self._left_alone: dict[int, float] = {}  # lane -> until, boot clock
        self._to_hold: dict[int, str] = {}
        self._told_of: set[str] = set()
        self._room = Room()
        self._woken = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """Look at once: something has changed."""
        self._woken.set()

    def routes_changed(self) -> None:
        """Retire lanes whose route is gone."""
        for lane in self.lanes.values():
            if not self._site().knows(lane.work.key.route):
                lane.retire()
        self.wake()

    def stop(self) -> None:
        """Begin nothing more; `run` returns when all is given back."""
        self._stopping = True
        for lane in self.lanes.values():
            lane.retire()
        self.wake()

    async def run(self) -> None:
        """Execute runs until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping:
                try:
                    await self._look(tasks)
                except StoreDownError as error:
                    self._committer.note_down(error, writing=False)
                except StoreError as error:
                    self._log.error("runs do not go on", what=str(error), remedy="Do what it says; tried every second.")
                except Exception as error:  # noqa: BLE001  # a defect here must not end what is in progress
                    self._on_defect(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._woken.wait()
                self._woken.clear()

    # Which lanes work.

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        await self._write_holds()
        work = {one.lane_id: one for one in await self._store.work(self._clock.wall())}
        self._committer.note_up(wrote=False)
        if self._stopping or not self.may_begin():
            return
        wanted = self._planned([one for one in work.values() if self._may_work(one)])
        for lane_id, lane in self.lanes.items():
            if lane_id not in wanted and not self._winds_down(work.get(lane_id)):
                lane.retire()
            else:
                lane.resize(wanted.get(lane_id, 0) or lane.workers)
                lane.feed.due = lane.feed.due or (lane_id in work and work[lane_id].due > 0)
        for lane_id, workers in wanted.items():
            if lane_id not in self.lanes and await self._takes_in_hand(work[lane_id]) and not self._stopping:
                self._begin(tasks, work[lane_id], workers)

    def _planned(self, work: Collection[LaneWork]) -> Mapping[int, int]:
        pools = {one.lane_id: self._pools(one) for one in work}
        # The configured caps: shared slots are taken when there is a demand, and a ramp bounds slots, not workers.
        caps = {name: pool.slots for name, pool in self._site().configuration.layout.pools.items()}
        return plan(work, pools, caps)

    def _pools(self, work: LaneWork) -> tuple[str, ...]:
        return self._slots.pools_of(self._site().sources_of(work.key.route, work.key.sources))

    def _may_work(self, work: LaneWork) -> bool:
        """Say whether a lane's items may be sent now, as far as can be known beforehand."""
        site = self._site()
        if not site.knows(work.key.route):
            self._tell_once(f"{work.public_id} {work.key.route}", work)
            return False
        if not (work.unclaimed or work.due or work.lane_id in self.lanes):
            return False
        if self._left_alone.get(work.lane_id, 0.0) > self._clock.boot() or work.run_id in self._to_hold:
            return False
        return self._slots.obstacle(site.sources_of(work.key.route, work.key.sources)) is None

    def _winds_down(self, work: LaneWork | None) -> bool:
        """Say whether a lane has claimed its last, and may send it: it leaves by itself."""
        return work is not None and self._may_work(work) and not (work.unclaimed or work.due)

    def _tell_once(self, what: str, work: LaneWork) -> None:
        if what not in self._told_of:
            self._told_of.add(what)
            self._log.error(
                "run waits for a route",
                run=work.public_id,
                route=work.key.route,
                remedy="Put the route back into `routes`, or cancel the run.",
            )

    # One lane.

    async def _takes_in_hand(self, work: LaneWork) -> bool:
        """Open the run of a lane, if it is not open."""
        if work.run_id in self.runs:
            return True
        record = await self._store.run(work.public_id)
        if record is None or record.wrapped_key is None or record.state not in GOES_ON:
            return False
        try:
            key = self._keys.unwrap(record.wrapped_key)
            if record.dictionary is not None:
                key = key.with_dictionary(key.unseal("dictionary", record.public_id, 0, record.dictionary))
        except SealError as error:
            self._to_hold[record.id] = f"its items cannot be opened: {error}"
            return False
        self.runs[record.id] = RunInHand(record, key)
        return True

    def _begin(self, tasks: asyncio.TaskGroup, work: LaneWork, workers: int) -> None:
        run = self.runs[work.run_id]
        label = self._site().label_of(work.key.sources)

        async def opened(items: Iterable[StoredItem]) -> list[StoredRequest | None]:
            return await self.judge.opened(run, items)

        async def conclude(item: Item, sources: frozenset[str], attempt: Attempt | None) -> None:
            await self.judge.conclude(run, item, label, sources, repeatable=work.key.repeatable, attempt=attempt)

        feed = Feed(work, self._store, self._holder, self._committer, opened, self._room)
        lane = Lane(work, feed, self._slots, self._site, self._committer, conclude)
        self.lanes[work.lane_id] = lane
        run.lanes += 1
        tasks.create_task(self._at_work(lane, run, workers))

    async def _at_work(self, lane: Lane, run: RunInHand, workers: int) -> None:
        try:
            defect = await lane.run(workers)
        except Exception as error:  # noqa: BLE001  # what it had in hand is found by `Recovery`; other lanes go on
            defect = error
        if defect is not None:
            self._on_defect(defect)
            self._left_alone[lane.work.lane_id] = self._clock.boot() + REST_AFTER_DEFECT_S
        elif not lane.feed.claimed:  # others were first, or the run was paused: do not ask again at once
            self._left_alone[lane.work.lane_id] = self._clock.boot() + TICK_S
        del self.lanes[lane.work.lane_id]
        run.lanes -= 1
        if not run.lanes:
            self.runs.pop(run.record.id, None)
            await self.rest(run.record.id, may_complete=self.may_complete(run.record))
        self.wake()

    async def rest(self, run_id: int, *, may_complete: bool) -> None:
        """Tell the store that nothing of a run is in hand. What a store that is down does not hear now, the chores say
        again."""
        try:
            record = await self._store.rest(run_id, may_complete=may_complete)
        except (StoreDownError, StoreError) as error:
            self._log.info("run not put to rest yet", run=run_id, why=str(error))
            return
        except Exception as error:  # noqa: BLE001  # a defect: the lanes of other runs go on
            self._on_defect(error)
            return
        if record.state not in GOES_ON:
            self._accounts.close(run_id)
            self._log.info("run", run=record.public_id, state=record.state, reason=record.reason)

    def may_complete(self, record: RunRecord) -> bool:
        """Say whether a run ends when all its items are settled: an async run of today does not, calls still join
        it."""
        return record.kind is not RunKind.ASYNC or record.options.get("day") != self.today()

    def today(self) -> str:
        """Return the day in Brussels."""
        zone = self._site().configuration.calendar.zone
        now: datetime = self._clock.wall()
        return now.astimezone(zone).date().isoformat()

    # Holds by the gateway itself.

    def hold(self, run: RunInHand, reason: str) -> None:
        """Pause a run for a person: each next call would fail alike."""
        if run.record.id not in self._to_hold:
            self._to_hold[run.record.id] = reason
            self._retire(run.record.id)
            self.wake()

    def settled(self, settled: Settled) -> None:
        """Follow what a commit said of the runs that it touched."""
        for run_id, state in settled.states.items():
            if state not in GOES_ON:
                self._accounts.close(run_id)
                self._retire(run_id)
        if settled.lost:
            for lane in self.lanes.values():
                lane.feed.drop_lost()

    def _retire(self, run_id: int) -> None:
        for lane in self.lanes.values():
            if lane.work.run_id == run_id:
                lane.retire()

    async def _write_holds(self) -> None:
        for run_id, reason in list(self._to_hold.items()):
            try:
                await self._store.change_state(
                    run_id, RunState.PAUSED, author=GATEWAY, reason=reason, expected=tuple(GOES_ON)
                )
                self._log.warning("run held", run=run_id, reason=reason, remedy="See `bcss-gateway runs show`.")
            except StateError:  # a person was first, or it is over
                self._log.info("run is held or over already", run=run_id)
            self._accounts.close(run_id)
            del self._to_hold[run_id]
