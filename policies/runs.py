"""What may become of a run and of an item: two tables. What is not in them is an error.

Rules that always hold: an item is settled once, except one in doubt, which a person settles or repeats; a run that has
ended stays as it is.
"""

from collections.abc import Mapping

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
