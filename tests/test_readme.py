"""The README says what is: its diagrams are the tables', its reasons the closed list's."""

from pathlib import Path

from policies.model import ItemState, Reason, RunState
from policies.runs import ITEM_CHANGES, RUN_CHANGES, diagram

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_diagrams_are_drawn_from_the_tables() -> None:
    assert f"```mermaid\n{diagram(RUN_CHANGES, RunState.LOADING)}\n```" in README
    assert f"```mermaid\n{diagram(ITEM_CHANGES, ItemState.WAITING)}\n```" in README


def test_every_reason_of_a_refusal_is_named() -> None:
    missing = [reason for reason in Reason if f"`{reason}`" not in README]
    assert missing == []
