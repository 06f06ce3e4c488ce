"""The protocol of shared slots, explored to its last state: the cap holds, no slot is lost for ever, and every rule of
`policies.leases` is needed.

The first world (`lease_world`) has one row and everything that may go wrong with it; the second has two pools, and
calls that need both.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from policies.leases import Times, kept_places, next_places
from tests.policies.lease_world import RULES, ExceededError, Model, Setting, World

LONG, SHORT = Times(2.0, 1 / 3, 0.0), Times(1.0, 1 / 3, 0.0)
SETTINGS = {
    "answers are lost, statements come late": Setting(faults=1, crashes=False),
    "processes die": Setting(faults=2, losses=False),
    "another layout with a shorter T": Setting(
        faults=1, times=(LONG, SHORT), layouts=(0, 1), crashes=False, losses=False
    ),
    "an empty database takes the place of another": Setting(faults=1, new_database=True, crashes=False, losses=False),
}


def explore(
    model: Model, visit: Callable[[World], None] = lambda _world: None
) -> tuple[dict[World, tuple[World, str] | None], list[str]]:
    """Visit every state, nearest first; return them all, and how a second call came to be in progress, if it did."""
    start = model.start()
    came: dict[World, tuple[World, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        visit(world)
        try:
            for what, after in model.moves(world):
                if after not in came:
                    came[after] = world, what
                    queue.append(after)
        except ExceededError:
            return came, path(came, world)
    return came, []


def path(came: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    steps = ["a second call begins"]
    while (before := came[world]) is not None:
        world, what = before
        steps.append(what)
    return steps[::-1]


def recovery(model: Model, world: World) -> Iterable[World]:
    """Yield how things go on when nothing goes wrong any more and everybody does what is due, until somebody may begin
    a call; b wants to, a lets go of what it knows that it holds."""
    world = world._replace(faults=0)
    for name in ("a", "b"):
        world = settled(model, without_late(world, name), name)
    for _ in range(4 * model.longest + 4):
        yield world
        for name in ("a", "b"):
            for _ in range(6):  # what is under way, then look, replace, let go or take, and look again
                world = settled(model, world, name)
                one = getattr(world, name)
                if name == "b" and one.held is not None and model.may_begin(name, one.held):
                    return
                due = next((sent for kind in DUE for sent in model.statements(world, name) if sent.kind == kind), None)
                if due is None or (name == "a" and due.kind in {"take", "install"}):
                    due = next(sent for sent in model.statements(world, name) if sent.kind == "observe")
                world = settled(model, model.send(world, name, due), name)
        world = model.tick(world)
    raise AssertionError(f"no slot for ever: {world}")


DUE = ("release", "renew", "install", "take")


def without_late(world: World, name: str) -> World:
    return world._replace(**{name: getattr(world, name)._replace(late=None)})


def settled(model: Model, world: World, name: str) -> World:
    one = getattr(world, name)
    if one.sent is not None and one.sent.answer is None:
        world = model.carry_out(world, name)
    return model.answer(world, name) if getattr(world, name).sent is not None else world


class RecoveryCheck:
    """Asserts that there is a way out of each state that it is shown."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._recovers: set[World] = set()

    def __call__(self, state: World) -> None:
        passed: list[World] = []
        for world in recovery(self._model, state):
            if world in self._recovers:
                break
            passed.append(world)
        self._recovers.update(passed)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_cap_is_never_exceeded_and_no_slot_is_lost_for_ever(name: str) -> None:
    model = Model(SETTINGS[name])
    came, how = explore(model, RecoveryCheck(model))
    assert not how
    assert len(came) > 1000


WITHOUT = {
    RULES[0]: Setting(faults=0),
    RULES[1]: Setting(faults=0),
    RULES[2]: Setting(faults=0),
    RULES[3]: SETTINGS["an empty database takes the place of another"],
    RULES[5]: SETTINGS["another layout with a shorter T"],
    RULES[6]: Setting(faults=1, losses=False),
    RULES[7]: Setting(faults=1, crashes=False),
    RULES[8]: Setting(faults=0),
    RULES[9]: Setting(faults=0),
}


@pytest.mark.parametrize("rule", WITHOUT)
def test_without_a_rule_the_cap_is_exceeded(rule: str) -> None:
    _, how = explore(Model(replace(WITHOUT[rule], without=rule)))
    assert how[-1:] == ["a second call begins"], f"not needed: {rule}"


def test_without_letting_go_of_unknown_rows_a_slot_is_lost_for_ever() -> None:
    model = Model(Setting(faults=1, crashes=False, without=RULES[4]))
    with pytest.raises(AssertionError, match="for ever"):
        explore(model, RecoveryCheck(model))


# Two pools of one slot, two gateways, and calls that need both pools: who holds what, and who has waited long.

POOLS = ("p", "q")
Rows = tuple[str, str]
"""Who holds the rows of `POOLS`; empty: nobody."""
Pair = tuple[Rows, frozenset[str], str]
"""The rows, who has waited for more than a second, whose call is in progress."""


def one_place(needs: tuple[str, ...], had: frozenset[str], free: frozenset[str], waited_s: float) -> tuple[str, ...]:
    """Take whatever is free, in any order: not what `next_places` says."""
    lacking = [pool for pool in needs if pool not in had and pool in free]
    return tuple(lacking[:1]) if waited_s else ()


def steps(state: Pair, *, in_order: bool) -> Iterable[Pair]:
    """Yield what may happen next. Each gateway wants both pools, again and again."""
    rows, long, busy = state
    free = frozenset(pool for pool, holder in zip(POOLS, rows, strict=True) if not holder)
    for name in ("a", "b"):
        had = frozenset(pool for pool, holder in zip(POOLS, rows, strict=True) if holder == name)
        waited_s = 2.0 if name in long else 0.0
        if busy == name:
            yield (rows, long - {name}, "")
            continue
        if len(had) == len(POOLS) and not busy:
            yield (rows, long, name)
        yield (rows, long | {name}, busy)
        needs = POOLS if name == "a" else POOLS[::-1]
        places = next_places(needs, had, free, waited_s) if in_order else one_place(needs, had, free, waited_s)
        if places:
            yield (with_holder(rows, places, name), long, busy)
        kept = kept_places(needs, had, waited_s) if in_order else had
        if had - kept:  # the other waits, and gets what is out of order
            yield (with_holder(rows, tuple(had - kept), ""), long, busy)


def with_holder(rows: Rows, places: tuple[str, ...], holder: str) -> Rows:
    first, second = (holder if pool in places else before for pool, before in zip(POOLS, rows, strict=True))
    return first, second


def stuck(*, in_order: bool) -> set[Pair]:
    """Return the states from which one of the two can never begin a call again."""
    starts: list[Pair] = [((p, q), frozenset(), "") for p in ("", "a", "b") for q in ("", "a", "b")]
    after: dict[Pair, set[Pair]] = {}
    queue = deque(starts)
    while queue:
        state = queue.popleft()
        if state not in after:
            after[state] = set(steps(state, in_order=in_order))
            queue.extend(after[state])
    never: set[Pair] = set()
    for name in ("a", "b"):
        good = {state for state in after if state[2] == name}
        while more := {state for state in after if state not in good and after[state] & good}:
            good |= more
        never |= after.keys() - good
    return never


def test_calls_for_several_pools_never_lock_each_other_out() -> None:
    assert not stuck(in_order=True)


def test_without_the_total_order_they_do() -> None:
    assert stuck(in_order=False)
