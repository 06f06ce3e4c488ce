"""The rules of shared slots, one by one; `test_lease_model` shows what they are good for together."""

import pytest

from policies.leases import (
    Demand,
    Sighting,
    Times,
    good_until,
    is_free,
    kept_places,
    layout_text,
    may_replace,
    may_start,
    next_places,
    sighted,
)
from policies.model import LayoutRow, SlotBook, SlotRow, Source
from policies.pools import Reading, layout

TIMES = Times(hold_s=60.0)
ROW = SlotRow("onss", 1, 3, 5, "somebody")


def test_a_lease_is_as_long_as_a_call_three_renewals_and_the_margin() -> None:
    assert TIMES.lease_s == 76.0


def test_the_last_call_of_a_lease_is_over_a_margin_before_its_end() -> None:
    good = good_until(100.0, TIMES)
    assert good == 176.0
    assert may_start(115.0, good, TIMES)
    assert not may_start(115.001, good, TIMES)


def test_a_sighting_goes_on_while_token_and_renewal_number_stand() -> None:
    first = sighted(None, ROW, 10.0)
    assert first == Sighting(3, 5, 10.0)
    assert sighted(first, ROW, 50.0) is first
    assert sighted(first, SlotRow("onss", 1, 3, 6, "somebody"), 50.0).since == 50.0
    assert sighted(first, SlotRow("onss", 1, 4, 5, "somebody"), 50.0).since == 50.0


@pytest.mark.parametrize(("holder", "now", "free"), [("x", 85.9, False), ("x", 86.0, True), ("", 10.0, True)])
def test_a_row_is_free_when_it_was_released_or_stood_for_a_lease(holder: str, now: float, free: bool) -> None:
    assert is_free(SlotRow("onss", 1, 3, 5, holder), Sighting(3, 5, 10.0), now, 76.0) is free


def test_a_layout_gives_way_after_the_lease_of_those_who_wrote_it() -> None:
    sightings = {("onss", 1): Sighting(3, 5, 10.0)}
    stored = SlotBook(LayoutRow("other", 20.0, (("onss", 1),)), (ROW,))
    assert may_replace(SlotBook(None, ()), {}, 0.0)
    assert not may_replace(stored, sightings, 29.0)
    assert may_replace(stored, sightings, 30.0)


def test_a_call_for_several_pools_takes_all_or_none_and_later_one_by_one() -> None:
    needs = ("a", "b", "c")
    assert next_places(needs, set(), {"a", "b", "c"}, 0.0) == needs
    assert next_places(needs, {"b"}, {"a", "c"}, 0.0) == ("a", "c")
    assert next_places(needs, set(), {"a", "b"}, 0.9) == ()
    assert next_places(needs, set(), {"a", "b"}, 1.0) == ("a",)
    assert next_places(needs, {"a"}, {"c"}, 5.0) == (), "b comes before c"
    assert next_places(needs, set(needs), set(), 5.0) == ()


def test_it_keeps_what_it_has_in_the_order_of_names() -> None:
    needs = ("a", "b", "c")
    assert kept_places(needs, {"a", "c"}, 0.9) == frozenset()
    assert kept_places(needs, {"a", "c"}, 1.0) == {"a"}
    assert kept_places(needs, {"b", "c"}, 1.0) == frozenset()
    assert kept_places(needs, set(needs), 1.0) == set(needs)


def test_what_all_must_agree_on_is_sources_pools_caps_and_times() -> None:
    sources = [Source("bcss", base=True), Source("onss")]
    usual = layout_text(layout(sources, Reading.DEFAULT), TIMES)
    assert usual == layout_text(layout(reversed(sources), Reading.DEFAULT), TIMES)
    others = [
        layout_text(layout(sources, Reading.DEFAULT, slots={"onss": 1}), TIMES),
        layout_text(layout(sources, Reading.STRICT), TIMES),
        layout_text(layout([*sources, Source("cin")], Reading.DEFAULT), TIMES),
        layout_text(layout(sources, Reading.DEFAULT, total=3), TIMES),
        layout_text(layout(sources, Reading.DEFAULT), Times(hold_s=61.0)),
    ]
    assert len({usual, *others}) == 6


def test_a_demand_is_true_when_somebody_waits() -> None:
    assert not Demand()
    assert Demand({"onss": 1})
    assert Demand(needs=("onss", "base"))
