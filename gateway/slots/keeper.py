"""Keeps the slots that several gateways share: does what `policies.tenure` says, one statement after the other.

Rules that always hold:
- Times are taken here: before a statement is sent, and after its answer arrived, by the boot clock.
- One statement at a time, and each is answered or counted as lost before the next.
- A call is bound to rows in the moment of its grant, and to no others until it is over.
- Under another layout a new tenure begins, with an id of its own. The one before it takes and renews nothing more, and
  lets go of each row when the call under it is over.
- The store being away, or saying what nobody foresaw, stops nothing here but the rows: it is told once, and tried again
  for ever. Real-time must not notice.

Decides nothing.
"""

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from gateway.log import EventLog
from policies.leases import (
    Announce,
    Demand,
    Install,
    Observe,
    Place,
    Release,
    Renew,
    Rest,
    Step,
    Take,
    Times,
    layout_text,
)
from policies.model import Clock, LayoutRow, LeaseStore, Reason, StoreDownError, Ticket
from policies.pools import Layout
from policies.tenure import Leases

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
"""Between attempts while the store is away. Renewals are due every 5 s, and three of them may fail."""
LISTEN_S = 30.0
"""For how long one wait for an awakening lasts, so that a connection that died unnoticed is renewed."""
LET_GO_S = 5.0
"""For the last releases, when stopping; what is not released then is observed by the others."""


def layout_row(layout: Layout, times: Times) -> LayoutRow:
    """Return the row that says what all gateways must agree on."""
    digest = hashlib.sha256(layout_text(layout, times).encode()).hexdigest()
    caps = tuple(sorted((name, pool.slots) for name, pool in layout.pools.items()))
    return LayoutRow(digest, times.lease_s, caps)


@dataclass(slots=True)
class _Binding:
    leases: Leases
    places: tuple[Place, ...]
    whole: bool  #: there is a row for each pool
    pools: tuple[str, ...]  #: as the call is counted now; after a reload the rows may bear other names


class Keeper:
    """The shared slots of this process.

    Args:
        demand: says who waits now.
        callers_s: says how long the oldest caller at the line has waited, by pool.
        changed: told after each change of what may be granted.
        times: the times of shared slots, for a T; only tests have others than the design's.
    """

    def __init__(
        self,
        layout: Layout,
        hold_s: float,
        clock: Clock,
        log: EventLog,
        *,
        demand: Callable[[], Demand],
        callers_s: Callable[[], Mapping[str, float]],
        changed: Callable[[], None],
        times: Callable[[float], Times] = Times,
    ) -> None:
        self._clock = clock
        self._log = log
        self._demand = demand
        self._callers_s = callers_s
        self._changed = changed
        self._times = times
        self._leases = self._tenure(layout, hold_s)
        self._retired: list[Leases] = []
        self._bound: dict[Ticket, _Binding] = {}
        self._in_use: Counter[str] = Counter()
        self._store: LeaseStore | None = None
        self._happened = asyncio.Event()
        self._pause_s = 0.0
        self._told_conflict = False
        self.store_up: bool | None = None  #: None: not tried yet

    def _tenure(self, layout: Layout, hold_s: float) -> Leases:
        times = self._times(hold_s)
        return Leases(layout_row(layout, times), times, secrets.token_hex(8))

    # For admission: everything here is synchronous.

    def cap(self, pool: str) -> int:
        """Return how many calls may be in progress in a pool now: those that are, and one for each idle row."""
        return self._in_use[pool] + self._leases.idle(pool, self._clock.boot())

    def rows(self) -> Mapping[str, int]:
        """Return how many rows are held, by pool."""
        return self._leases.rows()

    def bind(self, ticket: Ticket, pools: tuple[str, ...]) -> None:
        """Give a call that was granted its rows."""
        places = self._leases.bind(ticket, pools, self._clock.boot())
        self._bound[ticket] = _Binding(self._leases, places, len(places) == len(pools), pools)
        self._in_use.update(pools)

    def rows_of(self, ticket: Ticket) -> Mapping[str, int]:
        """Return the number of the row that a call has, by pool."""
        binding = self._bound.get(ticket)
        return dict(binding.places) if binding is not None else {}

    def unbind(self, ticket: Ticket) -> None:
        """Say that a call is over, or was never begun. Harmless for one that has no rows."""
        binding = self._bound.pop(ticket, None)
        if binding is None:
            return
        self._in_use.subtract(binding.pools)
        if binding.leases.unbind(ticket, binding.places, self._clock.boot(), self._callers_s):
            self.wake()

    def may_start(self, ticket: Ticket, now: float, *, begun: bool, hold_s: float) -> bool:
        """Guard a call: it has a row in each of its pools, ours and good for its T."""
        binding = self._bound.get(ticket)
        if binding is None or not binding.whole:
            return False
        return binding.leases.may_start(ticket, binding.places, now, begun=begun, hold_s=hold_s)

    def recount(self, ticket: Ticket, pools: tuple[str, ...]) -> None:
        """Count a call in progress in other pools, those of another layout."""
        if (binding := self._bound.get(ticket)) is not None:
            self._in_use.subtract(binding.pools)
            self._in_use.update(pools)
            binding.pools = pools

    def reason(self, pools: tuple[str, ...]) -> Reason | None:
        """Return why no slot of these pools can be had, whoever waits."""
        if self._leases.conflict_s(self._clock.boot()) > 0:
            return Reason.LAYOUT_CONFLICT
        if self.store_up is False and not all(self._leases.idle(pool, self._clock.boot()) for pool in pools):
            return Reason.STORE_UNAVAILABLE
        return None

    @property
    def conflict(self) -> bool:
        """Whether other gateways have another layout."""
        return self._leases.conflict_s(self._clock.boot()) > 0

    def limit(self, limits: Mapping[str, int]) -> None:
        """Use no row above these, by pool: the ramp."""
        self._leases.limits = dict(limits)
        self.wake()

    def adopt(self, layout: Layout, hold_s: float) -> None:
        """Go on under another configuration."""
        fresh = self._tenure(layout, hold_s)
        if fresh.layout == self._leases.layout:
            return
        fresh.inherit(self._leases)
        self._leases.closing = True
        self._retired.append(self._leases)
        self._leases = fresh
        self.wake()

    def wake(self) -> None:
        """Look soon what is to be done: somebody waits, or a row is to go."""
        self._happened.set()

    # The work.

    async def keep(self, store: LeaseStore) -> None:
        """Hold, renew and share for ever."""
        self._store = store
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(store))
            tasks.create_task(self._work(store))

    async def _listen(self, store: LeaseStore) -> None:
        while True:
            try:
                await store.woken(LISTEN_S)
            except Exception:  # noqa: BLE001  # all rows are read now and again anyhow; what is wrong is told there
                await asyncio.sleep(LONGEST_PAUSE_S)
            self._leases.look()
            self.wake()

    async def _work(self, store: LeaseStore) -> None:
        while True:
            leases, step = self._next()
            if isinstance(step, Release):  # its rows are nobody's already
                self._changed()
            if isinstance(step, Rest):
                await self._rest(step.seconds)
            elif not await self._do(store, leases, step):
                await asyncio.sleep(self._pause_s)
            self._changed()

    def _next(self) -> tuple[Leases, Step]:
        self._retired = [leases for leases in self._retired if not leases.is_empty()]
        now = self._clock.boot()
        for leases in self._retired:
            step = leases.next_step(now, Demand())
            if not isinstance(step, Rest):
                return leases, step
        return self._leases, self._leases.next_step(now, self._demand())

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._happened.wait()
        self._happened.clear()

    async def _do(self, store: LeaseStore, leases: Leases, step: Step) -> bool:
        """Do one thing; return whether an answer came."""
        answered = False
        try:
            await self._ask(store, leases, step)
            answered = True
        except StoreDownError as error:
            self._note_down(str(error))
        except Exception as error:  # noqa: BLE001  # a table is gone, a right was taken away: bulk waits, calls go on
            self._note_down(f"{type(error).__name__}: {error}")
        finally:
            if not answered:  # also when we are cancelled: it may happen all the same
                leases.lost(step, secrets.token_hex(8))
        if answered:
            if self.store_up is False:
                self._log.info("store back")
            self.store_up, self._pause_s = True, 0.0
            self._tell_conflict()
        return answered

    def _note_down(self, what: str) -> None:
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        if self.store_up is not False:
            remedy = "Bulk stops before its slots may be another gateway's. See that the database can be reached."
            self._log.error("store down", what=what, remedy=remedy)
        self.store_up = False

    async def _ask(self, store: LeaseStore, leases: Leases, step: Step) -> None:
        sent_at = self._clock.boot()
        match step:
            case Observe():
                book = await store.observe()
                leases.observed(book, self._clock.boot())
            case Renew(holder, rows):
                leases.renewed(step, await store.renew(leases.layout.digest, holder, rows), sent_at)
            case Release(holder, rows):
                await store.release(holder, rows)
                leases.released(step)
            case Install(layout, seen):
                leases.installed(done=await store.install(layout, seen), sent_at=sent_at)
            case Take(holder, rows):
                leases.took(step, await store.take(leases.layout.digest, holder, rows), sent_at)
            case Announce(holder, waited_s):
                elsewhere = await store.wait(holder, waited_s)
                leases.heard(step, elsewhere, self._clock.boot())
            case Rest():
                pass

    def _tell_conflict(self) -> None:
        if self.conflict and not self._told_conflict:
            remedy = "Give all gateways on this database the same pools, caps and times; bulk waits here until then."
            self._log.error("layout conflict", remedy=remedy)
        elif self._told_conflict and not self.conflict:
            self._log.info("layout agreed")
        self._told_conflict = self.conflict

    async def let_go(self) -> None:
        """When stopping, after `keep` has ended: release what is idle. What is in use is left to be observed."""
        if self._store is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                for leases in (*self._retired, self._leases):
                    leases.closing = True
                    while not isinstance(step := leases.next_step(self._clock.boot(), Demand()), Rest):
                        if not await self._do(self._store, leases, step):
                            return
