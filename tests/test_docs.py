"""docs/runs.md says what is: its table of answers is what is decided, its names and defaults are the program's."""

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from gateway.cli.commands import app
from gateway.config import Settings
from gateway.config.values import duration_text
from policies.model import ItemState, Reason
from policies.recovery import AnswerFacts, Disposition, Trouble, disposition
from policies.statuses import Kind, Status, Statuses

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
STATUSES = Statuses.from_data([yaml.safe_load((ROOT / "policies/statuses.yaml").read_text(encoding="utf-8"))])
EXAMPLES: dict[str, AnswerFacts | Trouble] = {
    "`ok`": AnswerFacts(200, whole=Status(("MSG00000",))),
    "`nothing_found`": AnswerFacts(200, whole=Status(("MSG00100",))),
    "`reject`": AnswerFacts(200, whole=Status(("MSG00005",))),
    "`partial`": AnswerFacts(200, whole=Status(("CHB00001",))),
    "`technical`": AnswerFacts(200, whole=Status(("MSG00002",))),
    "`technical`, `not_done`": AnswerFacts(200, whole=Status(("MSG00001",))),
    "`unknown`": AnswerFacts(200, readable=False),
    "`stop`": AnswerFacts(200, whole=Status(("MSG00013",))),
    "no answer, nothing was sent": Trouble(Reason.UPSTREAM_UNREACHABLE, bytes_written=False),
    "no whole answer, something was sent": Trouble(Reason.UPSTREAM_BROKEN, bytes_written=True),
}
ROWS = {
    cells[0]: cells[1:]
    for cells in (
        [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")
    )
    if cells[0] in EXAMPLES
}


def decided(what: str, *, repeatable: bool, attempts: int = 1) -> Disposition:
    return disposition(EXAMPLES[what], STATUSES, repeatable=repeatable, attempts=attempts, max_attempts=5)


def said(what: str, *, repeatable: bool) -> str:
    """Say what follows from an answer, as the table does: of the first attempt, and of the last."""
    first, last = decided(what, repeatable=repeatable), decided(what, repeatable=repeatable, attempts=5)
    if first.state is not ItemState.WAITING:
        assert last.state is first.state
        return first.state.replace("_", " ")
    if first.holds_run:
        return "again, and the run is paused"
    return "again" if last.state is ItemState.WAITING else f"again, at last {last.state}"


def test_every_kind_of_answer_has_its_row() -> None:
    assert ROWS.keys() == EXAMPLES.keys()
    kinds = {decided(what, repeatable=True).kind for what in EXAMPLES}
    assert kinds == set(Kind)


@pytest.mark.parametrize("what", EXAMPLES)
def test_the_table_of_answers_is_what_is_decided(what: str) -> None:
    read, write, uses, counts = ROWS[what]
    assert (read, write) == (said(what, repeatable=True), said(what, repeatable=False))
    one = decided(what, repeatable=True)
    assert uses == ("yes" if one.counts else "no")
    assert counts == (
        "if the upstream is at fault" if isinstance(EXAMPLES[what], Trouble) else ["no", "yes"][one.technical]
    )


def test_every_command_that_is_named_exists() -> None:
    every = getattr(get_command(app), "commands", {})
    groups = {name: set(getattr(every[name], "commands", ())) for name in ("runs", "hold", "store")}
    named = re.findall(r"`(?:bcss-gateway )?(runs|hold|store) ([a-z]+)\b", TEXT)
    assert len(named) > 20
    assert [one for one in named if one[1] not in groups[one[0]]] == []


def test_numbers_are_the_defaults() -> None:
    runs = Settings().runs
    times = [duration_text(one) for one in (runs.retry_first, runs.retry_longest, runs.cool_down, runs.ramp_step)]
    assert times == ["30s", "1h", "5min", "1min"]
    assert (runs.max_attempts, runs.burst_faults, runs.burst_calls, runs.burst_time) == (5, 5, 20, 60)
    assert (runs.reject_ratio, runs.reject_minimum, duration_text(runs.retention)) == (0.05, 200, "30d")
    for words in (
        "after 30 s, doubled with each attempt, an hour at the longest",
        "5 attempts (`max_attempts`)",
        "5 faults, and half of the last 20 calls, within 60 s",
        "`cool_down`, 5 min",
        "`ramp_step` (1 min)",
        "over 5 % of at least 200 settled items",
        "30 days after its end",
    ):
        assert words in TEXT, words


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
