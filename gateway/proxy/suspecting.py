"""Real-time calls whose client behaves like a batch and does not say so: noted, told, and by configuration bulk.

The side effects of `policies.suspicion`, which judges. Rules that always hold: what was seen survives a reload that
leaves the thresholds alone; a client is told of in the log once for each suspicion; nothing of a call is kept but its
flow, its source and its time.

Never changes a call.
"""

from gateway.config import Settings
from gateway.log import EventLog, nameable
from gateway.metrics import NO_SOURCE, Metrics
from gateway.proxy.calls import Call
from policies.classify import SUSPECTED
from policies.model import Clock, TrafficClass
from policies.suspicion import Suspicion, Thresholds


class Suspecting:
    """Made once, for all listeners and sites."""

    def __init__(self, metrics: Metrics, clock: Clock, log: EventLog) -> None:
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._thresholds = Thresholds()
        self._suspicion = Suspicion(self._thresholds)
        self._makes_bulk = False

    def adopt(self, settings: Settings) -> None:
        """Judge from now on as these settings say."""
        given = settings.suspicion
        self._makes_bulk = given.action == "bulk"
        thresholds = Thresholds(minimum_calls=given.minimum_calls, rate_per_s=given.rate, calm_s=given.calm)
        if thresholds != self._thresholds:
            self._thresholds, self._suspicion = thresholds, Suspicion(thresholds)

    def number(self) -> int:
        """Return how many clients (for each source) behave like a batch now, and do not say so."""
        return self._suspicion.suspects(self._clock.boot())

    def makes_bulk(self, flow: str) -> bool:
        """Say whether a real-time call of this flow is to be treated as bulk."""
        return self._makes_bulk and self._suspicion.is_suspect(flow, self._clock.boot())

    def note(self, call: Call) -> None:
        """Note a call that is over."""
        if call.label == NO_SOURCE or (call.traffic is TrafficClass.BULK and call.rule != SUSPECTED):
            return
        now = self._clock.boot()
        before = self._suspicion.suspected(call.flow, call.label, now)
        if self._suspicion.seen(call.flow, call.label, now):
            self._metrics.suspected[call.label].inc()
            if not before:
                self._log.warning(
                    "suspected bulk",
                    flow=nameable(call.flow),
                    source=call.label,
                    remedy="If it is a batch, send it to /bulk/ or make a client rule of it; see the README.",
                )
