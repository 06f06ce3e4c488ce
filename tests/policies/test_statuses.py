"""What codes mean: the shipped table, overlays, and every fault of the data at once."""

from pathlib import Path

import pytest
import yaml

from policies.statuses import Kind, Statuses, StatusesError

SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "policies" / "statuses.yaml").read_text())


def shipped() -> Statuses:
    return Statuses.from_data([SHIPPED])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("MSG00000", Kind.OK),
        ("MSG00100", Kind.NOTHING_FOUND),
        ("MSG00001", Kind.TECHNICAL),
        ("MSG00005", Kind.REJECT),
        ("MSG00013", Kind.STOP),
        ("CHB00001", Kind.PARTIAL),
        ("SOA-02001", Kind.REJECT),
    ],
)
def test_the_shipped_table_knows_the_codes_of_the_bcss(code: str, kind: Kind) -> None:
    found = shipped().gravest([code], [], [])
    assert found is not None
    assert found[0] == code
    assert found[1].kind is kind
    assert found[1].text


def test_a_reason_code_says_more_than_the_value_beside_it() -> None:
    found = shipped().gravest(["MSG00005"], ["NOK"], ["10000"])
    assert found is not None
    assert found[0] == "MSG00005"


def test_of_several_codes_the_gravest_decides() -> None:
    found = shipped().gravest(["MSG00000", "MSG00020", "unheard-of"], [], [])
    assert found is not None
    assert found[0] == "MSG00020"


def test_of_two_technical_codes_the_one_that_leaves_doubt_decides() -> None:
    found = shipped().gravest(["MSG00001", "MSG00003"], [], [])
    assert found is not None
    assert not found[1].not_done


def test_values_and_return_codes_count_where_nothing_better_is_known() -> None:
    table = shipped()
    by_value = table.gravest(["unheard-of"], ["INCOMPLETE_DATA"], ["0"])
    by_return_code = table.gravest([], ["unheard-of"], ["10000"])
    assert by_value is not None
    assert by_value[1].kind is Kind.PARTIAL
    assert by_return_code is not None
    assert by_return_code[1].kind is Kind.REJECT
    assert table.gravest(["a"], ["b"], ["c"]) is None


def test_a_site_lays_its_own_meanings_over_the_shipped_ones() -> None:
    own = {"codes": {"MSG00005": {"kind": "ok", "means": "we know"}, "XYZ": {"kind": "stop"}}}
    table = Statuses.from_data([SHIPPED, own])
    changed, added = table.gravest(["MSG00005"], [], []), table.gravest(["XYZ"], [], [])
    assert changed is not None
    assert changed[1].text == "we know"
    assert added is not None
    assert added[1].kind is Kind.STOP


def test_every_fault_is_told_with_its_place() -> None:
    wrong = {
        "codes": {"A": {"kind": "perhaps"}, "B": "ok", "C": {"kind": "ok", "why": 1}, "D": {"kind": "ok", "means": 1}},
        "values": [],
        "other": {},
    }
    with pytest.raises(StatusesError) as caught:
        Statuses.from_data([SHIPPED, wrong])
    assert [path for path, _ in caught.value.faults] == [
        (1, "codes", "A"),
        (1, "codes", "B"),
        (1, "codes", "C", "why"),
        (1, "codes", "D"),
        (1, "values"),
        (1, "other"),
    ]
