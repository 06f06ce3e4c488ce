"""What stands against bulk besides the window: holds of persons, cool-downs and ramps, for all replicas alike.

The store knows them; this room reads them every second, tells admission (`Slots.adopt_standing`), and tells the store
what it sees: bursts of faults, faults during a ramp, ramps that are over.

Rules that always hold:
- A breaker that trips stops bulk to its source here at once, whether the store answers or not; the store is told as
  soon as it answers, and all replicas follow.
- A cool-down is turned into a time of the boot clock once, when it is first seen, and then only shortened by a person:
  a step of the store's clock or of the host's changes nothing. A ramp is only ever begun again later.
- Where the store's clock is ahead of the host's, it has jumped for all that is known: by so much less time has passed,
  so that who starts then does not end a cool-down that others wait for.
- A hold is a person's: nothing here ends one.
- While the store does not answer, what stood stands.

Reads the wall clock for that alone; counts of slots and bursts are decided in `policies.recovery`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.log import EventLog
from gateway.metrics import Reading
from gateway.records import GATEWAY, Controls, InterruptionRecord
from gateway.store.interface import StateError, Store
from policies.model import ALL_SOURCES, UNCLASSIFIED, Clock, Standing, StoreDownError
from policies.recovery import Breaker, ramp_slots

SLACK_S = 2.0
"""A ramp that the store says is younger than we think by more than this was begun again by another replica."""
_HELD = "source:"
PHASES = ("cooling", "ramp")


@dataclass(slots=True)
class Interruption:
    """One interruption as this process follows it."""

    number: int  #: the store's; 0: not told yet
    cool_until: float  #: boot clock
    ramp_from: float  #: boot clock: when the ramp began, or will begin
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """When the store was asked, by both clocks."""

    boot: float
    wall: datetime


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says of interruptions, seconds."""

    cool_down: float
    ramp_step: float
    burst_faults: int
    burst_calls: int
    burst_time: float


class Interruptions:
    """Follows interruptions and holds. `look` is called every second by its owner."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        log: EventLog,
        terms: Terms,
        cap_of: Callable[[str], int],
        adopt_standing: Callable[[Standing], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._terms = terms
        self._cap_of = cap_of
        self._adopt_standing = adopt_standing
        self._breakers: dict[str, Breaker] = {}
        self._followed: dict[str, Interruption] = {}
        self._held: frozenset[str] = frozenset()
        self._to_tell: dict[str, tuple[str, float, float]] = {}  # source -> why, cool-down in all, began (boot clock)
        self._to_restart: set[str] = set()
        self._revision = -1
        self._standing = Standing()
        self.is_known = False  #: what stands has been read once: before that, nobody knows of a person's hold

    def adopt(self, terms: Terms) -> None:
        """Go by other terms from now on."""
        if terms != self._terms:
            self._terms = terms
            self._breakers.clear()

    # What calls say.

    def noted(self, sources: Iterable[str], technical: bool) -> None:
        """Note how a call to these sources ended. Called for items and for synchronous bulk alike.

        Where the sources are not known, nothing can be laid at the door of one of them.
        """
        sources = tuple(sources)
        sources = (UNCLASSIFIED,) if UNCLASSIFIED in sources else sources
        now = self._clock.boot()
        for source in sources:
            breaker = self._breakers.get(source)
            if breaker is None:
                terms = self._terms
                breaker = self._breakers[source] = Breaker(terms.burst_faults, terms.burst_calls, terms.burst_time)
            if breaker.note(technical, now):
                self.interrupt(source, "a burst of technical faults", self._terms.cool_down)
            elif technical:
                self._fault_in_ramp(source, now)
                self._fault_in_ramp(ALL_SOURCES, now)

    def interrupt(self, source: str, reason: str, cool_s: float) -> None:
        """Stop bulk to a source (or to all) now, for `cool_s`, and ramp afterwards."""
        now = self._clock.boot()
        followed = self._followed.get(source)
        if followed is not None and followed.cool_until > now:
            return
        self._followed[source] = Interruption(0, now + cool_s, now + cool_s)
        self._to_tell[source] = (reason, cool_s, now)
        self._log.warning(
            "interruption",
            source=source,
            reason=reason,
            cool_s=cool_s,
            remedy="Bulk goes on by itself after the cool-down. Look at the source, or at the lines before.",
        )
        self._tell_admission()

    def _fault_in_ramp(self, source: str, now: float) -> None:
        followed = self._followed.get(source)
        if followed is not None and followed.ramp_from < now and followed.cool_until <= now:
            followed.ramp_from = now
            self._to_restart.add(source)
            self._tell_admission()

    # What the store says.

    async def look(self) -> None:
        """Tell the store what it does not know yet, and read how things stand.

        Raises:
            StoreDownError: it does not answer; what stood stands.
        """
        try:
            await self._tell_store()
            asked = self._asked()
            controls = await self._store.controls()
        except StoreDownError:
            self._tell_admission()  # ramps go on growing
            raise
        self._read(controls, asked)
        self._tell_admission()
        self.is_known = True
        for source, over in self._over().items():
            asked = self._asked()
            controls = await self._store.end_interruption(
                source, author=GATEWAY, reason="the ramp has reached the cap", skip=False
            )
            self._log.info("interruption over", source=source)
            if self._followed.get(source) is over:  # no other has begun here while the store was told
                del self._followed[source]
            self._read(controls, asked)  # nor at another replica, or it is followed from now on
        self._tell_admission()

    async def _tell_store(self) -> None:
        for source, told in list(self._to_tell.items()):
            reason, cool_s, began = told
            now = self._clock.boot()
            followed = self._followed[source]
            # While the store was away it may have cooled already; its ramp is not over for that.
            if followed.cool_until > now or self._slots_now(followed, now) < self._cap_of(source):
                left = max(0.0, began + cool_s - now)
                record = await self._store.interrupt(source, reason=reason, cool_s=left)
                followed.number = record.number
            if self._to_tell[source] is told:  # no other has begun meanwhile
                del self._to_tell[source]
        for source in list(self._to_restart):
            try:
                await self._store.restart_ramp(source)
            except StateError:  # it is over already, by another replica's word
                self._log.info("ramp over already", source=source)
            self._to_restart.discard(source)

    def _asked(self) -> _Asked:
        return _Asked(self._clock.boot(), self._clock.wall())

    def _read(self, controls: Controls, asked: _Asked) -> None:
        ahead_s = max(0.0, (controls.now - asked.wall).total_seconds())
        self._held = frozenset(
            ALL_SOURCES if hold.scope == ALL_SOURCES else hold.scope.removeprefix(_HELD) for hold in controls.holds
        )
        changed = controls.revision != self._revision
        self._revision = controls.revision
        records = {record.source: record for record in controls.interruptions}
        for source in list(self._followed):
            if source not in records and source not in self._to_tell:
                del self._followed[source]
        for source, record in records.items():
            if source in self._to_tell:  # this one is older than what has begun here meanwhile
                continue
            followed = self._followed.get(source)
            if followed is None or (followed.number and followed.number != record.number):
                self._followed[source] = _followed_from(record, asked.boot, ahead_s)
            elif changed:
                _follow(followed, record, asked.boot)

    def _over(self) -> Mapping[str, Interruption]:
        now = self._clock.boot()
        return {
            source: one
            for source, one in self._followed.items()
            if one.number and one.cool_until <= now and self._slots_now(one, now) >= self._cap_of(source)
        }

    # What admission is told.

    def _slots_now(self, one: Interruption, now: float) -> int:
        return ramp_slots(now - one.ramp_from, self._terms.ramp_step)

    def _tell_admission(self) -> None:
        now = self._clock.boot()
        cooling = {source: one.cool_until for source, one in self._followed.items() if one.cool_until > now}
        # While it cools, too: the first second after it is the ramp's.
        at_most = {source: self._slots_now(one, now) for source, one in self._followed.items()}
        standing = Standing(self._held, cooling, at_most)
        if standing != self._standing:
            self._standing = standing
            self._adopt_standing(standing)

    @property
    def standing(self) -> Standing:
        """Return what stands against bulk now."""
        return self._standing

    def readings(self, sources: Iterable[str]) -> Iterable[Reading]:
        """Yield what Prometheus is told; `sources` are those of the catalogue."""
        now = self._clock.boot()
        known = (*sources, UNCLASSIFIED, ALL_SOURCES)
        held: dict[tuple[str, ...], float] = {(source,): float(source in self._held) for source in known}
        interrupted: dict[tuple[str, ...], float] = {(source, phase): 0.0 for source in known for phase in PHASES}
        for source, one in self._followed.items():
            interrupted[source, PHASES[one.cool_until <= now]] = 1.0
        yield Reading("held", "1 while a person stops bulk to a source, or to all.", ("source",), held)
        yield Reading(
            "interruptions",
            "1 while a source, or all, cools down after an interruption, and while it ramps up again.",
            ("source", "phase"),
            interrupted,
        )

    @property
    def cooling(self) -> Mapping[str, float]:
        """Return for how long each source (or all) still cools, seconds."""
        now = self._clock.boot()
        return {source: until - now for source, until in self._standing.cooling_until.items() if until > now}


def _followed_from(record: InterruptionRecord, asked: float, ahead_s: float) -> Interruption:
    """Turn a record into times of the boot clock, once; `ahead_s`: so far the store's clock is ahead of the host's."""
    skipped = bool(record.skipped_by)
    left = 0.0 if skipped else max(0.0, record.cool_s - max(0.0, record.since_s - ahead_s))
    cool_until = asked + left
    ramp_from = cool_until if left else asked - max(0.0, record.ramp_s - ahead_s)
    return Interruption(record.number, cool_until, ramp_from, skipped)


def _follow(followed: Interruption, record: InterruptionRecord, asked: float) -> None:
    """Follow what a person or another replica changed."""
    followed.number = record.number
    if record.skipped_by and not followed.skipped:
        followed.skipped = True
        followed.cool_until = min(followed.cool_until, asked)
        followed.ramp_from = max(asked - record.ramp_s, followed.cool_until)
    began = asked - record.ramp_s
    if record.ramp_s > 0 and began > followed.ramp_from + SLACK_S:
        followed.ramp_from = min(began, asked)
