"""The runner put together: executor, committer, interruptions, recovery, accounts, and what is due now and then.

Rules that always hold:
- Everything that this process holds in the store carries one holder's name, random and new at each start.
- At start, and then every R, batches of dead processes are looked for; while this process lives it says so.
- Whatever the store cannot take now is tried again; nothing of it is lost while the process lives.
- `stop` begins an orderly end: calls in progress end, all is written, what was not sent is given back.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from random import Random

from gateway.log import EventLog
from gateway.metrics import Metrics, Reading
from gateway.records import GATEWAY, RunRecord, Settled
from gateway.runner.accounts import Accounts, RejectTerms
from gateway.runner.client_runs import ClientRuns
from gateway.runner.committer import Committer
from gateway.runner.executor import TICK_S, Executor
from gateway.runner.figures import ACTIVE, Figures
from gateway.runner.interruptions import Interruptions
from gateway.runner.interruptions import Terms as InterruptionTerms
from gateway.runner.judging import Judge
from gateway.runner.lane import Lane
from gateway.runner.recovering import Recovery
from gateway.runner.sending import Site
from gateway.sealing import KeyRing
from gateway.slots import Slots
from gateway.store.interface import DelayedError, StateError, Store, StoreError
from policies.leases import Times
from policies.model import ALL_SOURCES, Clock, RunKind, RunState, Standing, StoreDownError

FIGURES_EVERY_S = 2.0
REST_EVERY_S = 30.0
PURGE_EVERY_S = 3600.0
PURGE_AGAIN_S = 60.0
"""After a purge that another program was in the way of; doubled each time, up to the hour."""
STOPPED_RENEWALS = 3
"""A store that was down for so many R or longer has stopped bulk: an interruption. Shorter ones are bridged by leases
and by work in hand."""
PAGE = 200


class Runner:
    """Executes runs. Made once the store is open; `run` is a task of the composition root's."""

    def __init__(
        self,
        store: Store,
        slots: Slots,
        metrics: Metrics,
        keys: KeyRing,
        clock: Clock,
        log: EventLog,
        dice: Random,
        site: Site,
        *,
        shared: bool,
        on_defect: Callable[[BaseException], None],
    ) -> None:
        self.holder = secrets.token_hex(16)
        self._store = store
        self._slots = slots
        self._clock = clock
        self._log = log
        self._site = site
        self._shared = shared
        self._on_defect = on_defect
        self._accounts = Accounts()
        # As long as a slot's rows are good: a call is over, T included, before anybody can have ended its batch.
        sure_s = (lambda: self._lease_times.lease_s - self._lease_times.hold_s) if shared else None
        self._committer = Committer(store, self.holder, clock, log, self._settled, self._back, sure_s)
        self.interruptions = Interruptions(
            store, clock, log, _interruption_terms(site), self._cap_of, self._adopt_standing
        )
        self._executor = Executor(
            store, self.holder, slots, self._committer, self._accounts, keys, clock, log, self.site, on_defect
        )
        self._executor.may_begin = lambda: self.interruptions.is_known
        self._executor.judge = Judge(
            self._committer,
            self._accounts,
            metrics,
            log,
            dice,
            self.site,
            noted=self.interruptions.noted,
            hold=self._executor.hold,
        )
        self._recovery = Recovery(
            store,
            self.holder,
            clock,
            log,
            shared=shared,
            lease_s=lambda: self._lease_times.lease_s,
            hold_s=lambda: self._site.settings.hold_total,
            in_hand=self._committer.numbers,
            seen=self._committer.seen,
        )
        self.figures = Figures(clock, lambda: self._site.configuration.calendar, lambda: not self.is_down)
        self._was_steered = asyncio.Event()
        self._purge_in_s = 0.0  #: after how long a delayed purge is tried again; 0: none was delayed
        self.client_runs = ClientRuns(store, clock, log, self._reject_terms)

    # What others ask of it.

    def site(self) -> Site:
        """Return what the configuration in force makes of items."""
        return self._site

    def adopt(self, site: Site) -> None:
        """Go by another configuration from now on; calls in progress keep to theirs."""
        self._site = site
        self.interruptions.adopt(_interruption_terms(site))
        self._executor.routes_changed()

    def wake(self) -> None:
        """Look at once: a run was submitted or resumed."""
        self._executor.wake()

    def steered(self) -> None:
        """Look at once at what a person changed: a hold must not wait for the next second."""
        self._was_steered.set()
        self.wake()

    def noted(self, sources: Iterable[str], technical: bool) -> None:
        """Note how a synchronous bulk call to these sources ended."""
        self.interruptions.noted(sources, technical)

    def lanes(self) -> Mapping[int, Lane]:
        """Return the lanes at work."""
        return self._executor.lanes

    @property
    def is_down(self) -> bool:
        """Whether the store does not answer."""
        return self._committer.down_since is not None

    def readings(self) -> Iterable[Reading]:
        """Yield what Prometheus is told."""
        yield from self.figures.readings()
        yield from self.interruptions.readings(self._site.configuration.catalogue.sources)

    # Its life.

    async def run(self) -> None:
        """Execute runs until `stop`, and give back what was not sent."""
        async with asyncio.TaskGroup() as tasks:
            chores = [
                tasks.create_task(self._committer.run()),
                tasks.create_task(self._every(TICK_S, self._second, early=self._was_steered)),
                tasks.create_task(self._every(self._lease_times.renew_s, self._renew)),
                tasks.create_task(self._every(FIGURES_EVERY_S, self._look_at_runs)),
                tasks.create_task(self._every(REST_EVERY_S, self._put_to_rest)),
                tasks.create_task(self._every(PURGE_EVERY_S, self._purge)),
            ]
            try:
                await self._executor.run()
                await self.client_runs.write()
            except StoreDownError as error:
                self._log.warning("not everything was written", why=str(error))
            finally:
                for chore in chores:
                    chore.cancel()

    def stop(self) -> None:
        """Begin nothing more; `run` returns when everything is given back."""
        self._executor.stop()

    async def _every(
        self, seconds: float, deed: Callable[[], Awaitable[float | None]], *, early: asyncio.Event | None = None
    ) -> None:
        """Do it for ever, after so many seconds again, or after as many as it says."""
        early = early or asyncio.Event()
        while True:
            early.clear()
            again_s: float | None = None
            try:
                again_s = await deed()
            except StoreDownError as error:
                self._committer.note_down(error, writing=False)
                await asyncio.sleep(min(seconds, TICK_S))
                continue
            except StoreError as error:
                self._log.error("store", what=str(error), remedy="Do what it says; it is tried again.")
            except Exception as error:  # noqa: BLE001  # a defect of one chore must not end the others
                self._on_defect(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds if again_s is None else again_s):
                    await early.wait()

    # What is due.

    async def _second(self) -> None:
        was_known = self.interruptions.is_known
        try:
            await self.interruptions.look()
        finally:
            if self.interruptions.is_known and not was_known:
                self._slots.standing_is_known()
                self.wake()
        await self.client_runs.write()
        if self._committer.has_nothing_to_try_with:  # nobody else would find out that it can be written again
            await self._store.note(GATEWAY, "store up", "store", "it could not be written for a while")
            self._committer.note_up(wrote=True)

    async def _renew(self) -> None:
        await self._recovery.renew()
        if await self._recovery.look():
            self.wake()
            await self._put_to_rest()  # what a dead process had in hand may have been a run's last

    async def _look_at_runs(self) -> None:
        self.figures.look([record async for record in self._runs(ACTIVE)])

    async def _put_to_rest(self) -> None:
        """Say of runs that nobody here has in hand that they rest: those that end by nothing being left, and those of
        which a dead process said that they run."""
        async for record in self._runs((RunState.READY, RunState.RUNNING)):
            if record.kind is RunKind.CLIENT or record.id in self._executor.runs:
                continue
            if not record.waiting or record.state is RunState.RUNNING:
                may_complete = self._executor.may_complete(record)
                await self._executor.rest(record.id, may_complete=may_complete)

    async def _runs(self, states: tuple[RunState, ...]) -> AsyncIterator[RunRecord]:
        after = 0
        while True:
            page = await self._store.runs(states, after=after, limit=PAGE)
            for record in page:
                yield record
            if len(page) < PAGE:
                return
            after = page[-1].id

    async def _purge(self) -> float:
        await self._give_up_uploads()
        again_s = min(2 * self._purge_in_s or PURGE_AGAIN_S, PURGE_EVERY_S)
        self._purge_in_s = 0.0
        for record in await self._store.to_purge(self._clock.wall()):
            try:
                await self._store.purge(record.id, author=GATEWAY)
            except DelayedError as error:
                self._purge_in_s = again_s
                self._log.warning(
                    "purge delayed",
                    run=record.public_id,
                    what=str(error),
                    again_in_s=again_s,
                    remedy="None, unless it goes on for hours: then find what reads the database.",
                )
            else:
                self._log.info("run purged", run=record.public_id)
        return self._purge_in_s or PURGE_EVERY_S

    async def _give_up_uploads(self) -> None:
        oldest = self._clock.wall() - timedelta(seconds=self._site.settings.runs.retention)
        after = 0
        while page := await self._store.runs([RunState.LOADING], after=after, limit=PAGE):
            after = page[-1].id
            for record in page:
                if record.changed_at < oldest:
                    with suppress(StateError):  # it was made ready, or cancelled, meanwhile
                        await self._store.change_state(
                            record.id,
                            RunState.CANCELLED,
                            author=GATEWAY,
                            reason="its upload was never completed",
                            expected=(RunState.LOADING,),
                        )
                        self._log.warning("upload given up", run=record.public_id, remedy="Submit it again.")

    # What the parts tell each other.

    def _adopt_standing(self, standing: Standing) -> None:
        self._slots.adopt_standing(standing)
        self.wake()

    def _settled(self, settled: Settled) -> None:
        self._executor.settled(settled)

    def _back(self, after_s: float) -> None:
        if after_s >= STOPPED_RENEWALS * self._lease_times.renew_s and (self._shared or self._executor.lanes):
            self.interruptions.interrupt(ALL_SOURCES, "the store was down", self._site.settings.runs.cool_down)

    def _cap_of(self, source: str) -> int:
        layout = self._site.configuration.layout
        if source == ALL_SOURCES:
            return max(pool.slots for pool in layout.pools.values())
        return layout.pools[layout.pool_of(source)].slots if source in layout else 1

    @property
    def _lease_times(self) -> Times:
        return self._slots.times(self._site.settings.hold_total)

    def _reject_terms(self) -> RejectTerms:
        settings = self._site.settings.runs
        return RejectTerms(settings.reject_ratio, settings.reject_minimum)


def _interruption_terms(site: Site) -> InterruptionTerms:
    runs = site.settings.runs
    return InterruptionTerms(runs.cool_down, runs.ramp_step, runs.burst_faults, runs.burst_calls, runs.burst_time)
