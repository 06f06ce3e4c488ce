"""A small world of two gateways, one store and one source, in which everything that may happen does: a model of the
protocol of shared slots (`policies.leases`), for `test_lease_model` to explore.

There is one row. Time goes in steps, and between two steps anything may happen in any order, or nothing (a freeze):
a gateway sends a statement, the store carries it out, the answer arrives, an answer is lost, a statement comes late,
a process dies, the database is replaced by an empty one, a call begins and ends. The gateways decide by the functions
of `policies.leases`; each has a boot clock of its own, and no clock is ever compared with another's.

How the world stays finite: times are kept as ages, and of a token and renewal number that somebody remembers only
whether they are still the row's (`FRESH`), the token alone is (`RENEWED`), or neither, for ever after (`STALE`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from policies.leases import Sighting, Times, good_until, is_free, may_replace, may_start, sighted
from policies.model import LayoutRow, SlotBook, SlotRow

STALE, RENEWED, FRESH = 0, 1, 2
RULES = (
    "compare the renewal number",
    "a sighting is timed after its answer arrived",
    "a renewal is timed before it is sent",
    "new rows are born occupied",
    "only known rows are renewed, unknown ones of our own are released",
    "the layout is replaced only after the stored L",
    "the holder's id is random for each process",
    "an id under which an answer was lost takes nothing more",
    "the guard",
    "the row is held after our timeout",
)
NOBODY, DEAD = "", "x"
ZERO = {"a": 1000.0, "b": 7.0}
"""What each gateway's boot clock shows now: whatever it likes."""


class Seen(NamedTuple):
    """What a gateway saw of the row last. `match` None: there was none."""

    match: int | None
    age: int
    released: bool
    own: str  #: an id of its own that it bears; "": none
    layout: int | None


class Held(NamedTuple):
    match: int
    left: float  #: until when it is good, from now
    holder: str


class Sent(NamedTuple):
    """A statement under way. `answer` None: not carried out."""

    kind: str
    holder: str = ""
    match: int | None = FRESH
    age: int = 0
    layout: int | None = None
    answer: tuple[object, ...] | None = None


class Gateway(NamedTuple):
    generation: int = 0  #: of its id
    seen: Seen | None = None
    held: Held | None = None
    sent: Sent | None = None
    late: Sent | None = None  #: given up, but not by the network


class Call(NamedTuple):
    """What the source is doing."""

    whose: str
    left: int
    awaited: bool = True  #: the gateway knows


class World(NamedTuple):
    holder: str | None  #: of the row; None: there is no row
    layout: int | None
    call: Call | None
    a: Gateway
    b: Gateway
    faults: int  #: that may still happen


class ExceededError(Exception):
    """A second call is in progress under a cap of one."""


@dataclass(frozen=True)
class Setting:
    """What may happen."""

    faults: int = 2
    times: tuple[Times, ...] = (Times(1.0, 1 / 3, 0.0),)  #: by layout
    layouts: tuple[int, int] = (0, 0)  #: of the gateways
    new_database: bool = False
    crashes: bool = True
    losses: bool = True
    without: str = ""  #: a rule that is taken out

    def has(self, rule: str) -> bool:
        assert rule in RULES
        return rule != self.without


# The gateways' decisions are the program's own.


@cache
def is_same(match: int | None, *, compare_renewal: bool) -> bool:
    """Whether what was seen before is still so."""
    if not match:
        return False
    row = SlotRow("p", 1, 1, 1, "somebody")
    renewal = 1 if match == FRESH or not compare_renewal else 0
    return sighted(Sighting(1, renewal, -1.0), row, 0.0).since < 0


@cache
def may_take(released: bool, age: int, lease_s: float, clock: float) -> bool:
    row = SlotRow("p", 1, 1, 1, NOBODY if released else "somebody")
    return is_free(row, Sighting(1, 1, clock - age), clock, lease_s)


@cache
def may_install(released: bool, age: int, lease_s: float, clock: float) -> bool:
    row = SlotRow("p", 1, 1, 1, NOBODY if released else "somebody")
    book = SlotBook(LayoutRow("stored", lease_s, (("p", 1),)), (row,))
    return may_replace(book, {("p", 1): Sighting(1, 1, clock - age)}, clock)


@cache
def left_after(age: int, times: Times, clock: float) -> float:
    return min(good_until(clock - age, times) - clock, times.lease_s)


@cache
def guard(left: float, times: Times, clock: float) -> bool:
    return may_start(clock, clock + left, times)


# What changes what others remember.


def _dimmed(one: Gateway, to: int, useful: int) -> Gateway:
    """Note that the row is no longer what it was. A sighting that is not `useful` any more is as good as none."""
    generation, seen, held, sent, late = one
    if seen is not None and seen.match is not None and seen.match > to:
        seen = seen._replace(match=to) if to >= useful else None
    if held is not None and held.match > to:
        held = held._replace(match=to)
    if sent is not None:
        answer = sent.answer
        if answer and sent.kind == "observe" and answer[0] is not None:
            answer = (to, *answer[1:]) if to >= useful else NOTHING
        sent = sent._replace(match=min(sent.match, to) if sent.match is not None else STALE, answer=answer)
    if late is not None and late.match is not None and late.match > to:
        late = late._replace(match=to)
    return Gateway(generation, seen, held, sent, late)


NOTHING: tuple[object, ...] = ()
"""An answer that was overtaken."""


class Model:
    """All that may happen in a world."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.longest = int(max(times.lease_s for times in setting.times))
        self.compares = setting.has(RULES[0])
        self.useful = FRESH if self.compares else RENEWED
        self.times_sightings_when_sent = not setting.has(RULES[1])

    def start(self) -> World:
        empty = self.setting.new_database
        return World(None if empty else NOBODY, None if empty else 0, None, Gateway(), Gateway(), self.setting.faults)

    def times(self, name: str) -> Times:
        return self.setting.times[self.layout(name)]

    def layout(self, name: str) -> int:
        return self.setting.layouts[0 if name == "a" else 1]

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """Yield everything that may happen next. Raises ExceededError."""
        yield "time passes", self.tick(world)
        if world.call is not None:
            yield "the source is done", world._replace(call=None)
        for name in ("a", "b"):
            yield from self._acts(world, name)
            yield from self._network(world, name)
            if world.faults:
                yield from self._fails(world, name)
        if world.faults and self.setting.new_database and world.layout is not None:
            lost = self.changed(world, STALE)._replace(holder=None, layout=None, faults=world.faults - 1)
            yield "an empty database takes its place", lost

    def tick(self, world: World) -> World:
        call = world.call
        if call is not None:
            call = call._replace(left=call.left - 1) if call.left > 1 else None
        return world._replace(call=call, a=self._older(world.a), b=self._older(world.b))

    def _older(self, one: Gateway) -> Gateway:
        seen, held, sent = one.seen, one.held, one.sent
        if seen is not None and not seen.released:
            seen = seen._replace(age=min(seen.age + 1, self.longest))
        if held is not None:
            held = held._replace(left=max(held.left - 1, -1.0))
        if sent is not None and (sent.kind in {"take", "renew"} or self.times_sightings_when_sent):
            sent = sent._replace(age=min(sent.age + 1, self.longest))
        return Gateway(one.generation, seen, held, sent, one.late)

    def changed(self, world: World, to: int) -> World:
        """The row got a new token (to STALE), or a new renewal number (to RENEWED)."""
        return world._replace(a=_dimmed(world.a, to, self.useful), b=_dimmed(world.b, to, self.useful))

    # What a gateway does.

    def holder(self, name: str, one: Gateway) -> str:
        return f"{name}{one.generation}"

    def is_busy(self, world: World, name: str) -> bool:
        return world.call is not None and world.call.whose == name and world.call.awaited

    def _acts(self, world: World, name: str) -> Iterator[tuple[str, World]]:
        one: Gateway = getattr(world, name)
        if one.held is not None and not self.is_busy(world, name) and self.may_begin(name, one.held):
            yield f"{name} begins a call", self.begin(world, name)
        if self.is_busy(world, name) and not self.setting.has("the row is held after our timeout"):
            yield f"{name} gives a call up", world._replace(call=world.call._replace(awaited=False))  # type: ignore[union-attr]  # it is busy
        if one.sent is None:
            for sent in self.statements(world, name):
                yield f"{name} sends {sent.kind}", self.send(world, name, sent)

    def may_begin(self, name: str, held: Held) -> bool:
        return not self.setting.has("the guard") or guard(held.left, self.times(name), ZERO[name])

    def begin(self, world: World, name: str) -> World:
        if world.call is not None:
            raise ExceededError
        return world._replace(call=Call(name, int(self.times(name).hold_s)))

    def statements(self, world: World, name: str) -> Iterator[Sent]:
        """Yield what a gateway may say to the store now."""
        one: Gateway = getattr(world, name)
        layout = self.layout(name)
        yield Sent("observe")
        if one.held is not None:
            yield Sent("renew", one.held.holder, one.held.match, layout=layout)
            if not self.is_busy(world, name):
                yield Sent("release", one.held.holder, one.held.match)
        elif not self.setting.has("only known rows are renewed, unknown ones of our own are released"):
            yield Sent("renew", self.holder(name, one), STALE, layout=layout)
        seen = one.seen
        if seen is None:
            return
        if seen.layout != layout:
            if seen.match is None or self._may_install(name, seen):
                yield Sent("install", "", seen.match, layout=seen.layout)
        elif seen.own and one.held is None and self.setting.has(RULES[4]):
            yield Sent("release", seen.own, seen.match)
        elif one.held is None and may_take(seen.released, seen.age, self.times(name).lease_s, ZERO[name]):
            yield Sent("take", self.holder(name, one), seen.match, layout=layout)

    def _may_install(self, name: str, seen: Seen) -> bool:
        if not self.setting.has("the layout is replaced only after the stored L"):
            return True
        stored = self.setting.times[seen.layout or 0]
        return may_install(seen.released, seen.age, stored.lease_s, ZERO[name])

    def send(self, world: World, name: str, sent: Sent) -> World:
        one: Gateway = getattr(world, name)
        one = one._replace(sent=sent)
        if sent.kind == "release":  # not ours from now on
            one = one._replace(held=None, seen=one.seen._replace(own="") if one.seen is not None else None)
        return world._replace(**{name: one})

    # What the network and the store do.

    def _network(self, world: World, name: str) -> Iterator[tuple[str, World]]:
        one: Gateway = getattr(world, name)
        if one.sent is not None:
            if one.sent.answer is None:
                yield f"the store carries {name}'s {one.sent.kind} out", self.carry_out(world, name)
            else:
                yield f"{name} gets an answer to its {one.sent.kind}", self.answer(world, name)
        if one.late is not None:
            after, _ = self._effect(world._replace(**{name: one._replace(late=None)}), name, one.late)
            yield f"{name}'s late {one.late.kind} is carried out", after

    def carry_out(self, world: World, name: str) -> World:
        sent: Sent = getattr(world, name).sent
        after, answer = self._effect(world, name, sent)
        one: Gateway = getattr(after, name)
        taken = sent.kind == "take" and answer[0]
        sent = sent._replace(match=FRESH) if taken else one.sent or sent  # of the row as it was taken
        return after._replace(**{name: one._replace(sent=sent._replace(answer=answer))})

    def _effect(self, world: World, name: str, sent: Sent) -> tuple[World, tuple[object, ...]]:
        """Do what a statement says, in one transaction; return what it answers."""
        match sent.kind:
            case "observe":
                one: Gateway = getattr(world, name)
                own = world.holder if world.holder and world.holder[0] == name else ""
                same = one.seen is not None and is_same(one.seen.match, compare_renewal=self.compares)
                match_ = None if world.holder is None else FRESH
                return world, (match_, world.holder == NOBODY, own, same, world.layout)
            case "install":
                return self._install(world, name, sent)
            case "release":
                is_known = world.holder == sent.holder and sent.match
                return (world._replace(holder=NOBODY) if is_known else world), ()
            case "take":
                as_seen = sent.match == FRESH or (sent.match == RENEWED and not self.compares)
                if world.holder is None or not as_seen or world.layout != sent.layout:
                    return world, (False,)
                return self.changed(world, STALE)._replace(holder=sent.holder), (True,)
            case _:
                return self._renew(world, sent)

    def _renew(self, world: World, sent: Sent) -> tuple[World, tuple[object, ...]]:
        if world.holder != sent.holder:
            return world, (False,)
        if not sent.match and self.setting.has("only known rows are renewed, unknown ones of our own are released"):
            return world._replace(holder=NOBODY), (False,)
        if world.layout != sent.layout:
            return world, (False,)
        return self.changed(world, RENEWED), (bool(sent.match),)

    def _install(self, world: World, name: str, sent: Sent) -> tuple[World, tuple[object, ...]]:
        if world.layout != sent.layout or (world.holder is not None and sent.match != FRESH):
            return world, ()
        holder = world.holder
        if holder is None:
            world = self.changed(world, STALE)
            holder = DEAD if self.setting.has("new rows are born occupied") else NOBODY
        return world._replace(holder=holder, layout=self.layout(name)), ()

    def answer(self, world: World, name: str) -> World:
        """Let the answer to a statement arrive."""
        one: Gateway = getattr(world, name)
        sent = one.sent
        assert sent is not None
        assert sent.answer is not None
        one = one._replace(sent=None)
        clock, times = ZERO[name], self.times(name)
        timed_before = self.setting.has("a renewal is timed before it is sent")
        left = left_after(sent.age if timed_before else 0, times, clock)
        match sent.kind:
            case "observe":
                one = self._saw(one, sent)
            case "take":
                held = Held(sent.match or STALE, left, sent.holder) if sent.answer[0] else None
                one = one._replace(seen=None, held=held)  # look again, whatever came of it
            case "renew" if one.held is not None:
                held = one.held._replace(left=left) if sent.answer[0] else None
                one = one._replace(held=held)
            case "install" | "release":
                one = one._replace(seen=None)
            case _:
                pass
        return world._replace(**{name: one})

    def _saw(self, one: Gateway, sent: Sent) -> Gateway:
        if not sent.answer:
            return one
        match_, released, own, same, layout = sent.answer
        age = one.seen.age if same and one.seen is not None else (sent.age if self.times_sightings_when_sent else 0)
        if one.held is not None:
            if own == one.held.holder and one.held.match:
                return one._replace(seen=None)
            one = one._replace(held=None)  # lost
        return one._replace(seen=Seen(match_, 0 if released else age, bool(released), str(own), layout))  # type: ignore[arg-type]  # as `_effect` made them

    # What goes wrong. Only gateway a's statements get lost, and only it dies: b stands for all others.

    def _fails(self, world: World, name: str) -> Iterator[tuple[str, World]]:
        if name == "b":
            return
        one: Gateway = getattr(world, name)
        fewer = world._replace(faults=world.faults - 1)
        if self.setting.losses and one.sent is not None:
            for late in (False, True):
                if late and (one.sent.answer is not None or one.sent.kind == "observe"):
                    continue
                yield (
                    f"{name} gives its {one.sent.kind} up{', the network does not' if late else ''}",
                    fewer._replace(**{name: self._lost(one, one.sent if late else None)}),
                )
        if self.setting.crashes:
            yield f"{name} dies and starts again", self._restarted(fewer, name)

    def _lost(self, one: Gateway, late: Sent | None) -> Gateway:
        assert one.sent is not None
        retired = one.sent.kind in {"take", "renew"} and self.setting.has(RULES[7])
        return one._replace(generation=one.generation + retired, sent=None, late=late if late is not None else one.late)

    def _restarted(self, world: World, name: str) -> World:
        one: Gateway = getattr(world, name)
        if not self.setting.has("the holder's id is random for each process"):
            world = world._replace(**{name: Gateway(one.generation)})
        else:
            holder = DEAD if world.holder and world.holder[0] == name else world.holder
            late = one.late._replace(holder=DEAD) if one.late is not None and one.late.kind == "take" else None
            world = world._replace(holder=holder, **{name: Gateway(late=late)})
        if world.call is not None and world.call.whose == name:
            world = world._replace(call=world.call._replace(whose=DEAD))
        return world
