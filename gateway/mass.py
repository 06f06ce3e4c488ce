"""What mass runs need, put together and opened behind the listeners: the store, the keys, the runner.

Rules that always hold:
- Nothing here is needed by real-time. Bulk begins once it was read what persons hold; where slots are in memory, bulk
  that is not stored goes on from then on, whatever the store does. The store is opened once the listeners are, and
  imported then; until it answers, it is tried again.
- `store`, `keys` and `runner` are there together or not at all; who needs them asks each time (`opened`).
- Stopping: the runner ends in order, then the store is let go of.

The one clear place for whoever else needs the store: `gateway.admin` and the proxy are handed a `MassRuns`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, cast

from gateway.config import Configuration
from gateway.log import EventLog
from gateway.metrics import Metrics, Reading
from gateway.proxy import Kept
from gateway.proxy.wire import answer_fields
from gateway.slots import Slots
from gateway.upstream import Upstream
from policies.model import ALL_SOURCES, Clock, LeaseStore, StoreDownError

if TYPE_CHECKING:
    from gateway.runner import Runner, Site
    from gateway.sealing import KeyRing
    from gateway.store.interface import Store

FIRST_CALLS_S = 0.05
"""Calls that waited for this start go first: what is imported behind the listeners keeps the interpreter busy for a
quarter of a second."""
RENEWALS_SEEN = 1.2
"""For so many R, other gateways' rows are looked at after an unclean stop: whoever lives renews within one."""
_LOOKS = 12
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""Between attempts to open a store that does not answer."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is there once the store is open."""

    store: "Store"
    keys: "KeyRing"
    runner: "Runner"


class MassRuns:
    """The store, the keys and the runner of one gateway. `run` is a task of the composition root's."""

    def __init__(
        self,
        configuration: Configuration,
        upstreams: Mapping[str, Upstream],
        slots: Slots,
        metrics: Metrics,
        clock: Clock,
        log: EventLog,
        dice: Random,
        *,
        on_defect: Callable[[BaseException], None],
    ) -> None:
        self._configuration = configuration
        self._upstreams = upstreams
        self._slots = slots
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._dice = dice
        self._on_defect = on_defect
        self._stopping = False
        self._ended = asyncio.Event()
        self.opened: Opened | None = None  #: None: the store is not there (yet)
        self.is_open = asyncio.Event()  #: set when `opened` is

    def adopt(self, configuration: Configuration, upstreams: Mapping[str, Upstream]) -> None:
        """Go by another configuration from now on."""
        self._configuration, self._upstreams = configuration, upstreams
        if self.opened is not None:
            self.opened.runner.adopt(self._site())

    def kept(self) -> Kept | None:
        """Return what the proxy needs of mass runs; None: the store is not open."""
        if self.opened is None:
            return None
        runner = self.opened.runner
        return Kept(self.opened.store, self.opened.keys, runner.client_runs, runner.wake)

    def noted(self, sources: Iterable[str], technical: bool) -> None:
        """Note how a synchronous bulk call ended; without a store nothing interrupts."""
        if self.opened is not None:
            self.opened.runner.noted(sources, technical)

    def readings(self) -> Iterable[Reading]:
        """Yield what Prometheus is told of runs."""
        if self.opened is not None:
            yield from self.opened.runner.readings()
        else:
            yield Reading("store_up", "1 while the store answers.", (), {(): 0.0})

    # Its life.

    async def run(self, *, unclean: bool) -> None:
        """Open the store, and execute runs until `stop`.

        Args:
            unclean: the process before this one did not stop in order: an interruption of everything, unless other
                gateways go on.
        """
        try:
            await asyncio.sleep(FIRST_CALLS_S)
            async with asyncio.TaskGroup() as tasks:
                self.opened = opened = await self._open()
                if opened is None or self._stopping:
                    return
                self.is_open.set()
                if unclean and not await self._others_go_on(opened.store):
                    settings = self._configuration.settings
                    cool_s = max(settings.hold_total, settings.runs.cool_down)
                    opened.runner.interruptions.interrupt(ALL_SOURCES, "an unclean restart", cool_s)
                await self._look_at_holds(opened.runner)
                if self._is_shared:
                    # Renews what is held for as long as calls are in progress: until this task is cancelled.
                    tasks.create_task(self._slots.keep(cast("LeaseStore", opened.store)))
                await self._execute(opened.runner)
        finally:
            self._ended.set()

    async def _others_go_on(self, store: "Store") -> bool:
        """Say whether another gateway holds slots and renews them: then bulk was not interrupted."""
        if not self._is_shared:
            return False
        rows = cast("LeaseStore", store)
        try:
            before = {(row.token, row.renewal, row.holder) for row in (await rows.observe()).rows}
            wait_s = RENEWALS_SEEN * self._slots.times(self._configuration.settings.hold_total).renew_s
            for _ in range(_LOOKS):
                if self._stopping:
                    return True
                await asyncio.sleep(wait_s / _LOOKS)
                if any(
                    row.holder and (row.token, row.renewal, row.holder) not in before
                    for row in (await rows.observe()).rows
                ):
                    return True
        except Exception as error:  # noqa: BLE001  # whatever it is: nobody was seen, and bulk waits
            self._log.warning(
                "other gateways not seen", why=type(error).__name__, remedy="Bulk cools down; look at the store."
            )
        return False

    async def _look_at_holds(self, runner: "Runner") -> None:
        """Know what persons hold before the first bulk call of this process."""
        try:
            await runner.interruptions.look()
        except Exception as error:  # noqa: BLE001  # the runner looks again every second, and tells what is wrong
            self._log.info("holds not read yet", why=type(error).__name__)
        if runner.interruptions.is_known:
            self._slots.standing_is_known()

    async def _execute(self, runner: "Runner") -> None:
        try:
            await runner.run()
        except* Exception as group:  # noqa: BLE001  # runs end by a defect; calls, and the slots they share, go on
            self._on_defect(group)
            self._log.error("runs have ended", remedy="Report the line before, and start the gateway anew.")
        self._ended.set()

    async def _open(self) -> Opened | None:
        pause_s = FIRST_PAUSE_S
        told = ""
        while not self._stopping:
            try:
                return await self._opened()
            except Exception as error:  # noqa: BLE001  # whatever keeps the store shut, calls go on
                what = f"{type(error).__name__}: {error}"
                if not isinstance(error, StoreDownError | OSError) and not _says_what_to_do(error):
                    self._on_defect(error)
                if what != told:
                    told = what
                    self._log.error(
                        "store cannot be opened", what=what, remedy="Runs and bulk wait; it is tried again."
                    )
                self._slots.no_store_yet()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return None

    async def _opened(self) -> Opened:
        await asyncio.to_thread(_import, self._is_shared)  # a tenth of a second: not in the way of calls
        from gateway.runner import Runner
        from gateway.sealing import KeyRing

        settings = self._configuration.settings
        key = settings.store.key.get_secret_value() if settings.store.key is not None else None
        keys = await asyncio.to_thread(KeyRing.open, key, settings.data_dir)
        store = await self._store()
        try:
            before, after = await store.migrate()
        except BaseException:
            await store.close()
            raise
        self._log.info("store open", engine="postgres" if self._is_shared else "sqlite", schema=after, was=before)
        runner = Runner(
            store,
            self._slots,
            self._metrics,
            keys,
            self._clock,
            self._log,
            self._dice,
            self._site(),
            shared=self._is_shared,
            on_defect=self._on_defect,
        )
        return Opened(store, keys, runner)

    async def _store(self) -> "Store":
        settings = self._configuration.settings
        if settings.store.url is None:
            from gateway.store.sqlite import open_sqlite

            return await open_sqlite(settings.data_dir / "store.sqlite", self._clock)
        from gateway.store.postgres import open_postgres

        return await open_postgres(settings.store.url.get_secret_value(), self._clock, settings.store.timeout)

    def _site(self) -> "Site":
        from gateway.runner import Site

        return Site(self._configuration, self._upstreams, answer_fields)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        if self.opened is not None:
            self.opened.runner.stop()
        else:
            self._ended.set()

    async def ended(self) -> None:
        """Wait until nothing of a run is in hand."""
        await self._ended.wait()

    async def close(self) -> None:
        """Let go of slots that are shared, and of the store. Called when `run` is over, and no call in progress."""
        if self.opened is None:
            return
        if self._is_shared:
            await self._slots.let_go()
        await self.opened.store.close()

    @property
    def _is_shared(self) -> bool:
        return self._configuration.settings.store.url is not None


def _import(shared: bool) -> None:
    for room in (
        "gateway.runner",
        "gateway.proxy.desk",
        "gateway.store.postgres" if shared else "gateway.store.sqlite",
    ):
        import_module(room)


def _says_what_to_do(error: Exception) -> bool:
    from gateway.sealing import SealError
    from gateway.store.interface import StoreError

    return isinstance(error, StoreError | SealError)
