"""The one noun with behaviour: a slot knows since when, and until when, its source may be working."""

import pytest

from policies.model import Operation, Slot, Ticket


def made(answer: bool) -> Slot:
    return Slot(Ticket(1), frozenset({"onss"}), ("onss",), lambda _now: answer, hold_s=60.0)


def test_a_check_that_passes_makes_the_source_busy_until_t_after_it() -> None:
    slot = made(True)
    assert slot.may_start(100.0)
    assert slot.may_start(110.0)
    assert (slot.started_at, slot.busy_until) == (100.0, 170.0)


def test_a_check_that_fails_leaves_everything_as_it_was() -> None:
    slot = made(False)
    assert not slot.may_start(100.0)
    assert (slot.started_at, slot.busy_until) == (None, None)


def test_settling_tells_who_waits_for_it_once() -> None:
    slot, told = made(True), []
    slot.may_start(1.0)
    slot.when_settled(lambda: told.append(slot.busy_until))
    slot.settle()
    slot.settle()
    assert told == [None]


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Operation("ask", "urn:x"), "{urn:x}ask"),
        (Operation("XMLite", version="20051206", inner="{urn:y}L950"), "XMLite/20051206/{urn:y}L950"),
        (Operation("Other"), "Other"),
    ],
)
def test_an_operation_has_a_name_for_people(operation: Operation, text: str) -> None:
    assert str(operation) == text
