"""The gauges, and the counters that others keep: read when Prometheus asks.

Names, help texts and units of everything that is not counted call by call stand here; see `gateway.metrics` for the
rest and for the rules.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.metrics import Reading
from gateway.slots import PoolStatistics, Statistics
from gateway.upstream import ConnectionStatistics

LAG_EVERY_S = 0.5


class LagWatch:
    """Measures how late the event loop runs what is due: every call feels that."""

    def __init__(self) -> None:
        self.worst_s = 0.0  #: in the last minute

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        latest: deque[float] = deque(maxlen=int(60 / LAG_EVERY_S))
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            latest.append(loop.time() - due)
            self.worst_s = max(latest)


@dataclass(frozen=True, slots=True)
class Facts:
    """Single numbers."""

    lag_s: float
    lines_dropped: int
    suspects: int
    reload_ok: bool
    reloaded_at: float  #: Unix seconds


def readings(
    statistics: Statistics,
    upstreams: Mapping[str, ConnectionStatistics],
    expiries: Mapping[str, float],
    facts: Facts,
) -> Iterable[Reading]:
    """Yield every reading."""
    yield from _of_slots(statistics)
    yield from _of_upstreams(upstreams, expiries)
    yield from _of_process(facts)


def _of_slots(statistics: Statistics) -> Iterable[Reading]:
    pools = statistics.pools

    def by_pool(name: str, documentation: str, value: Callable[[PoolStatistics], float]) -> Reading:
        return Reading(name, documentation, ("pool",), {(pool,): value(s) for pool, s in pools.items()})

    yield by_pool("slots_in_use", "Bulk calls in progress.", lambda pool: pool.in_use)
    yield by_pool("slots_in_use_peak", "The most bulk calls that were ever in progress.", lambda pool: pool.peak)
    yield by_pool("slots_limit", "The cap.", lambda pool: pool.cap)
    yield by_pool("queue_requests", "Bulk calls that wait for a slot.", lambda pool: pool.waiting)
    yield by_pool("queue_oldest_seconds", "How long the oldest of them has waited.", lambda pool: pool.oldest_s)
    yield by_pool("slot_rows", "Slots that this gateway has of those that several share.", lambda pool: pool.rows)
    conflict = float(statistics.layout_conflict)
    what = "1 while gateways on the same store do not agree on pools, caps or times: bulk waits."
    yield Reading("layout_conflict", what, (), {(): conflict})
    yield Reading("window_open", "1 while bulk may start.", (), {(): float(statistics.window_open)})
    if statistics.next_change is not None:
        at = statistics.next_change.timestamp()
        yield Reading("window_next_change_timestamp_seconds", "When the window opens or closes.", (), {(): at})
    yield Reading(
        "cap_violations",
        "Times that admission let a call into a full pool: a defect, always 0.",
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


def _of_upstreams(upstreams: Mapping[str, ConnectionStatistics], expiries: Mapping[str, float]) -> Iterable[Reading]:
    connections: dict[tuple[str, ...], float] = {
        (name, state): float(value)
        for name, upstream in upstreams.items()
        for state, value in (("idle", upstream.idle), ("in_use", upstream.in_use))
    }
    yield Reading("upstream_connections", "Connections to upstreams.", ("upstream", "state"), connections)
    yield Reading(
        "upstream_up",
        "1 unless the last attempt to connect to an upstream failed.",
        ("upstream",),
        {(name,): float(upstream.up) for name, upstream in upstreams.items()},
    )
    yield Reading(
        "tls_not_after_timestamp_seconds",
        "When a certificate of the configuration expires.",
        ("certificate",),
        {(name,): expiry for name, expiry in expiries.items()},
    )


def _of_process(facts: Facts) -> Iterable[Reading]:
    yield Reading(
        "event_loop_lag_seconds", "The worst delay of the event loop in the last minute.", (), {(): facts.lag_s}
    )
    yield Reading(
        "log_lines_dropped",
        "Log lines given up because nobody read the output.",
        (),
        {(): float(facts.lines_dropped)},
        counter=True,
    )
    yield Reading(
        "suspected_clients",
        "Clients (for each source) that behave like a batch now, and do not say so.",
        (),
        {(): float(facts.suspects)},
    )
    yield Reading(
        "config_last_reload_success",
        "1 unless the configuration's files, as they are now, were not taken over.",
        (),
        {(): float(facts.reload_ok)},
    )
    yield Reading(
        "config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read.",
        (),
        {(): facts.reloaded_at},
    )
