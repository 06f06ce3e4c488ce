"""What was measured, and the table it becomes: figures of rounds, their ratios, and rows that say met or not met.

Ratios are medians of the ratios of rounds, which go over the proxies forward, then backward. A proxy in which a call
failed is void for that measure and says why; one that does not run is named as not measured; the others go on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

from benchmarks.peers import Peer
from benchmarks.processes import Process, VoidError

FAILURES = (VoidError, OSError, StopIteration, ValueError)
GATEWAY = "gateway"


@dataclass(frozen=True)
class Bound:
    """What a figure is held to: the most, or, for a lower one, the least. No limit: only shown."""

    limit: float | None = None
    lower: bool = False
    inverse: bool = False  #: the figure is the peer's over ours ("times less than")

    def __str__(self) -> str:
        return "" if self.limit is None else f"{'≥' if self.lower else '≤'} {self.limit:g}"

    def verdict(self, figure: float) -> str:
        """Say whether a figure keeps to it."""
        if self.limit is None:
            return ""
        met = figure >= self.limit if self.lower else figure <= self.limit
        return ": met" if met else ": **not met**"


@dataclass(frozen=True)
class Row:
    """A line of the table: the figures of rounds (their median counts), or why there are none."""

    what: str
    bound: Bound
    figures: list[float]
    how: str

    def __str__(self) -> str:
        if not self.figures:
            return f"| {self.what} | {self.bound} | {self.how} | |"
        middle = median(self.figures)
        shown = _short(middle)
        if self.bound.limit is not None and shown == _short(self.bound.limit):
            shown = f"{middle:.5g}"  # the digits that decide
        span = f"{shown} ({_short(min(self.figures))}..{_short(max(self.figures))})"
        return f"| {self.what} | {self.bound}{self.bound.verdict(middle)} | {span} | {self.how} |"


def _short(figure: float) -> str:
    return "no figure" if figure == inf else f"{figure:.3f}" if abs(figure) < 10 else f"{figure:.1f}"


@dataclass(frozen=True)
class Running:
    """A proxy that runs."""

    peer: Peer
    process: Process
    port: int

    @property
    def name(self) -> str:
        """Return the name it has in the table."""
        return self.peer.name

    def plan(self, path: str, **more: Any) -> dict[str, Any]:
        """Return a plan of load for this proxy."""
        return {"port": self.port, "path": path, "close": self.peer.closes, **more}


@dataclass(frozen=True)
class Field:
    """The proxies of a measure: those that run, and why others do not."""

    proxies: list[Running]
    absent: Mapping[str, str]


@dataclass
class Figures:
    """A figure for each proxy and round, and why some have none."""

    values: dict[str, list[float]]
    missing: dict[str, str]

    def rows(self, what: str, unit: str, how: str, bounds: Mapping[str, Bound]) -> list[Row]:
        """Return a row for each bound: our figure over the peer's, or the peer's over ours."""
        return [self._row(what, unit, how, name, bound) for name, bound in bounds.items()]

    def _row(self, what: str, unit: str, how: str, name: str, bound: Bound) -> Row:
        label = f"{what}: times less than {name}" if bound.inverse else f"{what}, times {name}'s"
        for one in (GATEWAY, name):
            if one in self.missing:
                return Row(label, bound, [], self.missing[one])
        ours, theirs = self.values[GATEWAY], self.values[name]
        ratios = [_ratio(b, a) if bound.inverse else _ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
        unusable = ratios.count(inf)
        if median(ratios) == inf:
            return Row(label, bound, [], f"void: {unusable} of {len(ratios)} rounds at or below zero, within the noise")
        detail = f"{median(ours):.3g} against {median(theirs):.3g} {unit}; {how}"
        if unusable:
            detail += f"; {unusable} at or below zero (within the noise), counted as the worst"
        return Row(label, bound, ratios, detail)


def _ratio(ours: float, theirs: float) -> float:
    """Return a ratio; a figure at or below zero is noise, and counts as the worst there is."""
    return ours / theirs if ours > 0 and theirs > 0 else inf


def interleaved(these: Field, rounds: int, measure: Callable[[Running], float]) -> Figures:
    """Measure each proxy in rounds, forward, then backward. What fails is void from there on."""
    figures = Figures({one.name: [] for one in these.proxies}, {})
    figures.missing |= {name: f"not measured: {name}: {why}" for name, why in these.absent.items()}
    for number in range(rounds):
        for one in these.proxies if number % 2 == 0 else reversed(these.proxies):
            if one.name in figures.missing:
                continue
            try:
                figures.values[one.name].append(measure(one))
            except FAILURES as why:
                figures.missing[one.name] = f"void: {one.name}: {' '.join(str(why).split())[:200]}"
    return figures
