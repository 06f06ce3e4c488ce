"""The store's contract in every order: random work against independent books. Every engine keeps it.

After each step counts equal rows, and every position is exactly one of: unclaimed, in a batch, returned, settled. In
the end, whatever happened, every item can be settled, once.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.records import Batch, BatchSighting, Counts, Recovered, Result, Returned, Settlement
from gateway.store.interface import StateError
from policies.model import ItemState, RunState
from tests.gateway.store.conftest import Kept, OpenStore
from tests.gateway.store.making import READS, WRITES, items, new_run

Place = tuple[int, int]
SETTLED = [ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT]
HOLDERS = ["here", "there"]
DELAY_S = 600.0


@dataclass
class Held:
    """A batch in the books."""

    batch: Batch
    holder: str
    armed: int
    renewal: int
    left: set[Place]


@dataclass
class Waiting:
    """A returned item in the books."""

    attempts: int
    delayed: bool


@dataclass
class Books:
    """What the run should look like."""

    settled: dict[Place, tuple[ItemState, int]] = field(default_factory=dict)
    waiting: dict[Place, Waiting] = field(default_factory=dict)
    attempts: dict[Place, int] = field(default_factory=dict)  # of those that a batch of returned items holds
    held: dict[int, Held] = field(default_factory=dict)
    lost: list[Held] = field(default_factory=list)
    totals: Counter[int] = field(default_factory=Counter)
    claimed: Counter[int] = field(default_factory=Counter)
    seqs: dict[Place, int] = field(default_factory=dict)
    repeated: set[Place] = field(default_factory=set)  # a person's word, until their next sending has ended


class Life(RuleBasedStateMachine):
    """One run, two lanes, two processes."""

    kept: Kept
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.store = self.kept.store
        self.books = Books()
        self.state = RunState.READY

    @initialize(reads=st.integers(0, 12), writes=st.integers(0, 12))
    def load(self, reads: int, writes: int) -> None:
        run = self.wait(self.store.create_run(new_run()))
        self.run_id, self.public_id = run.id, run.public_id
        entries = [*items(range(reads), READS), *items(range(reads, reads + writes), WRITES)]
        loaded = self.wait(self.store.add_items(run.id, entries, received=len(entries), places=True))
        self.wait(self.store.change_state(run.id, RunState.READY, author="anna", reason=""))
        self.repeatable = {}
        for work, total in self.wait(self.store.lanes(run.id)):
            self.books.totals[work.lane_id] = total
            self.repeatable[work.lane_id] = work.key.repeatable
        self.books.seqs = {place: seq for seq, place in loaded.places.items()}

    # What happens.

    @precondition(lambda self: self.repeatable)
    @rule(data=st.data(), size=st.integers(1, 6), window=st.integers(0, 6), holder=st.sampled_from(HOLDERS))
    def claim(self, data: st.DataObject, size: int, window: int, holder: str) -> None:
        lane_id = data.draw(st.sampled_from(sorted(self.repeatable)))
        batch = self.wait(self.store.claim(lane_id, holder, size=size, window=window))
        lo = self.books.claimed[lane_id]
        hi = min(lo + size, self.books.totals[lane_id])
        if self.state not in (RunState.READY, RunState.RUNNING) or lo == hi:
            assert batch is None
            return
        assert (batch.lo, batch.hi, batch.armed, batch.again) == (lo, hi, min(lo + window, hi), False)
        self.books.claimed[lane_id] = hi
        self.books.held[batch.batch_id] = Held(
            batch, holder, batch.armed, 0, {(lane_id, position) for position in range(lo, hi)}
        )
        self.state = RunState.RUNNING

    @precondition(lambda self: self.repeatable)
    @rule(data=st.data(), size=st.integers(1, 6), armed=st.booleans(), holder=st.sampled_from(HOLDERS))
    def claim_returned(self, data: st.DataObject, size: int, armed: bool, holder: str) -> None:
        lane_id = data.draw(st.sampled_from(sorted(self.repeatable)))
        batch = self.wait(self.store.claim_returned(lane_id, holder, size=size, armed=armed))
        due = {place for place, one in self.books.waiting.items() if place[0] == lane_id and not one.delayed}
        if self.state not in (RunState.READY, RunState.RUNNING) or not due:
            assert batch is None
            return
        fetched = self.wait(self.store.fetch(batch))
        taken = {(one.lane_id, one.position) for one in fetched}
        assert taken <= due
        assert len(fetched) == len(taken) == min(size, len(due))
        assert all(one.attempts == self.books.waiting[one.lane_id, one.position].attempts for one in fetched)
        for place in taken:
            self.books.attempts[place] = self.books.waiting.pop(place).attempts
        assert batch.armed == (batch.hi if armed else batch.lo)
        self.books.held[batch.batch_id] = Held(batch, holder, batch.armed, 0, taken)
        self.state = RunState.RUNNING

    @precondition(lambda self: self.books.held or self.books.lost)
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def settle(self, data: st.DataObject, holder: str) -> None:
        """Whatever a process may say of batches that it has, had, or never had."""
        chosen = data.draw(
            st.lists(st.sampled_from([*self.books.held.values(), *self.books.lost]), min_size=1, max_size=2)
        )
        results, returned, armed = [], [], {}
        for one in chosen:
            among = (
                sorted(one.left)
                if one.batch.again
                else [(one.batch.lane_id, position) for position in range(one.batch.lo, one.batch.hi)]
            )
            for place in data.draw(st.lists(st.sampled_from(among), max_size=3)) if among else []:
                least = 1 if one in self.books.lost else self._attempts(place) + 1  # it may know nothing of those since
                done = data.draw(st.integers(least, self._attempts(place) + 1))
                if data.draw(st.booleans()):
                    state = data.draw(st.sampled_from(SETTLED))
                    results.append(Result(one.batch.batch_id, *place, done, state))
                else:
                    delayed = data.draw(st.booleans())
                    returned.append(Returned(one.batch.batch_id, *place, done, DELAY_S * delayed))
            if data.draw(st.booleans()):
                armed[one.batch.batch_id] = data.draw(st.integers(0, one.batch.hi))
        expected = sum(self._result(one) for one in results)
        for item in returned:
            self._returned(item, holder)
        for batch_id, mark in armed.items():
            held = self.books.held.get(batch_id)
            if held and held.holder == holder:
                held.armed = max(held.armed, mark)
        finished = [held.batch.batch_id for held in chosen if not held.left]
        settled = self.wait(self.store.settle(Settlement(holder, results, returned, armed, finished)))
        named = {one.batch_id for one in results} | {one.batch_id for one in returned} | {*armed, *finished}
        alive = {batch_id for batch_id, held in self.books.held.items() if held.holder == holder}
        assert settled.stored == expected
        assert settled.lost == named - alive
        for batch_id in set(finished) & alive:
            del self.books.held[batch_id]
        if expected or named & alive:
            assert settled.states == {self.run_id: self.state}

    @rule(holder=st.sampled_from(HOLDERS))
    def renew(self, holder: str) -> None:
        self.wait(self.store.renew_batches(holder))
        for held in self.books.held.values():
            held.renewal += held.holder == holder

    @precondition(lambda self: self.books.held)
    @rule(data=st.data(), stale=st.booleans(), delayed=st.booleans())
    def recover(self, data: st.DataObject, stale: bool, delayed: bool) -> None:
        held = data.draw(st.sampled_from(list(self.books.held.values())))
        sighting = BatchSighting(held.batch.batch_id, held.holder, held.batch.token, held.renewal + stale)
        recovered = self.wait(self.store.recover(sighting, delay_s=DELAY_S * delayed))
        if stale:
            assert recovered is None
            return
        again = in_doubt = 0
        for place in sorted(held.left):
            self.books.repeated.discard(place)
            made = self.books.attempts.pop(place, 0)
            maybe_sent = place[1] < held.armed
            if maybe_sent and not self.repeatable[place[0]]:
                self.books.settled[place] = (ItemState.IN_DOUBT, made + 1)
                in_doubt += 1
            else:
                self.books.waiting[place] = Waiting(made + maybe_sent, delayed and maybe_sent)
                again += 1
        assert recovered == Recovered(again, in_doubt)
        del self.books.held[held.batch.batch_id]
        self.books.lost.append(held)

    @rule(may_complete=st.booleans())
    def rest(self, may_complete: bool) -> None:
        found = self.wait(self.store.rest(self.run_id, may_complete=may_complete))
        if not self.books.held and self.state in (RunState.READY, RunState.RUNNING):
            left = sum(self.books.totals.values()) - len(self.books.settled)
            doubt = any(state is ItemState.IN_DOUBT for state, _ in self.books.settled.values())
            if left == 0 and doubt and may_complete:
                self.state = RunState.PAUSED
                self.for_doubt = True
            elif left == 0 and may_complete:
                self.state = RunState.COMPLETED
            else:
                self.state = RunState.READY
        assert found.state is self.state

    @rule()
    def pause_or_resume(self) -> None:
        to = RunState.READY if self.state is RunState.PAUSED else RunState.PAUSED
        try:
            self.state = self.wait(self.store.change_state(self.run_id, to, author="anna", reason="")).state
            self.for_doubt = False
        except StateError:
            assert self.state is RunState.COMPLETED

    @precondition(lambda self: any(state is ItemState.IN_DOUBT for state, _ in self.books.settled.values()))
    @rule(data=st.data(), decision=st.sampled_from(["repeat", "accept", "fail"]))
    def decide(self, data: st.DataObject, decision: str) -> None:
        doubtful = sorted(place for place, (state, _) in self.books.settled.items() if state is ItemState.IN_DOUBT)
        place = data.draw(st.sampled_from(doubtful))
        made = self.books.settled.pop(place)[1]
        found = self.wait(
            self.store.decide(self.run_id, self.books.seqs[place], decision, author="anna", reason="looked")
        )
        if decision == "repeat":
            self.books.waiting[place] = Waiting(made, delayed=False)
            self.books.repeated.add(place)
        else:
            self.books.settled[place] = (ItemState.DONE if decision == "accept" else ItemState.FAILED, made)
        if len(doubtful) == 1 and self.state is RunState.PAUSED and self.for_doubt:
            self.state = RunState.READY
        assert found.state is self.state

    @rule()
    def time_passes(self) -> None:
        self.wait(self.kept.skip(DELAY_S + 1))
        for one in self.books.waiting.values():
            one.delayed = False

    # What must hold.

    @invariant()
    def counts_equal_rows_and_every_position_is_somewhere(self) -> None:
        if not hasattr(self, "run_id"):
            return
        run = self.wait(self.store.run(self.public_id))
        by = Counter(state for state, _ in self.books.settled.values())
        assert run.state is self.state
        assert run.counts == Counts(*(by[state] for state in SETTLED))
        assert run.attempts == sum(
            [
                *(made for _, made in self.books.settled.values()),
                *(one.attempts for one in self.books.waiting.values()),
                *self.books.attempts.values(),
            ]
        )
        listed = self.wait(self.store.items(self.run_id))
        assert [one.seq for one in listed] == sorted(self.books.seqs[place] for place in self.books.settled)
        rows = {(one.lane_id, one.position): (one.state, one.attempts) for one in listed}
        assert rows == self.books.settled
        for held in self.books.held.values():
            fetched = self.wait(self.store.fetch(held.batch))
            assert [(one.lane_id, one.position) for one in fetched] == sorted(held.left)
        mine = [one for one in self.wait(self.store.batches()) if one.batch_id in self.books.held]
        assert [(one.holder, one.renewal) for one in mine] == [
            (held.holder, held.renewal) for _, held in sorted(self.books.held.items())
        ]
        for work, total in self.wait(self.store.lanes(self.run_id)):
            waiting = [one for place, one in self.books.waiting.items() if place[0] == work.lane_id]
            held_here = [held for held in self.books.held.values() if held.batch.lane_id == work.lane_id]
            settled = sum(place[0] == work.lane_id for place in self.books.settled)
            assert work.due == sum(not one.delayed for one in waiting)
            assert work.in_batches == len(held_here)
            assert work.unclaimed + len(waiting) + sum(len(held.left) for held in held_here) + settled == total

    def teardown(self) -> None:
        """However it stands: what is left can be settled, each item once."""
        if not hasattr(self, "run_id"):
            return
        for held in list(self.books.held.values()):
            sighting = BatchSighting(held.batch.batch_id, held.holder, held.batch.token, held.renewal)
            assert self.wait(self.store.recover(sighting, delay_s=0)) is not None
        for one in self.wait(self.store.items(self.run_id, [ItemState.IN_DOUBT])):
            self.wait(self.store.decide(self.run_id, one.seq, "accept", author="anna", reason=""))
        if self.wait(self.store.run(self.public_id)).state is RunState.PAUSED:
            self.wait(self.store.change_state(self.run_id, RunState.READY, author="anna", reason=""))
        self.wait(self.kept.skip(DELAY_S + 1))
        for lane_id in self.repeatable:
            while batch := (
                self.wait(self.store.claim_returned(lane_id, "end", size=100))
                or self.wait(self.store.claim(lane_id, "end", size=100, window=100))
            ):
                done = [
                    Result(batch.batch_id, lane_id, one.position, one.attempts + 1, ItemState.DONE)
                    for one in self.wait(self.store.fetch(batch))
                ]
                end = Settlement("end", done, finished=[batch.batch_id])
                assert self.wait(self.store.settle(end)).stored == len(done)
        found = self.wait(self.store.rest(self.run_id, may_complete=True))
        assert found.state is RunState.COMPLETED
        assert found.waiting == 0

    def wait(self, asked: Awaitable[Any]) -> Any:
        async def answer() -> Any:
            return await asked

        return self.runner.run(answer())

    # The books.

    for_doubt = False

    def _attempts(self, place: Place) -> int:
        if place in self.books.settled:
            return self.books.settled[place][1]
        waits = self.books.waiting.get(place)
        return waits.attempts if waits else self.books.attempts.get(place, 0)

    def _result(self, result: Result) -> bool:
        place = (result.lane_id, result.position)
        held_here = self.books.held.get(result.batch_id)
        sends_it = held_here is not None and place in held_here.left
        if place in self.books.settled:
            return False
        if result.state is ItemState.IN_DOUBT and place in self.books.repeated and not sends_it:
            return False
        self.books.repeated.discard(place)
        waits = self.books.waiting.pop(place, None)
        known = waits.attempts if waits else self.books.attempts.get(place, 0)
        is_late = place in self.books.attempts and not sends_it
        self.books.attempts.pop(place, None)
        for held in self.books.held.values():
            held.left.discard(place)
        self.books.settled[place] = (result.state, max(result.attempts, known + is_late))
        return True

    def _returned(self, returned: Returned, holder: str) -> None:
        place = (returned.lane_id, returned.position)
        held = self.books.held.get(returned.batch_id)
        if held and held.holder == holder and place in held.left:
            held.left.discard(place)
            self.books.attempts.pop(place, None)
            self.books.waiting[place] = Waiting(returned.attempts, returned.delay_s > 0)
            self.books.repeated.discard(place)


def test_every_item_is_settled_once_in_whatever_order(open_store: OpenStore, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        opened = open_store(tmp_path)
        kept = runner.run(opened.__aenter__())
        try:
            run_state_machine_as_test(
                type("Life", (Life,), {"kept": kept, "runner": runner}),
                settings=settings(
                    max_examples=40,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
    asyncio.set_event_loop(None)
