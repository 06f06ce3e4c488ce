"""The composition root: builds everything, owns every task, stops in order.

Rules that always hold:
- `data_dir` is locked before anything listens; its file says "unclean" from then until an orderly stop has written
  what may still be running. Whatever else goes wrong, a restart never forgets calls that may still be running.
- Stopping: not ready; no new bulk; waiters answered; what is in flight ends within the drain time, real-time being
  served meanwhile; then listeners close, `busy_until` is written, exit.
- Here alone the real clocks are read. Only `bcss-gateway demo` hands in another clock.

Decides nothing; does no more than bring things together.
"""

import asyncio
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from gateway import __version__
from gateway.admin import Telemetry
from gateway.certificates import ListenerContext, expiries, server_context
from gateway.config import ConfigError, Configuration, Settings, load
from gateway.inbound import Acceptor, Handler, Listener, Turns, listening_on
from gateway.log import LineWriter, event_log
from gateway.mass import MassRuns
from gateway.metrics import Metrics, Reading
from gateway.occupancy import Occupancy, StartState, boot_id
from gateway.parts import form_of, terms_of
from gateway.proxy import Books, Proxy, Refuser, malformed_answer
from gateway.readings import Facts, LagWatch, readings
from gateway.reloading import marks_of, needs_restart, upstream_identities
from gateway.slots import Slots
from gateway.steering import Steering
from gateway.upstream import Upstream, target_of
from policies.leases import Times
from policies.model import Clock

BACKLOG = 4096
"""Connections that may wait to be accepted. With 128, 7,500 of 10,000 that came at once were not taken (measured)."""


class SystemClock:
    """The machine's clocks."""

    def boot(self) -> float:
        """Return seconds since the machine booted, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """Return the host's wall clock."""
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway listens, ports as given by the system where the configuration says 0."""

    traffic: tuple[str, ...]
    telemetry: str


class Gateway:
    """A gateway that runs. Made by `running`."""

    def __init__(
        self,
        configuration: Configuration,
        clock: Clock,
        lines: LineWriter,
        dice: Random,
        tasks: asyncio.TaskGroup,
        start: StartState,
        times: Callable[[float], Times] = Times,
    ) -> None:
        settings = configuration.settings
        self._configuration = configuration
        self._clock = clock
        self._lines = lines
        self._log = event_log(clock, lines)
        self._dice = dice
        self._tasks = tasks
        self._turns = Turns()
        self._servers: list[tuple[Acceptor, Listener]] = []
        self._listeners: list[Listener] = []
        self._ready = False
        self.lag = LagWatch()
        self._expiries = expiries(settings)
        self._retired: list[Upstream] = []  # replaced by a reload, and still in use
        self._reload_ok = True
        self._reloaded_at = clock.wall().timestamp()
        self._reload_asked = asyncio.Event()
        self._marks = marks_of(configuration.files)
        self.addresses = Addresses((), "")
        self.metrics = Metrics(
            CollectorRegistry(),
            labels=configuration.catalogue.labels(),
            pools=configuration.layout.pools,
            version=__version__,
        )
        self._contexts = [ListenerContext(one.tls) if one.tls else None for one in settings.listeners]
        self._identities = upstream_identities(settings)
        self.upstreams = {name: Upstream(target_of(upstream), clock) for name, upstream in settings.upstreams.items()}
        self.slots = Slots(
            configuration.layout,
            configuration.calendar,
            clock,
            terms_of(settings),
            self._log,
            # Shared slots are rows: those of a process that is gone are seen to be so by all gateways.
            cooling_until=None if (leased := settings.store.url is not None) else start.cooling_until,
            occupied=() if leased else start.occupied,
            leased=leased,
            standing_known=False,
            times=times,
        )
        self.mass = MassRuns(
            configuration, self.upstreams, self.slots, self.metrics, clock, self._log, dice, on_defect=self.defect
        )
        self.kept = self.mass.kept  #: tests put a store of their own here
        self.proxy = Proxy(
            self.slots,
            self.metrics,
            Books(self.metrics, clock, lines.msg),
            clock,
            self._log,
            self._turns,
            behind=lambda: self.kept(),
            noted=self.mass.noted,
        )
        self.proxy.adopt(configuration, self.upstreams, self._refuser(settings))
        self.steering = Steering(
            lambda: self._configuration, self.mass, self.slots, clock, self._log, tasks, on_defect=self.defect
        )
        self.metrics.watch(self._readings)
        self.metrics.watch(self.mass.readings)

    def _refuser(self, settings: Settings) -> Refuser:
        bulk = settings.bulk
        return Refuser(
            form_of(settings), self._clock, self._dice, delay_s=bulk.refusal_delay, at_most=bulk.refusal_delay_limit
        )

    # Reload.

    def ask_reload(self) -> None:
        """Have the configuration read anew, soon."""
        self._reload_asked.set()

    async def follow_files(self, environ: Mapping[str, str], occupancy: Occupancy) -> None:
        """Read the configuration anew for ever: when asked, and when its files have changed or could not be used."""
        told: tuple[str, ...] = ()
        while True:
            asked = await self._asked_within(self._settings.watch_files)
            now = await asyncio.to_thread(marks_of, self._configuration.files)
            if not asked and now == self._marks and self._reload_ok:
                continue
            self._marks = now
            wrong = await self.reload(environ, occupancy)
            if wrong and (asked or wrong != told):
                self._log.error(
                    "reload failed",
                    faults=wrong,
                    remedy="The configuration before it stays in force. Mend the file, or see `bcss-gateway check`.",
                )
            told = wrong

    async def _asked_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await self._reload_asked.wait()
        asked = self._reload_asked.is_set()
        self._reload_asked.clear()
        return asked

    async def reload(self, environ: Mapping[str, str], occupancy: Occupancy) -> tuple[str, ...]:
        """Read the configuration anew and go on under it; return what is wrong with it: then nothing has changed."""
        try:
            wrong = await self._read_anew(environ, occupancy)
        except ConfigError as error:
            wrong = tuple(map(str, error.faults))
        except OSError as error:  # a file that changed between its check and its use; ssl.SSLError is one
            wrong = (f"{type(error).__name__}: {error.strerror or 'a file could not be used'}",)
        except Exception as error:  # noqa: BLE001  # whatever a file holds, the gateway goes on as it was
            self.defect(error)
            wrong = (f"{type(error).__name__}: a defect of the gateway, see the line before",)
        self._reload_ok = not wrong
        return wrong

    async def _read_anew(self, environ: Mapping[str, str], occupancy: Occupancy) -> tuple[str, ...]:
        fresh = await asyncio.to_thread(load, self._configuration.path, environ, now=self._clock.wall())
        if wrong := needs_restart(self._settings, fresh.settings):
            return wrong
        contexts = [server_context(one.tls) if one.tls else None for one in fresh.settings.listeners]
        identities = upstream_identities(fresh.settings)
        pools = {
            name: self.upstreams[name]
            if self._identities.get(name) == identities[name]
            else Upstream(target_of(upstream), self._clock)
            for name, upstream in fresh.settings.upstreams.items()
        }
        dates = expiries(fresh.settings)
        await asyncio.to_thread(occupancy.raise_hold, fresh.settings.hold_total)
        self._adopt(fresh, contexts, identities, pools)
        self._expiries = dates
        return ()

    def _adopt(
        self,
        fresh: Configuration,
        contexts: list[ssl.SSLContext | None],
        identities: Mapping[str, object],
        pools: dict[str, Upstream],
    ) -> None:
        before, self._configuration = self._configuration, fresh
        settings = fresh.settings
        self.metrics.extend(labels=fresh.catalogue.labels(), pools=fresh.layout.pools)
        for rotating, context in zip(self._contexts, contexts, strict=True):
            if rotating is not None and context is not None:
                rotating.adopt(context)
        for listener in self._listeners:
            listener.limits = settings.limits
        retired = [pool for name, pool in self.upstreams.items() if pools.get(name) is not pool]
        self._retired = [pool for pool in (*self._retired, *retired) if pool.statistics().in_use]
        self._identities, self.upstreams = identities, pools
        shared = settings.bulk.share is not None or before.settings.bulk.share is not None
        self.slots.adopt(fresh.layout, fresh.calendar, terms_of(settings), shared=shared)
        self.proxy.adopt(fresh, pools, self._refuser(settings))
        self.mass.adopt(fresh, pools)
        for pool in retired:
            pool.retire()
        self._reloaded_at = self._clock.wall().timestamp()
        for warning in fresh.warnings:
            self._log.warning("configuration", warning=warning)
        self._log.info("reloaded", upstreams_renewed=len(retired))

    @property
    def _settings(self) -> Settings:
        return self._configuration.settings

    # Listening.

    def listen(self) -> None:
        """Open the listeners: traffic first, then telemetry, which says that it is there."""
        traffic = [self._open(number) for number in range(len(self._settings.listeners))]
        telemetry = self._listener(Telemetry(self.metrics, self._state).handle)
        endpoint = self._settings.telemetry
        self.addresses = Addresses(tuple(traffic), self._serve(telemetry, endpoint.address, endpoint.port, None))
        self._ready = True

    def _open(self, number: int) -> str:
        settings = self._settings.listeners[number]
        proxy = self.proxy
        server = self._listener(
            partial(proxy.handle, number=number),
            at_once=partial(proxy.at_once, number=number),
            is_mass=partial(proxy.is_mass, number=number),
        )
        tls = self._contexts[number]
        return self._serve(server, settings.address, settings.port, tls.context if tls else None)

    def _listener(self, handler: Handler, **ways: Callable[[Any], bool]) -> Listener:
        listener = Listener(
            handler,
            self._settings.limits,
            self._tasks,
            turns=self._turns,
            **ways,
            on_malformed=self._malformed,
            on_defect=self.defect,
            on_refused_connection=self.metrics.connections_refused.inc,
        )
        self._listeners.append(listener)
        return listener

    def _malformed(self, status: int, what: str) -> bytes:
        self.metrics.malformed.inc()
        return malformed_answer(status, what)

    def _serve(self, server: Listener, address: str, port: int, tls: ssl.SSLContext | None) -> str:
        acceptor = Acceptor(listening_on(address, port, BACKLOG), server, self._tasks, tls)
        self._servers.append((acceptor, server))
        host, bound = acceptor.address
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound}"

    def defect(self, defect: BaseException) -> None:
        """Log where a defect is, and its kind: an exception's own text may quote a message."""
        frames = traceback.extract_tb(defect.__traceback__)
        where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
        self._log.error(
            "defect", kind=type(defect).__name__, where=where, remedy="Report this line to the maintainers."
        )

    @property
    def hold_s(self) -> float:
        """T as it is in force, seconds."""
        return self._settings.hold_total

    async def drain(self) -> None:
        """Stop in order. Returns when nothing is in flight, or when the drain time is over."""
        self._ready = False
        self.proxy.draining = True
        self._log.info("stopping", in_flight=self.proxy.in_flight, drain_s=self._settings.drain_time)
        self.slots.stop()
        self.mass.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_time):
                await self.proxy.idle()
                await self.mass.ended()

    async def close(self) -> None:
        """Close listeners and connections; what is still in flight is cut."""
        for acceptor, _ in self._servers:
            acceptor.close()
        for _, server in self._servers:
            await server.shutdown()
        for upstream in (*self.upstreams.values(), *self._retired):
            await upstream.close()

    def _state(self) -> tuple[bool, Mapping[str, object]]:
        statistics = self.slots.statistics()
        return self._ready, {"window_open": statistics.window_open, "in_flight": self.proxy.in_flight}

    def _readings(self) -> Iterable[Reading]:
        return readings(
            self.slots.statistics(),
            {name: upstream.statistics() for name, upstream in self.upstreams.items()},
            self._expiries,
            Facts(
                lag_s=self.lag.worst_s,
                lines_dropped=self._lines.dropped,
                suspects=self.proxy.suspecting.number(),
                reload_ok=self._reload_ok,
                reloaded_at=self._reloaded_at,
            ),
        )


@asynccontextmanager
async def running(
    configuration: Configuration,
    *,
    clock: Clock,
    lines: LineWriter,
    dice: Random,
    environ: Mapping[str, str] | None = None,
    times: Callable[[float], Times] = Times,
) -> AsyncIterator[Gateway]:
    """Run a gateway for the duration of the block, and stop it in order afterwards.

    `times`: of what several gateways share, for a T; only tests have others than the design's.

    Raises:
        OccupiedError: another process has this `data_dir`.
        OSError: a listener's address cannot be had.
    """
    settings, environ = configuration.settings, environ or {}
    log = event_log(clock, lines)
    occupancy = Occupancy(settings.data_dir, boot_id())
    occupancy.acquire()
    try:
        start = occupancy.read_and_mark(settings.hold_total, clock.boot(), settings.runs.cool_down)
        failed: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            gateway = Gateway(configuration, clock, lines, dice, tasks, start, times)
            if start.cooling_until is not None and settings.store.url is None:
                log.warning("cooling down", seconds=start.cooling_until - clock.boot(), why=start.why)
            chores = [
                tasks.create_task(gateway.lag.run()),
                tasks.create_task(gateway.follow_files(environ, occupancy)),
            ]
            try:
                gateway.listen()
                log.info("ready", traffic=gateway.addresses.traffic, telemetry=gateway.addresses.telemetry)
                chores.append(tasks.create_task(gateway.mass.run(unclean=start.unclean)))
                chores.append(tasks.create_task(gateway.steering.run()))
                yield gateway
                await gateway.drain()
            except Exception as error:  # noqa: BLE001  # the block's own, raised again outside of the group
                failed = error
            finally:
                for chore in chores:
                    chore.cancel()
                await gateway.close()
        await gateway.mass.close()
        gateway.slots.close()
        if failed is not None:
            raise failed
        occupancy.write_clean(gateway.slots.held(), gateway.hold_s)
        log.info("stopped", still_running=len(gateway.slots.held()))
    finally:
        occupancy.release()
