"""The seven rules of policies.admission, under every order of events that Hypothesis can think of."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from policies.admission import Answer, SlotTable, predicted_wait
from policies.model import Ticket

CAPS = {"base": 2, "onss": 1, "onem": 1, "cin": 1}
QUEUE, PARK = 4, 6
NEEDS = [("base",), ("onss",), ("onem",), ("base", "onss"), ("onem", "onss"), ("base", "onem", "onss"), ("base", "cin")]
OWNERS = ["payroll", "pensions", "audit"]

Flow = tuple[str, tuple[str, ...]]


class Books(RuleBasedStateMachine):
    """Drives a table and keeps its own books, the slow and obvious way."""

    total: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(CAPS, queue_length=QUEUE, park_length=PARK, total=self.total)
        self.open = True
        self.numbers = count(1)
        self.held: dict[Ticket, Flow] = {}
        self.waiting: dict[Ticket, Flow] = {}  # in the order of arrival
        self.first_again: list[Ticket] = []  # returned to the head of their flow, latest last
        self.overtaken: dict[Ticket, list[Flow]] = {}  # head of a flow -> flows granted while it was the head

    # What can happen.

    @rule(owner=st.sampled_from(OWNERS), needs=st.sampled_from(NEEDS))
    def arrive(self, owner: str, needs: tuple[str, ...]) -> None:
        ticket = Ticket(next(self.numbers))
        ahead = self.table.ahead(owner, needs)
        answer = self.table.arrive(ticket, owner, needs)
        longest = QUEUE if self.open else PARK
        queues = [sum(pool in flow[1] for flow in self.waiting.values()) for pool in needs]
        if answer is Answer.GRANTED:
            assert (owner, needs) not in self.waiting.values(), "a newcomer overtook its own flow"
            assert self.open
            self.held[ticket] = (owner, needs)
            self.note_overtaken((owner, needs))
        elif answer is Answer.WAITING:
            assert max(queues) < longest
            self.waiting[ticket] = (owner, needs)
        else:
            assert max(queues) >= longest
        assert 0 <= ahead <= max(queues)

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([*self.held, *self.waiting]))
        self.held.pop(ticket, None)
        self.waiting.pop(ticket, None)
        self.overtaken.pop(ticket, None)
        self.grant(self.table.leave(ticket))
        assert self.table.leave(ticket) == (), "leaving twice did something"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def guard_says_no(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([ticket for ticket in self.held if self.held[ticket][0]] or [None]))
        if ticket is None:
            return
        self.waiting[ticket] = self.held.pop(ticket)
        self.first_again.append(ticket)
        self.grant(self.table.return_to_head(ticket))
        self.overtaken.clear()  # who was sent back goes before all others: count anew

    @rule(is_open=st.booleans())
    def window(self, is_open: bool) -> None:
        self.open = is_open
        self.grant(self.table.set_open(is_open))

    @rule(needs=st.sampled_from(NEEDS))
    @precondition(lambda self: sum(not flow[0] for flow in self.held.values()) < 2)
    def something_still_runs(self, needs: tuple[str, ...]) -> None:
        ticket = Ticket(next(self.numbers))
        self.table.occupy(ticket, needs)
        self.held[ticket] = ("", needs)

    def grant(self, granted: tuple[Ticket, ...]) -> None:
        for ticket in granted:
            flow = self.waiting[ticket]
            assert ticket == self.head(flow), "out of turn inside a flow"
            assert self.open
            del self.waiting[ticket]
            if ticket in self.first_again:
                self.first_again.remove(ticket)
            self.overtaken.pop(ticket, None)
            self.held[ticket] = flow
            self.note_overtaken(flow)

    def head(self, flow: Flow) -> Ticket:
        mine = [ticket for ticket, one in self.waiting.items() if one == flow]
        again = [ticket for ticket in self.first_again if ticket in mine]
        return again[-1] if again else mine[0]

    def note_overtaken(self, flow: Flow) -> None:
        for waiting in set(self.waiting.values()):
            head = self.head(waiting)
            self.overtaken.setdefault(head, []).append(flow)

    # What must hold.

    @invariant()
    def caps_hold(self) -> None:
        real = {ticket: flow for ticket, flow in self.held.items() if flow[0]}
        for pool, cap in CAPS.items():
            in_use = sum(pool in flow[1] for flow in self.held.values())
            phantoms = sum(pool in flow[1] for flow in self.held.values() if not flow[0])
            assert sum(pool in flow[1] for flow in real.values()) <= cap
            assert in_use <= max(cap, phantoms) or in_use - phantoms <= cap
            state = self.table.statistics()[pool]
            assert (state.cap, state.in_use) == (cap, in_use)
            assert state.waiting == sum(pool in flow[1] for flow in self.waiting.values())
        if self.total is not None:
            assert len(real) <= self.total
        assert set(self.table.waiting()) == set(self.waiting)

    @invariant()
    def no_slot_lies_idle(self) -> None:
        if not self.open or (self.total is not None and len(self.held) >= self.total):
            return
        states = self.table.statistics()
        idle = {pool for pool, state in states.items() if state.in_use + state.reserved < state.cap}
        reserving = any(state.reserved for state in states.values())
        if self.total is not None and reserving and len(self.held) + 1 >= self.total:
            return
        for flow in self.waiting.values():
            assert not set(flow[1]) <= idle, f"{flow} could have its slots"

    @invariant()
    def only_one_reserves(self) -> None:
        reserved = {pool for pool, state in self.table.statistics().items() if state.reserved}
        assert all(state.reserved <= 1 for state in self.table.statistics().values())
        if reserved:
            assert any(reserved < set(flow[1]) for flow in self.waiting.values()), "reserved for nobody"

    @invariant()
    def no_flow_starves(self) -> None:
        """While a call for one pool is the head of its flow, each other flow that wants this pool only is served
        once at most.

        A total is left out: there a slot that is free may wait for the reserver, which goes before.
        """
        if self.total is not None:
            return
        for head, flows in self.overtaken.items():
            mine = self.waiting.get(head)
            if mine is None or len(mine[1]) > 1:
                continue
            rivals = [flow for flow in flows if set(flow[1]) & set(mine[1]) and len(flow[1]) == 1]
            assert all(rivals.count(flow) <= 1 for flow in set(rivals)), f"{mine} was overtaken by {rivals}"

    def teardown(self) -> None:
        """Whoever waits is served in the end, when those in progress leave: no deadlock, nobody forgotten."""
        self.window(True)
        for _ in range(500):
            if not self.held:
                break
            oldest = next(iter(self.held))
            del self.held[oldest]
            self.grant(self.table.leave(oldest))
            self.caps_hold()
        assert not self.held
        assert not self.waiting


class BooksWithTotal(Books):
    """The same, with a total over all pools."""

    total = 2


TestSlotTable = Books.TestCase
TestSlotTable.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestSlotTableWithTotal = BooksWithTotal.TestCase
TestSlotTableWithTotal.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_flows_take_turns() -> None:
    """A long queue of one owner does not keep another one waiting behind all of it."""
    table = SlotTable({"onss": 1}, queue_length=100, park_length=100)
    table.arrive(Ticket(0), "first", ("onss",))
    for number in range(1, 6):
        table.arrive(Ticket(number), "long", ("onss",))
    table.arrive(Ticket(10), "short", ("onss",))
    order = []
    current = Ticket(0)
    for _ in range(6):
        (current,) = table.leave(current)
        order.append(current)
    assert order == [1, 10, 2, 3, 4, 5]


def test_a_call_for_several_pools_is_not_overtaken_for_ever() -> None:
    """Two pools that are never free at the same moment: only by reserving can the call for both get its turn."""
    table = SlotTable({"base": 1, "onss": 1}, queue_length=100, park_length=100)
    numbers = map(Ticket, count(100))
    holders = {}
    for pool in ("base", "onss"):
        holders[pool] = next(numbers)
        table.arrive(holders[pool], f"busy-{pool}", (pool,))
    both = Ticket(1)
    assert table.arrive(both, "composite", ("base", "onss")) is Answer.WAITING
    for round_ in range(10):
        pool = ("base", "onss")[round_ % 2]
        table.arrive(next(numbers), f"busy-{pool}", (pool,))
        granted = table.leave(holders[pool])
        if both in granted:
            assert round_ == 1
            return
        if granted:
            (holders[pool],) = granted
    pytest.fail("the call for both pools was never served")


def test_a_total_smaller_than_the_needs_of_a_call_does_not_lock_everybody_out() -> None:
    table = SlotTable({"base": 1, "onss": 1}, queue_length=9, park_length=9, total=1)
    assert table.arrive(Ticket(1), "a", ("base",)) is Answer.GRANTED
    assert table.arrive(Ticket(2), "b", ("onss",)) is Answer.WAITING
    assert table.arrive(Ticket(3), "c", ("base", "onss")) is Answer.WAITING
    assert table.leave(Ticket(1)) == (2,)
    assert table.leave(Ticket(2)) == (3,)


@pytest.mark.parametrize(("ahead", "slots", "expected"), [(0, 4, 0.5), (7, 4, 4.0), (3, 0, float("inf"))])
def test_the_wait_is_predicted_from_those_ahead(ahead: int, slots: int, expected: float) -> None:
    assert predicted_wait(ahead, slots, 2.0) == expected
