"""Every metric of the gateway, once, on a registry that is passed in.

Rules that always hold:
- Names start with `bcss_gateway_`, units are in the name, labels come from closed sets that are known at start: sources
  of the catalogue, classes, reasons, pools. Nothing that a caller sends becomes a label.
- Every known combination of a counter is initialised at 0, so that an alert on its rate works from the first event on.
- Children are looked up once and kept: `.labels()` on every call costs twice the metric itself (measured).
- Gauges are read when Prometheus asks, from the statistics of those who know (`watch`, `take`): nobody keeps them up.

Nothing here decides, and nothing here is read back by a decision.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.counting import Count, Counts, Spread, Spreads
from policies.model import UNCLASSIFIED, Reason, TrafficClass
from policies.statuses import Kind

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_SOURCE = "none"
"""The label of calls that name no source: WSDL downloads, and what is not SOAP."""
OUTCOMES = ("forwarded", "refused", "stored", "fetched", "upstream_error", "client_gone", "cut", "rejected")
"""forwarded: the upstream's answer passed whole; refused: a refusal of ours; stored: kept, to be sent later; fetched:
no call, but a question for the answer of a stored one; upstream_error: a fault of ours about the upstream; client_gone:
the caller hung up first; cut: the answer broke off midway; rejected: not a call we can read."""
WAITS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)
CALLS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
OWN_SHARE = (0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.005, 0.02, 0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Reading:
    """One gauge (or a counter that somebody else keeps) as it stands; values by label values, name without prefix."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    counter: bool = False


@dataclass(slots=True, eq=False)
class _Live(Collector):
    watched: list[Callable[[], Iterable[Reading]]] = field(default_factory=list)
    taken: list[Metric] = field(default_factory=list)

    def collect(self) -> Iterable[Metric]:
        return self.taken

    def take(self) -> None:
        families: list[Metric] = []
        for reading in (reading for watch in self.watched for reading in watch()):
            kind = CounterMetricFamily if reading.counter else GaugeMetricFamily
            family = kind(f"bcss_gateway_{reading.name}", reading.documentation, labels=reading.labels)
            for labels, value in reading.values.items():
                family.add_metric(labels, value)
            families.append(family)
        self.taken = families


class CallMeters:
    """The metrics of one (source, class): what a forwarded call touches, ready at hand."""

    __slots__ = ("outcomes", "upstream_seconds")

    def __init__(self, outcomes: Mapping[str, Count], upstream_seconds: Spread) -> None:
        self.outcomes = outcomes
        self.upstream_seconds = upstream_seconds


@dataclass(frozen=True, slots=True)
class _Families:
    requests: Counts
    refusals: Counts
    upstream: Spreads
    faults: Counts
    wait: Spreads
    suspected: Counts
    business: Counts


class Metrics:
    """What the gateway counts. `labels` are the values that the label `source` may take, `pools` the pools' names."""

    def __init__(
        self, registry: CollectorRegistry, *, labels: Iterable[str], pools: Iterable[str], version: str
    ) -> None:
        self._registry = registry
        requests = self._counter(
            "requests",
            "Calls by the source they ask, their class and what became of them.",
            "source",
            "class",
            "outcome",
        )
        refusals = self._counter(
            "refusals", "Calls that the gateway answered itself, by reason.", "source", "class", "reason"
        )
        upstream = self._histogram(
            "upstream_seconds", "From the first byte sent to the last byte of the answer.", CALLS, "source", "class"
        )
        added = self._histogram(
            "added_seconds", "The gateway's own share of a forwarded call, waiting not counted.", OWN_SHARE, "class"
        )
        wait = self._histogram("slot_wait_seconds", "How long bulk calls waited for their slots.", WAITS, "pool")
        faults = self._counter(
            "soap_faults",
            "SOAP faults: the gateway's own, and those that upstreams sent (HTTP 500 with XML).",
            "source",
            "origin",
        )
        suspected = self._counter(
            "suspected_bulk", "Calls of clients that behave like a batch and do not say so.", "source"
        )
        business = self._counter(
            "business_status", "Answers to bulk calls by what they say of themselves.", "source", "kind"
        )
        self._families = _Families(requests, refusals, upstream, faults, wait, suspected, business)
        self._business: dict[tuple[str, str], Count] = {}
        self._calls: dict[tuple[str, TrafficClass], CallMeters] = {}
        self._refusals: dict[tuple[str, TrafficClass, Reason], Count] = {}
        self._faults: dict[tuple[str, str], Count] = {}
        self.suspected: dict[str, Count] = {}
        self.slot_wait_seconds: dict[str, Spread] = {}
        self.added_seconds = {traffic: added.labels(traffic) for traffic in TrafficClass}
        self.extend(labels=labels, pools=pools)
        unclassified = self._counter("unclassified", "Calls whose sources are not known.", "class")
        self.unclassified = {traffic: unclassified.labels(traffic) for traffic in TrafficClass}
        self.would_refuse = self._counter(
            "would_refuse", "In mode observe: bulk calls that enforcement would have refused.", "reason"
        )
        for reason in Reason:
            self.would_refuse.labels(reason)
        self.mismatches = self._counter(
            "classification_mismatches", "Calls whose path or SOAPAction contradicts their body."
        ).labels()
        self.connections_refused = self._counter(
            "connections_refused", "Connections closed at once because too many were open."
        ).labels()
        self.malformed = self._counter(
            "malformed_requests", "Requests that could not be read as HTTP, answered with 4xx, or 500 after a defect."
        ).labels()
        self._live = _Live()
        registry.register(self._live)
        build = Gauge("bcss_gateway_build_info", "The running version; always 1.", ["version"], registry=registry)
        build.labels(version).set(1)

    def extend(self, *, labels: Iterable[str], pools: Iterable[str]) -> None:
        """Make room for the sources and pools of another configuration. Those that are gone stay, at what they were."""
        families = self._families
        for source in sorted({*labels, UNCLASSIFIED, NO_SOURCE} - self.suspected.keys()):
            self.suspected[source] = families.suspected.labels(source)
            for kind in Kind:
                self._business[source, kind] = families.business.labels(source, kind)
            for origin in ("gateway", "upstream"):
                self._faults[source, origin] = families.faults.labels(source, origin)
            for traffic in TrafficClass:
                outcomes = {outcome: families.requests.labels(source, traffic, outcome) for outcome in OUTCOMES}
                self._calls[source, traffic] = CallMeters(outcomes, families.upstream.labels(source, traffic))
                for reason in Reason:
                    self._refusals[source, traffic, reason] = families.refusals.labels(source, traffic, reason)
        for pool in pools:
            self.slot_wait_seconds.setdefault(pool, families.wait.labels(pool))

    def call(self, source: str, traffic: TrafficClass) -> CallMeters:
        """Return the meters of a call. Raises KeyError for a source that is not of the closed set: a defect."""
        return self._calls[source, traffic]

    def refused(self, source: str, traffic: TrafficClass, reason: Reason, *, as_fault: bool) -> None:
        """Count a call that the gateway answered itself."""
        self._refusals[source, traffic, reason].inc()
        if as_fault:
            self._faults[source, "gateway"].inc()

    def upstream_fault(self, source: str) -> None:
        """Count a SOAP fault that an upstream sent and that passed untouched."""
        self._faults[source, "upstream"].inc()

    def business(self, source: str, kind: str) -> None:
        """Count what an answer to a bulk call says of itself."""
        self._business[source, kind].inc()

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Have `read` called at each scrape, for gauges that somebody else knows."""
        self._live.watched.append(read)

    def take(self) -> None:
        """Read what others know. In the event loop, which alone may look at their books."""
        self._live.take()

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format, with what `take` has read. May run in a thread."""
        return generate_latest(self._registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counts:
        family = Counts(f"bcss_gateway_{name}", documentation, labels)
        self._registry.register(family)
        return family

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Spreads:
        family = Spreads(f"bcss_gateway_{name}", documentation, buckets, labels)
        self._registry.register(family)
        return family
