"""The eight rules of policies.admission, under every order of events that Hypothesis can think of."""

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

Flow = tuple[str, tuple[str, ...], bool]


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
        self.caps = dict(CAPS)
        self.lowered = False  # a pool may stand above its cap
        self.last_was_stored = dict.fromkeys(CAPS, False)
        self.overtaken: dict[Ticket, list[Flow]] = {}  # head of a flow -> flows granted while it was the head

    # What can happen.

    @rule(owner=st.sampled_from(OWNERS), needs=st.sampled_from(NEEDS), stored=st.booleans())
    def arrive(self, owner: str, needs: tuple[str, ...], stored: bool) -> None:
        ticket = Ticket(next(self.numbers))
        ahead = self.table.ahead(owner, needs)
        flow = (owner, needs, stored)
        answer = self.table.arrive(ticket, owner, needs, stored=stored)
        longest = QUEUE if self.open else PARK
        queues = [sum(pool in flow[1] and not flow[2] for flow in self.waiting.values()) for pool in needs]
        if answer is Answer.GRANTED:
            assert flow not in self.waiting.values(), "a newcomer overtook its own flow"
            assert self.open
            self.its_kind_was_due(flow)
            self.held[ticket] = flow
            self.note_overtaken(flow)
        elif answer is Answer.WAITING:
            assert stored or max(queues) < longest
            self.waiting[ticket] = flow
        else:
            assert not stored
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
        owner, needs, stored = flow = self.held.pop(ticket)
        self.grant(self.table.leave(ticket))
        self.waiting[ticket] = flow
        self.first_again.append(ticket)
        answer = self.table.arrive(ticket, owner, needs, bounded=False, stored=stored, first=True)
        assert answer is not Answer.FULL
        if answer is Answer.GRANTED:
            self.grant((ticket,))
        self.overtaken.clear()  # who was sent back goes before all others: count anew

    @rule(is_open=st.booleans())
    def window(self, is_open: bool) -> None:
        self.open = is_open
        self.grant(self.table.set_open(is_open))

    @rule(pool=st.sampled_from(sorted(CAPS)), cap=st.integers(0, 3))
    def another_cap(self, pool: str, cap: int) -> None:
        self.lowered |= cap < self.caps[pool]
        self.caps[pool] = cap
        self.grant(self.table.set_cap(pool, cap))

    @rule(needs=st.sampled_from(NEEDS))
    @precondition(lambda self: sum(not flow[0] for flow in self.held.values()) < 2)
    def something_still_runs(self, needs: tuple[str, ...]) -> None:
        ticket = Ticket(next(self.numbers))
        self.table.occupy(ticket, needs)
        self.held[ticket] = ("", needs, False)

    def grant(self, granted: tuple[Ticket, ...]) -> None:
        for ticket in granted:
            flow = self.waiting[ticket]
            assert ticket == self.head(flow), "out of turn inside a flow"
            assert self.open
            self.its_kind_was_due(flow)
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

    def reserved(self) -> set[str]:
        return {pool for pool, state in self.table.statistics().items() if state.reserved}

    def its_kind_was_due(self, flow: Flow) -> None:
        """A call for one pool was granted: was it its kind's turn there? (Reservations are the table's secret.)"""
        _, needs, stored = flow
        for pool in needs:
            in_use = [one for one in self.held.values() if pool in one[1]]
            assert len(in_use) < self.caps[pool], "granted in a full pool"
            theirs = not any(one[2] for one in in_use) and (self.caps[pool] > 1 or not self.last_was_stored[pool])
            others = any(one[1] == (pool,) and one[2] is not stored for one in self.waiting.values())
            if len(needs) == 1 and others and self.total is None and not self.someone_reserves(pool):
                assert stored is theirs, f"{flow} was served before the other kind"
            self.last_was_stored[pool] = stored

    def someone_reserves(self, pool: str) -> bool:
        return any(pool in one[1] and len(one[1]) > 1 for one in self.waiting.values())

    # What must hold.

    @invariant()
    def caps_hold(self) -> None:
        real = {ticket: flow for ticket, flow in self.held.items() if flow[0]}
        for pool, cap in self.caps.items():
            in_use = sum(pool in flow[1] for flow in self.held.values())
            phantoms = sum(pool in flow[1] for flow in self.held.values() if not flow[0])
            assert self.lowered or sum(pool in flow[1] for flow in real.values()) <= cap
            assert self.lowered or in_use <= max(cap, phantoms) or in_use - phantoms <= cap
            assert self.table.has_stored(pool) == any(flow[2] and pool in flow[1] for flow in self.waiting.values())
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
        reserved = self.reserved()
        assert all(state.reserved <= 1 for state in self.table.statistics().values())
        if reserved:
            assert any(reserved < set(flow[1]) for flow in self.waiting.values()), "reserved for nobody"
        needs, won = self.table.reservation() or ((), frozenset())
        assert won == reserved
        assert not needs or any(needs == flow[1] for flow in self.waiting.values())

    @invariant()
    def no_flow_starves(self) -> None:
        """While a call for one pool is the head of its flow, each other flow of its kind that wants this pool only is
        served once at most.

        A total is left out: there a slot that is free may wait for the reserver, which goes before.
        """
        if self.total is not None:
            return
        for head, flows in self.overtaken.items():
            mine = self.waiting.get(head)
            if mine is None or len(mine[1]) > 1:
                continue
            rivals = [flow for flow in flows if flow[1] == mine[1] and flow[2] is mine[2]]
            assert all(rivals.count(flow) <= 1 for flow in set(rivals)), f"{mine} was overtaken by {rivals}"

    def teardown(self) -> None:
        """Whoever waits is served in the end, when those in progress leave: no deadlock, nobody forgotten."""
        self.window(True)
        for pool, cap in self.caps.items():
            self.another_cap(pool, max(cap, 1))
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


def served_in_turn(cap: int, *, callers: int, stored: int) -> str:
    """Fill a pool, let calls leave one after the other; return who was served: c, a caller, or s, an item."""
    table = SlotTable({"onss": cap}, queue_length=100, park_length=100)
    held = [Ticket(number) for number in range(cap)]
    for ticket in held:
        table.arrive(ticket, "first", ("onss",))
    for number in range(stored):
        table.arrive(Ticket(100 + number), "run", ("onss",), stored=True)
    for number in range(callers):
        table.arrive(Ticket(200 + number), "caller", ("onss",))
    order = ""
    while held:
        granted = table.leave(held.pop(0))
        order += "".join("s" if ticket < 200 else "c" for ticket in granted)
        held += granted
    return order


def test_callers_go_before_stored_items_which_keep_one_slot() -> None:
    """With three slots, an item is served whenever the one before it has left; callers have the other two."""
    assert served_in_turn(3, callers=6, stored=4) == "sccsccsccs"


def test_in_a_pool_of_one_slot_callers_and_stored_items_alternate() -> None:
    assert served_in_turn(1, callers=4, stored=3) == "scscscc"


def test_stored_items_for_several_pools_reserve_in_turn_with_callers() -> None:
    table = SlotTable({"base": 1, "onss": 1}, queue_length=9, park_length=9)
    both = ("base", "onss")
    assert table.arrive(Ticket(1), "a", both) is Answer.GRANTED
    for number in (2, 3):
        table.arrive(Ticket(number), "caller", both)
        table.arrive(Ticket(number + 10), "run", both, stored=True)
    order = []
    current = Ticket(1)
    for _ in range(4):
        (current,) = table.leave(current)
        order.append(current)
    assert order == [12, 2, 13, 3]


def test_a_lowered_cap_takes_back_what_is_reserved_and_stops_grants_at_once() -> None:
    table = SlotTable({"base": 1, "onss": 1}, queue_length=9, park_length=9)
    table.arrive(Ticket(1), "a", ("base",))
    assert table.arrive(Ticket(2), "b", ("base", "onss")) is Answer.WAITING
    assert table.reservation() == (("base", "onss"), {"onss"})
    assert table.set_cap("onss", 0) == ()
    assert table.reservation() == (("base", "onss"), frozenset())
    assert table.cap("onss") == 0
    assert table.leave(Ticket(1)) == ()
    assert table.arrive(Ticket(3), "c", ("onss",)) is Answer.WAITING
    assert table.set_cap("onss", 1) == (2,)
    assert table.set_cap("onss", 2) == (3,)
    assert table.reservation() is None
