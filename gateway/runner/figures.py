"""What Prometheus is told of runs: how many, what is left of each, when it ends.

Rules that always hold:
- Labels stay bounded: only runs that have not ended, and no more than `MOST_SHOWN` of them, the newest.
- A rate is what the store's counts say, so that it covers all replicas; it is kept while nothing is sent (a closed
  window), and forgotten with the run.
- Nothing here is read back by a decision.

When a run ends is worked out by `policies.planning`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gateway.metrics import Reading
from gateway.records import GATEWAY, ONLY_DOUBT, RunRecord
from policies.model import Clock, ItemState, RunKind, RunState
from policies.planning import ends_at
from policies.windows import Calendar

MOST_SHOWN = 50
RATE_OVER_S = 60.0
"""Over how long a rate is measured."""
PAUSED_FOR = ("person", "gateway", "doubt")
"""What pauses runs: a person; the gateway, for rejects or authorisation; that nothing is left but items in doubt."""
ACTIVE = (RunState.LOADING, RunState.READY, RunState.RUNNING, RunState.PAUSED)


@dataclass(slots=True)
class Pace:
    """How fast a run's items are settled."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)
    per_second: float = 0.0  #: as last measured; 0: not known

    def note(self, now: float, settled: int, *, running: bool) -> None:
        """Note how many items are settled."""
        samples = self.samples
        if not running:
            samples.clear()
            return
        samples.append((now, settled))
        while now - samples[0][0] > RATE_OVER_S:
            samples.popleft()
        took_s = now - samples[0][0]
        if took_s >= 1.0 and settled > samples[0][1]:
            self.per_second = (settled - samples[0][1]) / took_s


class Figures:
    """The figures of runs. `look` is told of all active runs every few seconds."""

    def __init__(self, clock: Clock, calendar: Callable[[], Calendar], is_up: Callable[[], bool]) -> None:
        self._clock = clock
        self._calendar = calendar
        self._is_up = is_up
        self._records: Sequence[RunRecord] = ()
        self._paces: dict[int, Pace] = {}

    def look(self, records: Sequence[RunRecord]) -> None:
        """Take the records of all runs that have not ended, oldest first."""
        now = self._clock.boot()
        self._records = records
        self._paces = {record.id: self._paces.get(record.id) or Pace() for record in records}
        for record in records:
            self._paces[record.id].note(now, record.counts.settled, running=record.state is RunState.RUNNING)

    def per_second(self, run_id: int) -> float:
        """Return how fast a run was last seen to go; 0: not known."""
        pace = self._paces.get(run_id)
        return pace.per_second if pace is not None else 0.0

    def end_of(self, record: RunRecord) -> datetime | None:
        """Return when a run ends if it goes on as it did; None: not known, or never."""
        per_second = self.per_second(record.id)
        if record.state not in (RunState.READY, RunState.RUNNING) or not per_second:
            return None
        return ends_at(self._calendar(), self._clock.wall(), record.waiting, per_second)

    def readings(self) -> Iterable[Reading]:
        """Yield every reading."""
        by_state: dict[tuple[str, ...], float] = {(str(state),): 0.0 for state in ACTIVE}
        for record in self._records:
            by_state[(str(record.state),)] += 1
        yield Reading("runs", "Runs that have not ended, by state.", ("state",), by_state)
        paused: dict[tuple[str, ...], float] = {(cause,): 0.0 for cause in PAUSED_FOR}
        everything: dict[tuple[str, ...], float] = {
            (str(state),): 0.0 for state in ItemState if state is not ItemState.SENT
        }
        for record in self._records:
            if record.state is RunState.PAUSED:
                paused[(_paused_for(record),)] += 1
            for state, number in _items_of(record).items():
                everything[(str(state),)] += number
        yield Reading("runs_paused", "Runs that are paused, by what paused them.", ("cause",), paused)
        yield Reading("items", "Items of all runs that have not ended, by state.", ("state",), everything)
        shown = self._records[-MOST_SHOWN:]
        now = self._clock.wall()
        items: dict[tuple[str, ...], float] = {}
        ends: dict[tuple[str, ...], float] = {}
        due: dict[tuple[str, ...], float] = {}
        for record in shown:
            for state, number in _items_of(record).items():
                items[record.public_id, str(state)] = number
            if (end := self.end_of(record)) is not None:
                ends[(record.public_id,)] = end.timestamp()
            due[(record.public_id,)] = float(_is_due(record, now))
        yield Reading("run_items", "Items of the newest active runs, by state.", ("run", "state"), items)
        yield Reading("run_eta_timestamp_seconds", "When a run ends if it goes on as it did.", ("run",), ends)
        yield Reading("run_due", "1 while something of a run is left to be sent, and may be.", ("run",), due)
        yield Reading("store_up", "1 while the store answers.", (), {(): float(self._is_up())})


def _items_of(record: RunRecord) -> Mapping[ItemState, float]:
    counts = record.counts
    return {
        ItemState.WAITING: float(record.waiting),
        ItemState.DONE: float(counts.done),
        ItemState.REJECTED: float(counts.rejected),
        ItemState.FAILED: float(counts.failed),
        ItemState.IN_DOUBT: float(counts.in_doubt),
    }


def _paused_for(record: RunRecord) -> str:
    if record.changed_by != GATEWAY:
        return "person"
    return "doubt" if record.reason == ONLY_DOUBT else "gateway"


def _is_due(record: RunRecord, now: datetime) -> bool:
    """Say whether items of a run would be sent, were a window and a slot open. A client-driven run sends none."""
    if record.kind is RunKind.CLIENT or record.state not in (RunState.READY, RunState.RUNNING) or not record.waiting:
        return False
    return record.not_before is None or record.not_before <= now
