"""Runs that clients drive by themselves: a client loops, and tags its calls `X-Bulk-Run`; here they are accounted for.

Rules that always hold:
- A call is let through only for a run that exists, is client-driven, belongs to the caller and goes on.
- Counts are gathered in memory and written once a second: what a crash loses is a second of counting, never a call.
- What was told under a number is told again under the same until the store has answered: it counts each number once.
- A run that must be held is paused in the store, like any other; its client is refused from then on.
- What is remembered is bounded: the run least recently used is written and forgotten.

Nothing of a call is stored.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from gateway.log import EventLog
from gateway.records import GATEWAY, RunRecord
from gateway.runner.accounts import Account, RejectTerms
from gateway.store.interface import StateError, Store
from policies.model import Clock, ItemState, Reason, RunKind, RunState, StoreDownError
from policies.recovery import Disposition
from policies.runs import ENDED

MOST_RUNS = 1000
KNOWN_FOR_S = 2.0
"""For how long the state of a run is believed: so soon does a pause take hold."""


@dataclass(slots=True)
class _Counts:
    number: int = 0  #: under which they are told
    done: int = 0
    rejected: int = 0
    failed: int = 0
    attempts: int = 0


@dataclass(slots=True)
class _Driven:
    record: RunRecord
    looked_at: float
    counts: _Counts = field(default_factory=_Counts)  #: not told yet
    told: _Counts | None = None  #: told, and not answered
    account: Account = field(default_factory=Account)
    pause_for: str = ""


class ClientRuns:
    """All client-driven runs that have had calls of late. `write` is called every second by its owner."""

    def __init__(self, store: Store, clock: Clock, log: EventLog, terms: Callable[[], RejectTerms]) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._terms = terms
        self._writer = secrets.token_hex(16)
        self._numbers = count(1)
        self._runs: OrderedDict[str, _Driven] = OrderedDict()

    async def begin(self, run_id: str, flow: str) -> Reason | None:
        """Say why a call of this run may not go on; None: it may."""
        driven = self._runs.get(run_id)
        if driven is None or self._clock.boot() - driven.looked_at > KNOWN_FOR_S:
            try:
                driven = await self._looked_up(run_id)
            except StoreDownError:
                return Reason.STORE_UNAVAILABLE
        if driven is None or driven.record.client != flow or driven.record.state in ENDED:
            return Reason.UNKNOWN_RUN
        if driven.pause_for or driven.record.state in (RunState.PAUSED, RunState.LOADING):
            return Reason.RUN_PAUSED
        self._runs.move_to_end(run_id)
        return None

    def ended(self, run_id: str, disposition: Disposition | None) -> None:
        """Account for a call of this run; None: nothing is known of how it ended.

        Its client repeats by itself what it wants repeated, so only what is final counts as settled.
        """
        driven = self._runs.get(run_id)
        if driven is None:
            return
        driven.counts.attempts += 1
        if disposition is None:
            return
        if disposition.state in (ItemState.DONE, ItemState.REJECTED, ItemState.FAILED):
            driven.counts.done += disposition.state is ItemState.DONE
            driven.counts.rejected += disposition.state is ItemState.REJECTED
            driven.counts.failed += disposition.state is ItemState.FAILED
            driven.account.count(disposition.state)
        if disposition.holds_run:
            driven.pause_for = f"{disposition.code}: {disposition.meaning}"
        elif why := self._terms().of_run(driven.record.options).broken_by(driven.account):
            driven.pause_for = why

    async def write(self) -> None:
        """Write what has gathered.

        Raises:
            StoreDownError: the store does not answer; the counts are kept.
        """
        for run_id, driven in list(self._runs.items()):
            await self._write_one(driven)
            if len(self._runs) > MOST_RUNS and not driven.counts.attempts and driven.told is None:
                del self._runs[run_id]

    async def _write_one(self, driven: _Driven) -> None:
        for _ in range(2):  # what was told before, and what has gathered since
            if driven.told is None:
                if not driven.counts.attempts:
                    break
                driven.told, driven.counts = driven.counts, _Counts()
                driven.told.number = next(self._numbers)
            told = driven.told
            try:
                driven.record = await self._store.count(
                    driven.record.id,
                    done=told.done,
                    rejected=told.rejected,
                    failed=told.failed,
                    attempts=told.attempts,
                    by=(self._writer, told.number),
                )
            except StateError as error:  # it was ended or purged meanwhile: nobody counts it any more
                self._log.info("calls of a run that is over were not counted", calls=told.attempts, why=str(error))
            if driven.told is told:
                driven.told = None
        if driven.pause_for:
            try:
                driven.record = await self._store.change_state(
                    driven.record.id,
                    RunState.PAUSED,
                    author=GATEWAY,
                    reason=driven.pause_for,
                    expected=(RunState.READY, RunState.RUNNING),
                )
                self._log.warning("run held", run=driven.record.public_id, reason=driven.pause_for)
            except StateError:  # a person was first
                self._log.info("run is held or over already", run=driven.record.public_id)
            driven.pause_for = ""
            driven.account = Account()

    async def _looked_up(self, run_id: str) -> _Driven | None:
        record = await self._store.run(run_id)
        if record is None or record.kind is not RunKind.CLIENT:
            return None
        driven = self._runs.get(run_id)  # looked at after waiting: another call may have been first
        if driven is None:
            driven = self._runs[run_id] = _Driven(record, self._clock.boot())
        driven.record, driven.looked_at = record, self._clock.boot()
        return driven
