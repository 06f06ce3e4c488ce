"""What a gateway does about shared slots: in every order of events that Hypothesis can think of, and case by case."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from policies.leases import (
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
from policies.model import LayoutRow, SlotBook, SlotRow, Ticket
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
