"""Counts and histograms for what happens with every call: an addition each, read when Prometheus asks.

prometheus_client's own take a lock and five Python calls for each value; with two counters and two histograms a call
that was 5 of the gateway's 90 us (measured). They are its custom collectors, the way that it documents for figures kept
elsewhere; names, labels and the text come from it.

Rules that always hold: only the event loop counts, so an addition is never lost; whoever reads in a thread may see a
call in one figure and not yet in another, which Prometheus allows for.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """How often something happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class Spread:
    """How long something took, in buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that equals a bound is in its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many values were at most as large as each bound."""
        so_far = 0
        found: list[tuple[str, float]] = []
        for bound, number in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += number
            found.append((str(floatToGoString(bound)), so_far))  # type: ignore[no-untyped-call]  # prometheus_client has none
        return found


Child = TypeVar("Child", Count, Spread)


class _Family(Collector, Generic[Child]):
    def __init__(self, name: str, documentation: str, labels: Iterable[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Child] = {}

    def _new(self) -> Child:
        raise NotImplementedError

    def labels(self, *values: str) -> Child:
        """Return the child of these label values, made at the first time: keep it."""
        key = tuple(map(str, values))
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._new()
        return child


class Counts(_Family[Count]):
    """A counter by labels."""

    def _new(self) -> Count:
        return Count()

    def collect(self) -> Iterable[Metric]:
        """Return what was counted."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        return (family,)


class Spreads(_Family[Spread]):
    """A histogram by labels."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], labels: Iterable[str]) -> None:
        super().__init__(name, documentation, labels)
        self._bounds = tuple(bounds)

    def _new(self) -> Spread:
        return Spread(self._bounds)

    def collect(self) -> Iterable[Metric]:
        """Return what was observed."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.buckets(), child.total)
        return (family,)
