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
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from random import Random

from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway import __version__
from gateway.admin import Telemetry
from gateway.certificates import expiries, server_context
from gateway.config import Configuration
from gateway.config import Listener as ListenerSettings
from gateway.log import LineWriter, event_log
from gateway.metrics import Metrics, Reading
from gateway.occupancy import Occupancy, StartState, boot_id
from gateway.proxy import Books, Bounds, Inbound, Listener, Proxy, Refuser, malformed_answer
from gateway.slots import PoolStatistics, Slots, Terms
from gateway.soap import FaultForm
from gateway.upstream import Upstream, target_of
from policies.model import Clock

BACKLOG = 4096
"""Connections that may wait to be accepted. With 128, 7,500 of 10,000 that came at once were not taken (measured)."""
LAG_EVERY_S = 0.5


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
        self, configuration: Configuration, clock: Clock, lines: LineWriter, dice: Random, tasks: asyncio.TaskGroup
    ) -> None:
        settings = configuration.settings
        self._configuration = configuration
        self._settings = settings
        self._clock = clock
        self._lines = lines
        self._log = event_log(clock, lines)
        self._dice = dice
        self._servers: list[tuple[asyncio.Server, web.Server | Listener]] = []
        self._tasks = tasks
        self._ready = False
        self._lag = 0.0
        self._expiries = expiries(settings)
        self.addresses = Addresses((), "")
        self.metrics = Metrics(
            CollectorRegistry(),
            labels=configuration.catalogue.labels(),
            pools=configuration.layout.pools,
            version=__version__,
        )
        self.upstreams = {name: Upstream(target_of(upstream), clock) for name, upstream in settings.upstreams.items()}
        self.slots: Slots
        self.proxy: Proxy

    def build(self, start: StartState) -> None:
        """Build what depends on how the process before this one ended."""
        settings, bulk = self._settings, self._settings.bulk
        terms = Terms(
            hold_s=settings.hold_total,
            call_timeout=max((one.call_timeout for one in settings.upstreams.values()), default=settings.hold_total),
            closed=bulk.closed,
            park_time=bulk.park_time,
            park_length=bulk.park_length,
            queue_time=bulk.queue_time,
            queue_length=bulk.queue_length,
            margin_min=bulk.margin_min,
            margin_max=bulk.margin_max,
        )
        self.slots = Slots(
            self._configuration.layout,
            self._configuration.calendar,
            self._clock,
            terms,
            self._log,
            cooling_until=start.cooling_until,
            occupied=start.occupied,
        )
        form = FaultForm(
            soap11_status=settings.answers.soap11_status,
            soap12_status=settings.answers.soap12_status,
            other_status=settings.answers.other_status,
        )
        refuser = Refuser(form, self._clock, self._dice, delay_s=bulk.refusal_delay, at_most=bulk.refusal_delay_limit)
        books = Books(self.metrics, self._clock, self._lines.msg)
        self.proxy = Proxy(self._configuration, self.upstreams, self.slots, self.metrics, books, refuser, self._clock)
        self.metrics.watch(self._readings)

    async def listen(self) -> None:
        """Open the listeners: traffic first, then telemetry, which says that it is there."""
        traffic = [await self._open(listener) for listener in self._settings.listeners]
        telemetry = Telemetry(self.metrics, self._state).server()
        endpoint = self._settings.telemetry
        self.addresses = Addresses(tuple(traffic), await self._serve(telemetry, endpoint.address, endpoint.port, None))
        self._ready = True

    async def _open(self, listener: ListenerSettings) -> str:
        limits = self._settings.limits
        bounds = Bounds(
            header_time=limits.header_time,
            idle_time=limits.idle_time,
            body_grace=limits.body_grace,
            body_pace=limits.body_pace,
            connections=limits.connections,
            head_size=limits.head_size,
        )
        server = Listener(
            partial(self._handle, listener=listener),
            bounds,
            self._tasks,
            on_malformed=self._malformed,
            on_defect=self._defect,
            on_refused_connection=self.metrics.connections_refused.inc,
        )
        return await self._serve(
            server, listener.address, listener.port, server_context(listener.tls) if listener.tls else None
        )

    async def _handle(self, inbound: Inbound, *, listener: ListenerSettings) -> bool:
        return await self.proxy.handle(inbound, listener)

    def _malformed(self, status: int, what: str) -> bytes:
        self.metrics.malformed.inc()
        return malformed_answer(status, what)

    async def _serve(self, server: web.Server | Listener, address: str, port: int, tls: ssl.SSLContext | None) -> str:
        listening = await asyncio.get_running_loop().create_server(
            server, address, port, backlog=BACKLOG, ssl=tls, reuse_address=True
        )
        self._servers.append((listening, server))
        host, bound = listening.sockets[0].getsockname()[:2]
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound}"

    def _defect(self, defect: BaseException) -> None:
        # Where it happened, and what kind: an exception's own text may quote a message.
        frames = traceback.extract_tb(defect.__traceback__)
        where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
        self._log.error(
            "defect", kind=type(defect).__name__, where=where, remedy="Report this line to the maintainers."
        )

    async def watch_lag(self) -> None:
        """Measure for ever how late the event loop runs what is due: every call feels that."""
        loop = asyncio.get_running_loop()
        worst: deque[float] = deque(maxlen=int(60 / LAG_EVERY_S))
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            worst.append(loop.time() - due)
            self._lag = max(worst)

    async def drain(self) -> None:
        """Stop in order. Returns when nothing is in flight, or when the drain time is over."""
        self._ready = False
        self.proxy.draining = True
        self._log.info("stopping", in_flight=self.proxy.in_flight, drain_s=self._settings.drain_time)
        self.slots.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_time):
                await self.proxy.idle()

    async def close(self) -> None:
        """Close listeners and connections; what is still in flight is cut."""
        for listening, _ in self._servers:
            listening.close()
        for _, server in self._servers:
            await (server.shutdown() if isinstance(server, Listener) else server.shutdown(0.1))  # 0: wait for ever
        for upstream in self.upstreams.values():
            await upstream.close()

    def _state(self) -> tuple[bool, Mapping[str, object]]:
        statistics = self.slots.statistics()
        return self._ready, {"window_open": statistics.window_open, "in_flight": self.proxy.in_flight}

    def _readings(self) -> Iterable[Reading]:
        statistics = self.slots.statistics()
        pools = statistics.pools

        def by_pool(name: str, documentation: str, value: Callable[[PoolStatistics], float]) -> Reading:
            return Reading(name, documentation, ("pool",), {(pool,): value(s) for pool, s in pools.items()})

        yield by_pool("slots_in_use", "Bulk calls in progress.", lambda pool: pool.in_use)
        yield by_pool("slots_in_use_peak", "The most bulk calls that were ever in progress.", lambda pool: pool.peak)
        yield by_pool("slots_limit", "The cap.", lambda pool: pool.cap)
        yield by_pool("queue_requests", "Bulk calls that wait for a slot.", lambda pool: pool.waiting)
        yield by_pool("queue_oldest_seconds", "How long the oldest of them has waited.", lambda pool: pool.oldest_s)
        yield Reading("window_open", "1 while bulk may start.", (), {(): float(statistics.window_open)})
        if statistics.next_change is not None:
            at = statistics.next_change.timestamp()
            yield Reading("window_next_change_timestamp_seconds", "When the window opens or closes.", (), {(): at})
        yield Reading(
            "cap_violations",
            "Times that a pool had more calls in progress than its cap.",
            (),
            {(): float(statistics.violations)},
            counter=True,
        )
        yield Reading(
            "bulk_in_office_hours",
            "Bulk calls whose first byte went out while the window was closed: 0 unless mode is observe.",
            (),
            {(): float(statistics.office_hours_starts)},
            counter=True,
        )
        yield Reading(
            "cooling_down_seconds",
            "For how long bulk still waits after an unclean stop.",
            (),
            {(): statistics.cooling_s},
        )
        yield Reading(
            "event_loop_lag_seconds", "The worst delay of the event loop in the last minute.", (), {(): self._lag}
        )
        connections: dict[tuple[str, ...], float] = {
            (name, state): float(value)
            for name, upstream in self.upstreams.items()
            for state, value in (("idle", upstream.statistics().idle), ("in_use", upstream.statistics().in_use))
        }
        yield Reading("upstream_connections", "Connections to upstreams.", ("upstream", "state"), connections)
        yield Reading(
            "log_lines_dropped",
            "Log lines given up because nobody read the output.",
            (),
            {(): float(self._lines.dropped)},
            counter=True,
        )
        yield Reading(
            "tls_not_after_timestamp_seconds",
            "When a certificate of the configuration expires.",
            ("certificate",),
            {(name,): expiry for name, expiry in self._expiries.items()},
        )


@asynccontextmanager
async def running(
    configuration: Configuration, *, clock: Clock, lines: LineWriter, dice: Random
) -> AsyncIterator[Gateway]:
    """Run a gateway for the duration of the block, and stop it in order afterwards.

    Raises:
        OccupiedError: another process has this `data_dir`.
        OSError: a listener's address cannot be had.
    """
    settings = configuration.settings
    log = event_log(clock, lines)
    occupancy = Occupancy(settings.data_dir, boot_id())
    occupancy.acquire()
    try:
        start = occupancy.read_and_mark(settings.hold_total, clock.boot())
        failed: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            gateway = Gateway(configuration, clock, lines, dice, tasks)
            gateway.build(start)
            if start.cooling_until is not None:
                log.warning("cooling down", seconds=start.cooling_until - clock.boot(), why=start.why)
            lag = tasks.create_task(gateway.watch_lag())
            try:
                await gateway.listen()
                log.info("ready", traffic=gateway.addresses.traffic, telemetry=gateway.addresses.telemetry)
                yield gateway
                await gateway.drain()
            except Exception as error:  # noqa: BLE001  # the block's own, raised again outside of the group
                failed = error
            finally:
                lag.cancel()
                await gateway.close()
        gateway.slots.close()
        if failed is not None:
            raise failed
        occupancy.write_clean(gateway.slots.held(), settings.hold_total)
        log.info("stopped", still_running=len(gateway.slots.held()))
    finally:
        occupancy.release()
