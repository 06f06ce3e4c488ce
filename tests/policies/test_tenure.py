"""What a gateway does about shared slots: in every order of events that Hypothesis can think of, and case by case."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from policies.leases import (
    IDLE_S,
    Announce,
    Demand,
    Install,
    Observe,
    Release,
    Renew,
    Rest,
    Step,
    Take,
    Times,
)
from policies.model import LayoutRow, SlotBook, SlotRow, Ticket, WaitingReplica
from policies.tenure import Leases

TIMES = Times(hold_s=10.0)
OLD = LayoutRow("old", TIMES.lease_s, (("base", 2), ("onss", 1)))
NEW = LayoutRow("new", TIMES.lease_s, (("base", 1), ("onss", 1)))


@dataclass
class Rows:
    """What `policies.model.LeaseStore` promises, by the letter, for one statement after the other."""

    layout: LayoutRow | None = None
    rows: dict[tuple[str, int], SlotRow] = field(default_factory=dict)
    highest: int = 0

    def book(self) -> SlotBook:
        return SlotBook(self.layout, tuple(self.rows[place] for place in sorted(self.rows)))

    def install(self, layout: LayoutRow, seen: SlotBook) -> bool:
        if self.book() != replace(seen, waiting=()):
            return False
        wanted = [(pool, n) for pool, cap in layout.caps for n in range(1, cap + 1)]
        self.highest += 1
        born = {place: SlotRow(*place, self.highest, 0, "nobody") for place in wanted}
        self.rows = born | {place: row for place, row in self.rows.items() if place in born}
        self.layout = layout
        return True

    def take(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        found = [self.rows.get((row.pool, row.n)) for row in rows]
        as_seen = all(
            now is not None and (now.token, now.renewal) == (row.token, row.renewal)
            for now, row in zip(found, rows, strict=True)
        )
        if not as_seen or self.layout is None or self.layout.digest != digest:
            return ()
        taken = tuple(replace(row, token=row.token + 1, renewal=0, holder=holder) for row in rows)
        for row in taken:
            self.rows[row.pool, row.n] = row
            self.highest = max(self.highest, row.token)
        return taken

    def renew(self, digest: str, holder: str, rows: tuple[SlotRow, ...]) -> tuple[SlotRow, ...]:
        known = {(row.pool, row.n): row.token for row in rows}
        agreed = self.layout is not None and self.layout.digest == digest
        renewed = []
        for place, row in self.rows.items():
            if row.holder == holder and known.get(place) != row.token:
                self.rows[place] = replace(row, holder="")
            elif row.holder == holder and agreed:
                self.rows[place] = replace(row, renewal=row.renewal + 1)
                renewed.append(self.rows[place])
        return tuple(renewed)

    def release(self, holder: str, rows: tuple[SlotRow, ...]) -> None:
        for row in rows:
            now = self.rows.get((row.pool, row.n))
            if now is not None and (now.holder, now.token) == (holder, row.token):
                self.rows[row.pool, row.n] = replace(now, holder="")

    def carry_out(self, digest: str, step: Step) -> object:
        match step:
            case Observe():
                return self.book()
            case Install():
                return self.install(step.layout, step.seen)
            case Take():
                return self.take(digest, step.holder, step.rows)
            case Renew():
                return self.renew(digest, step.holder, step.rows)
            case Release():
                return self.release(step.holder, step.rows)
            case _:
                return ()


def answered(leases: Leases, step: Step, answer: object, sent_at: float, now: float) -> None:
    match step:
        case Observe():
            assert isinstance(answer, SlotBook)
            leases.observed(answer, now)
        case Install():
            leases.installed(done=answer is True, sent_at=sent_at)
        case Take():
            leases.took(step, answer, sent_at)  # type: ignore[arg-type]  # as `Rows` made it
        case Renew():
            leases.renewed(step, answer, sent_at)  # type: ignore[arg-type]  # likewise
        case Release():
            leases.released(step)
        case Announce():
            leases.heard(step, (), now)
        case Rest():
            pass


@dataclass
class Call:
    pools: tuple[str, ...]
    until: float  #: then the source is done, at the latest


@dataclass
class Gateway:
    leases: Leases
    calls: dict[Ticket, tuple[tuple[tuple[str, int], ...], Call]] = field(default_factory=dict)
    sent: tuple[Step, float] | None = None
    answer: object = None
    is_carried_out: bool = False


class World(RuleBasedStateMachine):
    """Gateways with the program's own tenures over one table; statements are delayed, lost and late; processes die.

    What is checked is what happens at the sources: `calls` of all gateways, dead ones too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.table = Rows()
        self.ids = map("id-{}".format, count(1))
        self.tickets = map(Ticket, count(1))
        self.gateways = [Gateway(Leases(OLD, TIMES, next(self.ids))) for _ in range(2)]
        self.late: list[Callable[[], object]] = []
        self.calls: list[Call] = []
        self.begun = 0
        self.table.install(OLD, self.table.book())
        for gateway in self.gateways:
            gateway.leases.observed(self.table.book(), self.now - TIMES.lease_s)

    which = st.integers(0, 1)

    @rule(seconds=st.sampled_from([0.5, 5.0, 9.0, 15.5, 26.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.calls = [call for call in self.calls if call.until > self.now]

    @rule(which=which, several=st.booleans(), waited_s=st.sampled_from([0.0, 0.5, 3.0]))
    def says_something(self, which: int, several: bool, waited_s: float) -> None:
        gateway = self.gateways[which]
        if gateway.sent is None:
            pools = ("base", "onss") if several else ("base",)
            singles = {} if several else {"base": 2}
            demand = Demand(
                singles, dict.fromkeys(pools, waited_s), {}, pools if several else (), frozenset(), waited_s
            )
            step = gateway.leases.next_step(self.now, demand)
            gateway.sent, gateway.is_carried_out = (step, self.now), False

    @rule(which=which)
    def is_carried_out(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.sent is not None and not gateway.is_carried_out:
            gateway.answer = self.table.carry_out(gateway.leases.layout.digest, gateway.sent[0])
            gateway.is_carried_out = True

    @rule(which=which)
    def is_answered(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.sent is not None and gateway.is_carried_out:
            (step, sent_at), gateway.sent = gateway.sent, None
            answered(gateway.leases, step, gateway.answer, sent_at, self.now)

    @rule(which=which)
    def all_goes_well(self, which: int) -> None:
        for _ in range(4):
            self.says_something(which, False, 0.5)
            self.is_carried_out(which)
            self.is_answered(which)

    @rule(which=which, comes_late=st.booleans())
    def is_lost(self, which: int, comes_late: bool) -> None:
        gateway = self.gateways[which]
        if gateway.sent is not None:
            (step, _), gateway.sent = gateway.sent, None
            if comes_late and not gateway.is_carried_out:
                self.late.append(partial(self.table.carry_out, gateway.leases.layout.digest, step))
            gateway.leases.lost(step, next(self.ids))

    @rule(which=which, seconds=st.sampled_from([0.0, 5.0]))
    def works(self, which: int, seconds: float) -> None:
        self.all_goes_well(which)
        self.begins_a_call(which, False)
        self.time_passes(seconds)

    @rule(which=which, seconds=st.sampled_from([9.0, 15.5, 26.0]))
    def is_frozen(self, which: int, seconds: float) -> None:
        self.all_goes_well(1 - which)
        self.time_passes(seconds)
        self.works(1 - which, 0.0)
        self.begins_a_call(which, False)

    @precondition(lambda self: self.late)
    @rule()
    def comes_late(self) -> None:
        self.late.pop(0)()

    @rule(which=which, several=st.booleans())
    def begins_a_call(self, which: int, several: bool) -> None:
        gateway = self.gateways[which]
        pools = ("base", "onss") if several else ("base",)
        ticket = next(self.tickets)
        places = gateway.leases.bind(ticket, pools, self.now)
        whole = len(places) == len(pools)
        if whole and gateway.leases.may_start(ticket, places, self.now, begun=False):
            call = Call(pools, self.now + TIMES.hold_s)
            self.calls.append(call)
            self.begun += 1
            gateway.calls[ticket] = places, call
        else:
            gateway.leases.unbind(ticket, places, self.now, dict)

    @precondition(lambda self: any(gateway.calls for gateway in self.gateways))
    @rule(which=which)
    def a_call_ends(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.calls:
            ticket, (places, call) = next(iter(gateway.calls.items()))
            del gateway.calls[ticket]
            gateway.leases.unbind(ticket, places, self.now, dict)
            self.calls = [one for one in self.calls if one is not call]

    @rule(which=which)
    def goes_on_writing(self, which: int) -> None:
        gateway = self.gateways[which]
        for ticket, (places, call) in gateway.calls.items():
            if call in self.calls and gateway.leases.may_start(ticket, places, self.now, begun=True):
                call.until = self.now + TIMES.hold_s

    @rule(which=which)
    def dies(self, which: int) -> None:
        self.gateways[which] = Gateway(Leases(self.gateways[which].leases.layout, TIMES, next(self.ids)))

    @rule(which=which)
    def has_another_layout(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.sent is None and not gateway.calls:
            fresh = Leases(NEW if gateway.leases.layout == OLD else OLD, TIMES, next(self.ids))
            fresh.inherit(gateway.leases)
            gateway.leases = fresh

    @invariant()
    def the_cap_holds(self) -> None:
        caps = dict(OLD.caps)
        in_layout = dict(self.table.layout.caps) if self.table.layout is not None else caps
        for pool, cap in caps.items():
            in_progress = sum(pool in call.pools for call in self.calls)
            assert in_progress <= cap
            if not self.calls or pool == "onss":
                assert in_progress <= in_layout[pool]

    def teardown(self) -> None:
        """Whatever happened: with time, and nothing lost any more, somebody gets a slot."""
        self.late.clear()
        for gateway in self.gateways:
            if gateway.sent is not None:
                gateway.leases.lost(gateway.sent[0], next(self.ids))
                gateway.sent = None
            for ticket, (places, _) in gateway.calls.items():
                gateway.leases.unbind(ticket, places, self.now, dict)
            gateway.calls.clear()
        chosen = self.gateways[0]
        self.gateways[1].leases.closing = True
        self.calls.clear()
        before = self.begun
        for _ in range(60):
            self.all_goes_well(0)
            self.all_goes_well(1)
            self.begins_a_call(0, False)
            if self.begun > before:
                return
            self.now += 3.0
        raise AssertionError(f"no slot for ever: {self.table}, {chosen}")


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


# Case by case.

ONE = LayoutRow("one", TIMES.lease_s, (("base", 2), ("onss", 1)))
START = 1000.0
NOBODY_WAITS = Demand()


def a_call(pool: str = "base", number: int = 1) -> Demand:
    return Demand({pool: number}, {pool: 0.01})


class Told:
    """One gateway, whose statements are carried out and answered at once."""

    def __init__(self, table: Rows, holder: str, layout: LayoutRow = ONE) -> None:
        self.table = table
        self.leases = Leases(layout, TIMES, holder)
        self.now = START
        self.elsewhere: tuple[WaitingReplica, ...] = ()

    def next(self, demand: Demand = NOBODY_WAITS) -> Step:
        return self.leases.next_step(self.now, demand)

    def do(self, step: Step) -> None:
        answer = self.table.carry_out(self.leases.layout.digest, step)
        if isinstance(step, Announce):
            self.leases.heard(step, self.elsewhere, self.now)
        else:
            answered(self.leases, step, answer, self.now, self.now)

    def work(self, demand: Demand = NOBODY_WAITS) -> list[Step]:
        """Do what is due, and return it."""
        done: list[Step] = []
        while not isinstance(step := self.next(demand), Rest):
            self.do(step)
            done.append(step)
            assert len(done) < 20
        return done


def free_rows(layout: LayoutRow = ONE) -> Rows:
    table = Rows()
    table.install(layout, table.book())
    table.rows = {place: replace(row, holder="") for place, row in table.rows.items()}
    return table


def kinds(steps: list[Step]) -> list[str]:
    return [type(step).__name__ for step in steps]


def test_who_waits_gets_as_many_rows_as_are_free() -> None:
    told = Told(free_rows(), "a")
    assert kinds(told.work(a_call(number=5))) == ["Observe", "Take", "Announce"]
    assert told.leases.rows() == {"base": 2, "onss": 0}
    assert told.leases.idle("base", START) == 2
    assert not told.leases.is_empty()


def test_an_idle_gateway_renews_and_lets_go_after_a_while() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call())
    told.now += IDLE_S - 0.1
    assert "Release" not in kinds(told.work())
    told.now += 0.2
    assert kinds(told.work()) == ["Renew", "Release", "Observe"]
    assert told.leases.is_empty()
    assert all(not row.holder for row in told.table.rows.values())


def test_a_call_is_bound_to_rows_and_guarded_by_them() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call(number=2))
    ticket = Ticket(1)
    places = told.leases.bind(ticket, ("base",), told.now)
    assert len(places) == 1
    assert told.leases.may_start(ticket, places, told.now, begun=False)
    assert not told.leases.may_start(Ticket(2), places, told.now, begun=False)
    longer_s = TIMES.hold_s + 15.0
    assert told.leases.may_start(ticket, places, told.now, begun=False, hold_s=longer_s)
    assert not told.leases.may_start(ticket, places, told.now, begun=False, hold_s=longer_s + 0.1), "its own T"
    assert not told.leases.may_start(ticket, [("base", 9)], told.now, begun=True)
    assert not told.leases.may_start(ticket, places, told.now + 15.1, begun=True)
    assert told.leases.bind(Ticket(2), ("onss",), told.now) == ()
    assert not told.leases.unbind(ticket, places, told.now, dict)
    assert not told.leases.unbind(ticket, places, told.now, dict), "harmless when repeated"
    assert told.leases.idle("base", told.now) == 2


def test_a_row_that_was_taken_over_is_good_for_nothing_and_let_go_when_its_call_is_over() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call())
    ticket = Ticket(1)
    places = told.leases.bind(ticket, ("base",), told.now)
    place = places[0]
    told.table.rows[place] = replace(told.table.rows[place], token=9, holder="b")
    told.now += 5.0
    told.work()
    assert not told.leases.may_start(ticket, places, told.now, begun=True)
    told.leases.unbind(ticket, places, told.now, dict)
    told.now += IDLE_S
    told.work()
    assert told.leases.is_empty()
    assert told.table.rows[place].holder == "b"


def test_an_idle_row_that_was_taken_over_is_forgotten() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call())
    place = next(place for place, row in told.table.rows.items() if row.holder == "a")
    told.table.rows[place] = replace(told.table.rows[place], token=9, holder="b")
    told.leases.look()
    told.work()
    assert told.leases.is_empty()


def test_the_ramp_keeps_to_the_first_rows() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call(number=2))
    both = [told.leases.bind(Ticket(n), ("base",), told.now) for n in (1, 2)]
    told.leases.limits = {"base": 1}
    of_row = {places[0][1]: (Ticket(n), places) for n, places in zip((1, 2), both, strict=True)}
    assert told.leases.may_start(*of_row[1], told.now, begun=False)
    assert not told.leases.may_start(*of_row[2], told.now, begun=False)
    assert told.leases.may_start(*of_row[2], told.now, begun=True)
    told.leases.unbind(*of_row[2], told.now, dict)
    step = told.next(a_call())
    assert step == Release("a", (told.table.rows["base", 2],))
    told.do(step)
    assert kinds(told.work(a_call(number=3))) == ["Observe"], "the second row stays where it is"


def test_who_has_waited_longer_elsewhere_gets_a_row_when_a_call_is_over() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call(number=2))
    tickets = {Ticket(n): told.leases.bind(Ticket(n), ("base",), told.now) for n in (1, 2)}
    told.now += 1.0
    told.elsewhere = (WaitingReplica("b", "base", 0.6), WaitingReplica("a", "base", 9.0))
    told.work(Demand({"base": 1}, {"base": 0.5}))
    first, second = tickets.items()
    assert not told.leases.unbind(*first, told.now, lambda: {"base": 0.7}), "somebody here has waited longer"
    assert told.leases.unbind(*second, told.now, lambda: {"base": 0.5})
    step = told.next(Demand({"base": 1}, {"base": 0.5}))
    assert isinstance(step, Release)
    assert len(step.rows) == 1
    told.do(step)
    told.leases.unbind(*second, told.now, dict)


def test_what_is_idle_goes_to_whoever_waits_elsewhere_and_is_not_taken_back() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call(number=2))
    told.now += 0.2
    told.elsewhere = (WaitingReplica("b", "base", 0.3),)
    assert kinds(told.work()) == ["Announce", "Release", "Observe"]
    assert told.leases.rows()["base"] == 1
    told.now += 0.1
    assert "Take" not in kinds(told.work(Demand({"base": 3}, {"base": 0.05})))
    told.now += 0.1
    told.elsewhere = ()
    assert kinds(told.work(Demand({"base": 3}, {"base": 0.25}))) == ["Announce", "Take"], "nobody waits there any more"


def test_hearsay_is_forgotten() -> None:
    told = Told(free_rows(), "a")
    told.elsewhere = tuple(WaitingReplica(name, "base", 0.3) for name in "bc")
    told.work(Demand({"base": 1}, {"base": 0.2}))
    told.leases.heard(Announce("a", {}), told.elsewhere, told.now)
    told.now += 1.1
    step = told.next(Demand({"base": 1}, {"base": 0.2}))
    while isinstance(step, Observe):
        told.do(step)
        step = told.next(Demand({"base": 1}, {"base": 0.2}))
    assert isinstance(step, Take) or told.leases.rows()["base"] == 1


def test_stored_items_are_announced_where_they_have_no_row() -> None:
    told = Told(free_rows(), "a")
    demand = Demand({"onss": 1}, {}, {"onss": 4.0, "base": 2.0})
    told.table.rows["onss", 1] = replace(told.table.rows["onss", 1], holder="b")
    steps = told.work(demand)
    assert steps[-1] == Announce("a", {"onss": 4.0, "base": 2.0})
    told.work(Demand({"base": 1}))
    told.now += 0.2
    steps = told.work(demand)
    assert steps[-1] == Announce("a", {"onss": 4.0})


def test_a_call_for_several_pools_keeps_what_it_has_in_order_and_gives_up_the_rest() -> None:
    table = free_rows()
    told = Told(table, "a")
    table.rows["base", 1] = replace(table.rows["base", 1], holder="b")
    table.rows["base", 2] = replace(table.rows["base", 2], holder="b")
    several = Demand(
        {}, {"base": 0.5, "onss": 0.5}, {}, needs=("base", "onss"), reserved=frozenset({"onss"}), waited_s=2.0
    )
    told.work(a_call("onss"))
    told.now += 0.2
    told.elsewhere = (WaitingReplica("b", "onss", 0.2),)
    assert "Release" in kinds(told.work(several)), "base comes before onss"
    table.rows["onss", 1] = replace(table.rows["onss", 1], token=20, holder="b")
    table.rows["base", 1] = replace(table.rows["base", 1], holder="")
    told.leases.look()
    nothing_yet = replace(several, reserved=frozenset())
    assert [step.rows[0].pool for step in told.work(nothing_yet) if isinstance(step, Take)] == ["base"]
    told.now += 0.2
    told.elsewhere = (WaitingReplica("b", "base", 5.0),)
    kept = replace(several, reserved=frozenset({"base"}))
    assert "Release" not in kinds(told.work(kept))


def test_another_layout_is_told_of_after_a_while_and_replaced_when_it_may_be() -> None:
    table = free_rows()
    told = Told(table, "b", NEW)
    table.rows["onss", 1] = replace(table.rows["onss", 1], holder="a")
    told.work(a_call())
    assert told.leases.conflict_s(told.now) == 0.0
    assert told.leases.rows()["base"] == 0
    told.now += 6.0
    told.work(a_call())
    assert told.leases.conflict_s(told.now) == 1.0
    table.rows["onss", 1] = replace(table.rows["onss", 1], holder="")
    told.now += 6.0
    assert kinds(told.work(a_call()))[:3] == ["Observe", "Install", "Observe"]
    assert told.leases.conflict_s(told.now) == 0.0
    assert told.leases.rows()["base"] == 1


def test_a_layout_that_took_the_place_of_ours_lives_for_a_while() -> None:
    table = free_rows(NEW)
    told = Told(table, "b", NEW)
    told.work()
    assert table.install(OLD, table.book())
    table.rows = {place: replace(row, holder="") for place, row in table.rows.items()}
    told.now += 5.0
    assert "Install" not in kinds(told.work())
    told.now += TIMES.lease_s
    assert "Install" in kinds(told.work())


def test_an_installation_or_a_take_that_was_overtaken_is_tried_again_soon() -> None:
    table = free_rows(OLD)
    told = Told(table, "b", NEW)
    told.do(told.next())
    step = told.next()
    assert isinstance(step, Install)
    table.rows["base", 1] = replace(table.rows["base", 1], renewal=7)
    told.do(step)
    assert "Install" not in kinds(told.work())
    told.now += 5.0
    assert "Install" in kinds(told.work())
    told.do(Observe())
    table.rows = {place: replace(row, holder="") for place, row in table.rows.items()}
    told.leases.look()
    told.do(told.next(a_call()))
    take = told.next(a_call())
    assert isinstance(take, Take)
    table.rows["base", 1] = replace(table.rows["base", 1], renewal=9)
    told.do(take)
    assert told.leases.is_empty()
    told.now += 0.1
    assert "Take" in kinds(told.work(a_call()))


def test_an_id_under_which_an_answer_was_lost_takes_nothing_more_and_its_rows_are_let_go() -> None:
    told = Told(free_rows(), "a")
    told.do(told.next(a_call()))
    take = told.next(a_call())
    assert isinstance(take, Take)
    told.table.carry_out("one", take)
    told.leases.lost(take, "a2")
    steps = told.work(a_call())
    assert [step.holder for step in steps if isinstance(step, Release)] == ["a"]
    assert [step.holder for step in steps if isinstance(step, Take)] == ["a2"]
    told.now += 5.0
    renew = told.next(a_call())
    assert isinstance(renew, Renew)
    assert renew.holder == "a2"
    told.leases.lost(renew, "a3")
    again = told.next(a_call())
    assert isinstance(again, Renew)
    assert again.holder == "a2", "what is held is renewed under the id that holds it"
    told.leases.lost(again, "a4")
    told.leases.lost(Observe(), "a5")
    told.do(told.next(a_call()))
    takes = [step for step in told.work(a_call(number=2)) if isinstance(step, Take)]
    assert [step.holder for step in takes] == ["a3"]


def test_a_release_that_was_lost_is_said_again() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call())
    told.leases.closing = True
    release = told.next()
    assert isinstance(release, Release)
    told.leases.lost(release, "a2")
    assert isinstance(told.next(), Rest)
    told.leases.closing = False
    assert kinds(told.work())[:2] == ["Observe", "Release"]


def test_who_closes_lets_go_and_does_nothing_else() -> None:
    told = Told(free_rows(), "a")
    told.work(a_call(number=2))
    ticket = Ticket(1)
    places = told.leases.bind(ticket, ("base",), told.now)
    told.leases.closing = True
    told.now += 50.0
    assert kinds(told.work(a_call())) == ["Release"]
    assert not told.leases.is_empty()
    assert told.leases.unbind(ticket, places, told.now, dict)
    assert kinds(told.work(a_call())) == ["Release"]
    assert told.leases.is_empty()


def test_sightings_go_on_under_another_layout() -> None:
    table = free_rows(OLD)
    table.rows["base", 2] = replace(table.rows["base", 2], holder="dead")
    before = Told(table, "a", OLD)
    before.work()
    after = Told(table, "b", NEW)
    after.leases.inherit(before.leases)
    after.now += TIMES.lease_s
    assert "Install" in kinds(after.work())
