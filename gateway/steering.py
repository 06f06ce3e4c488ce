"""The operators' side of a gateway, put together: the API over its store, its runner and its admission.

Begun behind the listeners, and imported in a thread then: aiohttp takes longer to import than the gateway to start, and
calls in progress must not feel it. Decides nothing. Ends when it is cancelled.
"""

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.config import Configuration
from gateway.log import EventLog
from gateway.mass import FIRST_CALLS_S, MassRuns, Opened
from gateway.slots import Slots
from policies.model import Clock

if TYPE_CHECKING:
    from gateway.admin.desk import Kept
    from gateway.admin.server import Administration

SOCKET = "admin.sock"
"""In `data_dir`: where the CLI asks."""


class Steering:
    """The API of one gateway. `run` is a task of the composition root's."""

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        mass: MassRuns,
        slots: Slots,
        clock: Clock,
        log: EventLog,
        tasks: asyncio.TaskGroup,
        *,
        on_defect: Callable[[BaseException], None],
    ) -> None:
        self._configuration = configuration
        self._mass = mass
        self._slots = slots
        self._clock = clock
        self._log = log
        self._tasks = tasks
        self._on_defect = on_defect
        self._kept: tuple[Opened, Kept] | None = None
        self.served: Administration | None = None  #: None: not yet, or not any more

    async def run(self) -> None:
        """Serve the API until cancelled. That it cannot be served is told, and stops nothing else."""
        await asyncio.sleep(FIRST_CALLS_S)
        try:
            await asyncio.to_thread(_import)
            self.served = await self._start()
        except Exception as error:  # noqa: BLE001  # whatever keeps the API shut, calls and runs go on
            if not isinstance(error, OSError):
                self._on_defect(error)
            why = getattr(error, "strerror", None) or type(error).__name__
            self._log.error("no administration", why=why, remedy="See that `data_dir` can be written, and restart.")
            return
        try:
            await asyncio.Event().wait()
        finally:
            served, self.served = self.served, None
            await served.close()

    async def _start(self) -> "Administration":
        from gateway.admin.desk import Desk
        from gateway.admin.meanings import meaning_of
        from gateway.admin.server import start_admin

        settings = self._configuration().settings
        desk = Desk(
            kept=self._opened,
            clock=self._clock,
            log=self._log,
            configuration=self._configuration,
            statistics=self._slots.statistics,
            socket=settings.data_dir / SOCKET,
            version=__version__,
            engine="sqlite" if settings.store.url is None else "postgres",
            changed=self._changed,
            meaning=lambda code: meaning_of(code, self._configuration().statuses),
            defect=self._on_defect,
        )
        return await start_admin(desk, self._tasks)

    def _opened(self) -> "Kept | None":
        from gateway.admin.desk import Kept
        from gateway.loading import Loader

        opened = self._mass.opened
        if opened is None:
            return None
        if self._kept is None or self._kept[0] is not opened:
            loader = Loader(self._configuration, opened.store.add_items, opened.store.set_dictionary)
            self._kept = opened, Kept(opened.store, opened.keys, loader)
        return self._kept[1]

    def _changed(self) -> None:
        if self._mass.opened is not None:
            self._mass.opened.runner.steered()


def _import() -> None:
    import_module("gateway.admin.server")
    import_module("gateway.loading")
