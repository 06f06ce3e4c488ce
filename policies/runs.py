"""What may become of a run and of an item: two tables. What is not in them is an error. And what a run does next.

Rules that always hold: an item is settled once, except one in doubt, which a person settles or repeats; a run that has
ended stays as it is; of runs that need the same slots only those of the best priority that can work do, all of them,
and which of their items goes first is the slot table's business; no pool idles for a run that cannot work.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Protocol, TypeVar

from policies.model import ItemState, RunState

RUN_CHANGES: Mapping[RunState, frozenset[RunState]] = {
    RunState.LOADING: frozenset({RunState.READY, RunState.CANCELLED, RunState.FAILED}),
    RunState.READY: frozenset(
        {RunState.RUNNING, RunState.PAUSED, RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED}
    ),
    RunState.RUNNING: frozenset(
        {RunState.READY, RunState.PAUSED, RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED}
    ),
    RunState.PAUSED: frozenset({RunState.READY, RunState.CANCELLED, RunState.FAILED}),
    RunState.COMPLETED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.FAILED: frozenset(),
}
"""A paused run is resumed to `ready`; that it runs again shows when a part of it is sent."""

ITEM_CHANGES: Mapping[ItemState, frozenset[ItemState]] = {
    ItemState.WAITING: frozenset({ItemState.SENT, ItemState.FAILED}),
    ItemState.SENT: frozenset(
        {ItemState.WAITING, ItemState.DONE, ItemState.REJECTED, ItemState.FAILED, ItemState.IN_DOUBT}
    ),
    ItemState.IN_DOUBT: frozenset({ItemState.WAITING, ItemState.DONE, ItemState.FAILED}),
    ItemState.DONE: frozenset(),
    ItemState.REJECTED: frozenset(),
    ItemState.FAILED: frozenset(),
}

ENDED = frozenset(state for state, following in RUN_CHANGES.items() if not following)
"""States of a run that has ended."""


def may_change(before: RunState, after: RunState) -> bool:
    """Say whether a run's state may change so."""
    return after in RUN_CHANGES[before]


class Work(Protocol):
    """A lane in which something is left: items of one run that need the same slots."""

    @property
    def lane_id(self) -> int:
        """Return its number."""

    @property
    def priority(self) -> int:
        """Return its run's, lower first."""


def plan(work: Collection[Work], pools: Mapping[int, tuple[str, ...]], caps: Mapping[str, int]) -> Mapping[int, int]:
    """Return how many workers each lane gets; lanes that get none are left out.

    A lane gets as many as its narrowest pool has slots, unless a lane of a better priority that gets some needs one of
    its pools.

    Args:
        work: lanes whose items may be sent now.
        pools: by lane, the pools in each of which its items need a slot.
        caps: slots by pool, as they are now.
    """
    taken: dict[str, int] = {}  # pool -> the best priority that works in it
    planned: dict[int, int] = {}
    for lane in sorted(work, key=lambda lane: lane.priority):
        needs = pools[lane.lane_id]
        workers = min((caps.get(pool, 0) for pool in needs), default=0)
        if workers and all(taken.get(pool, lane.priority) == lane.priority for pool in needs):
            planned[lane.lane_id] = workers
            taken.update(dict.fromkeys(needs, lane.priority))
    return planned


S = TypeVar("S", bound=StrEnum)


def diagram(changes: Mapping[S, frozenset[S]], start: S) -> str:
    """Draw a table of states as a Mermaid state diagram, in the order of the table."""
    order = list(changes)
    lines = ["stateDiagram-v2", f"    [*] --> {start}"]
    for state, following in changes.items():
        lines += [f"    {state} --> {after}" for after in sorted(following, key=order.index)]
        if not following:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)
