"""The store's contract: holds and interruptions. Every engine keeps it."""

import pytest

from gateway.records import InterruptionRecord
from gateway.store.interface import StateError, Store, StoreError
from tests.gateway.store.conftest import Kept


async def interruption(store: Store, source: str = "register") -> InterruptionRecord:
    (found,) = [one for one in (await store.controls()).interruptions if one.source == source]
    return found


async def test_nothing_stands_against_bulk_at_first(store: Store) -> None:
    controls = await store.controls()
    assert (list(controls.holds), list(controls.interruptions)) == ([], [])


async def test_a_hold_stands_until_it_is_ended(store: Store) -> None:
    before = (await store.controls()).revision
    held = await store.hold("source:register", author="anna", reason="they asked")
    assert [(one.scope, one.author, one.reason) for one in held.holds] == [("source:register", "anna", "they asked")]
    assert held.revision > before
    assert await store.controls() == held
    both = await store.hold("all", author="bert", reason="night work")
    assert {one.scope for one in both.holds} == {"all", "source:register"}
    left = await store.unhold("source:register", author="carl", reason="done")
    assert [one.scope for one in left.holds] == ["all"]
    assert left.revision > both.revision > held.revision


async def test_a_second_hold_of_a_scope_replaces_author_and_reason(store: Store) -> None:
    await store.hold("all", author="anna", reason="one")
    controls = await store.hold("all", author="bert", reason="two")
    assert [(one.author, one.reason) for one in controls.holds] == [("bert", "two")]


async def test_a_hold_that_is_not_there_cannot_be_ended(store: Store) -> None:
    with pytest.raises(StateError):
        await store.unhold("all", author="anna", reason="")


@pytest.mark.parametrize("scope", ["", "source:", "register", "ALL"])
async def test_a_scope_is_all_or_a_source(store: Store, scope: str) -> None:
    with pytest.raises(StoreError):
        await store.hold(scope, author="anna", reason="")


async def test_an_interruption_begins_now_and_cools(kept: Kept) -> None:
    before = (await kept.store.controls()).revision
    noted = await kept.store.interrupt("register", reason="burst", cool_s=300)
    assert (noted.source, noted.reason, noted.cool_s, noted.skipped_by, noted.ramp_s) == (
        *("register", "burst", 300, "", 0),
    )
    assert 0 <= noted.since_s < 30
    assert (await kept.store.controls()).revision > before
    await kept.skip(200)
    later = await interruption(kept.store)
    assert 200 <= later.since_s < 230
    assert (later.ramp_s, later.number) == (0, noted.number)
    await kept.skip(200)
    assert 100 <= (await interruption(kept.store)).ramp_s < 130


async def test_one_that_is_cooling_stays_as_it_is(kept: Kept) -> None:
    first = await kept.store.interrupt("register", reason="burst", cool_s=300)
    revision = (await kept.store.controls()).revision
    await kept.skip(100)
    second = await kept.store.interrupt("register", reason="another", cool_s=900)
    assert (second.number, second.reason, second.cool_s) == (first.number, "burst", 300)
    assert second.since_s >= 100
    assert (await kept.store.controls()).revision == revision
    other = await kept.store.interrupt("all", reason="restart", cool_s=300)
    assert other.number > first.number


async def test_a_new_interruption_during_the_ramp_has_a_higher_number(kept: Kept) -> None:
    first = await kept.store.interrupt("register", reason="burst", cool_s=300)
    await kept.skip(301)
    second = await kept.store.interrupt("register", reason="again", cool_s=600)
    assert second.number > first.number
    assert (second.reason, second.cool_s, second.ramp_s) == ("again", 600, 0)
    assert second.since_s < 30


async def test_a_ramp_begins_again(kept: Kept) -> None:
    await kept.store.interrupt("register", reason="burst", cool_s=300)
    await kept.skip(400)
    before = (await interruption(kept.store)).ramp_s
    controls = await kept.store.restart_ramp("register")
    assert controls.interruptions[0].ramp_s < 30 < before
    await kept.skip(50)
    assert 50 <= (await interruption(kept.store)).ramp_s < 80


async def test_a_ramp_does_not_begin_while_cooling(kept: Kept) -> None:
    await kept.store.interrupt("register", reason="burst", cool_s=300)
    await kept.store.restart_ramp("register")
    await kept.skip(310)
    assert 10 <= (await interruption(kept.store)).ramp_s < 40
    controls = await kept.store.restart_ramp("unknown")
    assert [one.source for one in controls.interruptions] == ["register"]


async def test_a_person_ends_a_cool_down_early_and_the_ramp_follows(kept: Kept) -> None:
    await kept.store.interrupt("register", reason="burst", cool_s=300)
    await kept.skip(10)
    controls = await kept.store.end_interruption("register", author="anna", reason="they are back", skip=True)
    (skipped,) = controls.interruptions
    assert (skipped.skipped_by, skipped.cool_s) == ("anna", 300)
    assert skipped.ramp_s < 30
    await kept.skip(100)
    assert 100 <= (await interruption(kept.store)).ramp_s < 130
    row = (await kept.store.audit())[-1]
    assert (row.author, row.subject, row.detail) == ("anna", "register", "they are back")
    again = await kept.store.interrupt("register", reason="burst", cool_s=300)
    assert (again.number > skipped.number, again.skipped_by, again.ramp_s) == (True, "", 0)


async def test_there_is_no_cool_down_to_skip_where_nothing_is_interrupted(store: Store) -> None:
    with pytest.raises(StateError):
        await store.end_interruption("register", author="anna", reason="", skip=True)


async def test_an_interruption_whose_ramp_is_over_is_forgotten(store: Store) -> None:
    await store.interrupt("register", reason="burst", cool_s=0)
    revision = (await store.controls()).revision
    controls = await store.end_interruption("register", author="gateway", reason="ramp over", skip=False)
    assert list(controls.interruptions) == []
    assert controls.revision > revision
    twice = await store.end_interruption("register", author="gateway", reason="ramp over", skip=False)
    assert twice == controls  # another process was faster


async def test_an_interruption_that_cools_is_not_forgotten(store: Store) -> None:
    await store.interrupt("register", reason="burst", cool_s=300)
    before = await store.controls()
    after = await store.end_interruption("register", author="gateway", reason="ramp over", skip=False)
    assert [one.reason for one in after.interruptions] == ["burst"]
    assert after.revision == before.revision


async def test_interruptions_and_their_end_are_in_the_audit_rows(store: Store) -> None:
    await store.interrupt("register", reason="burst", cool_s=0)
    await store.end_interruption("register", author="gateway", reason="ramp over", skip=False)
    rows = [(row.author, row.action, row.subject, row.detail) for row in await store.audit()]
    assert rows == [
        ("gateway", "interrupt", "register", "burst"),
        ("gateway", "end interruption", "register", "ramp over"),
    ]


async def test_a_clock_stepped_back_leaves_nothing_cooling_for_an_hour(kept: Kept) -> None:
    """What lies ahead of the clock begins again: at most another cool-down."""
    await kept.store.interrupt("register", reason="burst", cool_s=300)
    await kept.skip(-3600)
    stepped = await interruption(kept.store)
    assert 0 <= stepped.since_s < 30
    await kept.skip(310)
    assert 0 < (await interruption(kept.store)).ramp_s < 60


@pytest.mark.parametrize("skip", [False, True])
async def test_a_clock_stepped_back_leaves_no_ramp_waiting_for_an_hour(kept: Kept, skip: bool) -> None:
    await kept.store.interrupt("register", reason="burst", cool_s=300 if skip else 0)
    if skip:
        await kept.store.end_interruption("register", author="anna", reason="", skip=True)
    await kept.skip(200)
    await kept.store.restart_ramp("register")
    await kept.skip(-3600)
    assert 0 <= (await interruption(kept.store)).ramp_s < 30
    await kept.skip(120)
    assert 120 <= (await interruption(kept.store)).ramp_s < 150
