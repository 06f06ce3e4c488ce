"""The third recommendation as pools, in its three readings."""

import pytest

from policies.model import UNCLASSIFIED, Source
from policies.pools import Reading, layout

SOURCES = [Source("national-register", "0", base=True), Source("bcss", "25", base=True), Source("onss"), Source("cin")]


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (Reading.DEFAULT, {"base": 4, "onss": 2, "cin": 2, UNCLASSIFIED: 2}),
        (Reading.STRICT, {"base": 4, "other": 2, UNCLASSIFIED: 2}),
        (Reading.SPLIT, {"bcss": 4, "national-register": 4, "onss": 2, "cin": 2, UNCLASSIFIED: 2}),
    ],
)
def test_each_reading_has_its_pools(reading: Reading, expected: dict[str, int]) -> None:
    made = layout(SOURCES, reading)
    assert {pool.name: pool.slots for pool in made.pools.values()} == expected
    assert made.over_recommendation() == ()
    assert all(made.pool_of(source.name) in expected for source in SOURCES)


def test_a_call_needs_a_slot_in_each_distinct_pool() -> None:
    made = layout(SOURCES, Reading.DEFAULT)
    assert made.needs(["bcss", "national-register"]) == ("base",)
    assert made.needs(["onss", "bcss"]) == ("base", "onss")
    assert made.unclassified(["onss", "bcss"]) == ("base", "onss", UNCLASSIFIED)
    assert "onss" in made
    assert "elsewhere" not in made
    with pytest.raises(KeyError):
        made.pool_of("elsewhere")


def test_a_site_may_set_slots_rates_and_a_total() -> None:
    made = layout(SOURCES, Reading.DEFAULT, slots={"onss": 3, "base": 1}, rates={"base": 10.0}, total=5)
    assert (made.pools["onss"].slots, made.pools["base"].slots) == (3, 1)
    assert made.pools["base"].rate_per_s == 10.0
    assert made.total == 5
    assert [pool.name for pool in made.over_recommendation()] == ["onss"]


def test_a_share_is_a_part_of_the_cap_and_nothing_where_it_is_not_named() -> None:
    made = layout(SOURCES, Reading.DEFAULT, share={"base": 1, "onss": 9})
    assert {name: pool.slots for name, pool in made.pools.items()} == {"base": 1, "onss": 2, "cin": 0, UNCLASSIFIED: 0}


@pytest.mark.parametrize("named", ["slots", "rates", "share"])
def test_a_pool_that_the_reading_does_not_make_is_named(named: str) -> None:
    with pytest.raises(ValueError, match='there is no pool "other"; there are: base, cin, onss, unclassified'):
        layout(SOURCES, Reading.DEFAULT, **{named: {"other": 1}})
