"""Which changes of state exist, which lanes work, and how the tables are drawn."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.model import ItemState, RunState
from policies.runs import ENDED, ITEM_CHANGES, RUN_CHANGES, diagram, may_change, plan


@dataclass(frozen=True)
class Lane:
    lane_id: int
    priority: int = 5


CAPS = {"base": 4, "onss": 2, "none": 0}


def test_a_run_that_has_ended_stays_as_it_is() -> None:
    assert {RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED} == ENDED
    assert not any(may_change(ended, state) for ended in ENDED for state in RunState)


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        (RunState.LOADING, RunState.READY, True),
        (RunState.LOADING, RunState.RUNNING, False),
        (RunState.READY, RunState.RUNNING, True),
        (RunState.RUNNING, RunState.PAUSED, True),
        (RunState.PAUSED, RunState.RUNNING, False),
        (RunState.PAUSED, RunState.READY, True),
    ],
)
def test_the_table_says_which_changes_exist(before: RunState, after: RunState, may: bool) -> None:
    assert may_change(before, after) is may


def test_every_state_is_in_its_table_and_can_be_reached() -> None:
    for states, table, start in (
        (set(RunState), RUN_CHANGES, RunState.LOADING),
        (set(ItemState), ITEM_CHANGES, ItemState.WAITING),
    ):
        assert set(table) == states
        reached, left = set(), [start]
        while left:
            state = left.pop()
            if state not in reached:
                reached.add(state)
                left += table[state]  # type: ignore[index]  # each table with its own states
        assert reached == states


def test_a_lane_gets_as_many_workers_as_its_narrowest_pool_has_slots() -> None:
    pools = {1: ("base",), 2: ("base", "onss"), 3: ("none",), 4: ("unknown",), 5: ()}
    assert plan([Lane(n) for n in pools], pools, CAPS) == {1: 4, 2: 2}


def test_a_lane_waits_for_a_better_priority_only_where_they_share_a_pool() -> None:
    pools = {1: ("base",), 2: ("base", "onss"), 3: ("onss",)}
    assert plan([Lane(1, 1), Lane(2, 5)], pools, CAPS) == {1: 4}
    assert plan([Lane(1, 1), Lane(3, 7)], pools, CAPS) == {1: 4, 3: 2}
    assert plan([Lane(1, 5), Lane(2, 5), Lane(3, 5)], pools, CAPS) == {1: 4, 2: 2, 3: 2}


def test_no_pool_idles_for_a_lane_that_cannot_work() -> None:
    pools = {1: ("base",), 2: ("base", "onss"), 3: ("onss",), 4: ("onss", "none")}
    assert plan([Lane(3, 7), Lane(2, 5), Lane(1, 1)], pools, CAPS) == {1: 4, 3: 2}, "lane 2 waits for lane 1"
    assert plan([Lane(4, 1), Lane(3, 7)], pools, CAPS) == {3: 2}, "lane 4 has no slot to come"


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.sampled_from(["base", "onss"]), min_size=1)), max_size=8))
def test_somebody_works_whenever_there_is_work(lanes: list[tuple[int, set[str]]]) -> None:
    work = [Lane(number, priority) for number, (priority, _) in enumerate(lanes)]
    pools = {number: tuple(sorted(needs)) for number, (_, needs) in enumerate(lanes)}
    planned = plan(work, pools, CAPS)
    assert bool(planned) == bool(work)
    best = min((lane.priority for lane in work), default=0)
    assert all(lane.lane_id in planned for lane in work if lane.priority == best)
    for lane in work:
        rivals = [
            other for other in work if other.lane_id in planned and set(pools[other.lane_id]) & set(pools[lane.lane_id])
        ]
        assert rivals, "a lane waits only for one that works"
        assert (lane.lane_id in planned) == all(other.priority >= lane.priority for other in rivals)


def test_a_table_is_drawn_with_its_start_and_its_ends() -> None:
    drawn = diagram(RUN_CHANGES, RunState.LOADING).splitlines()
    assert drawn[:2] == ["stateDiagram-v2", "    [*] --> loading"]
    assert "    ready --> running" in drawn
    assert "    completed --> [*]" in drawn
    assert len(drawn) == 2 + sum(len(following) or 1 for following in RUN_CHANGES.values())
