"""What codes mean: the shipped table, overlays, and every fault of the data at once."""

from pathlib import Path

import pytest
import yaml

from policies.statuses import Kind, Said, Status, Statuses, StatusesError

SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "policies" / "statuses.yaml").read_text())


def shipped() -> Statuses:
    return Statuses.from_data([SHIPPED])


def of(*codes: str, value: str = "", return_code: str = "", table: Statuses | None = None) -> Said:
    said = (table or shipped()).of_status(Status(codes, value, return_code))
    assert said is not None
    return said


def part(code: str = "", value: str = "", of: str = "") -> Status:
    return Status((code,) if code else (), value, of=of)


def answer(whole: Status | None, *parts: Status) -> tuple[str, Kind]:
    said = shipped().of_answer(whole, parts)
    assert said is not None
    return said.code, said.kind


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
    said = of(code)
    assert (said.code, said.kind, said.is_precise) == (code, kind, True)
    assert said.meaning.text


def test_a_reason_code_says_more_than_the_value_beside_it() -> None:
    assert of("MSG00005", value="NOK", return_code="0").code == "MSG00005"


def test_of_several_codes_the_gravest_decides() -> None:
    assert of("MSG00000", "MSG00020", "unheard-of").code == "MSG00020"


def test_of_two_technical_codes_the_one_that_leaves_doubt_decides() -> None:
    assert of("MSG00001", "MSG00003").may_be_done


def test_return_codes_and_values_count_where_nothing_better_is_known_and_the_unknown_code_is_shown() -> None:
    assert (of("new", value="INCOMPLETE_DATA").code, of(value="INCOMPLETE_DATA").kind) == ("new", Kind.PARTIAL)
    assert of(value="NO", return_code="10000").code == "10000"
    assert of(value="NO", return_code="unheard-of").kind is Kind.REJECT
    assert of(value="NO", return_code="MSG00001").kind is Kind.TECHNICAL
    assert shipped().of_status(Status(("a",), "b", "c")) is None


def test_a_source_that_failed_beside_one_that_answered_makes_a_partial_answer() -> None:
    good, failed = part(value="DATA_FOUND"), part(value="TECHNICAL_ERROR")
    assert answer(part("MSG00000"), good, failed) == ("TECHNICAL_ERROR", Kind.PARTIAL)
    assert answer(None, good, part("MSG00020")) == ("MSG00020", Kind.PARTIAL)
    assert answer(part("CHB00001", "INCOMPLETE_DATA"), good, failed) == ("CHB00001", Kind.PARTIAL)
    assert answer(None, failed, failed) == ("TECHNICAL_ERROR", Kind.TECHNICAL)


def test_parts_decide_where_only_they_say_why() -> None:
    whole = Status(value="NO", return_code="10000")
    assert answer(whole, part("MSG00020")) == ("MSG00020", Kind.TECHNICAL)
    assert answer(whole, part(value="NO")) == ("10000", Kind.REJECT)
    assert answer(part("MSG00013"), part("MSG00020")) == ("MSG00013", Kind.STOP)


def test_a_whole_that_stands_alone_or_over_good_parts_decides() -> None:
    assert answer(part("MSG00100")) == ("MSG00100", Kind.NOTHING_FOUND)
    assert answer(part("MSG00100"), part("unheard-of")) == ("MSG00100", Kind.NOTHING_FOUND)
    assert answer(part("MSG00000"), part(value="DATA_FOUND")) == ("MSG00000", Kind.OK)
    assert answer(part("CHB00001"), part(value="DATA_FOUND")) == ("CHB00001", Kind.PARTIAL)
    assert shipped().of_answer(None, [part("unheard-of")]) is None


def test_what_one_part_did_may_be_done_whatever_the_whole_says() -> None:
    said = shipped().of_answer(part("MSG00013"), [part("MSG00000"), part("MSG00013", of="onss")])
    assert said is not None
    assert said.may_be_done
    assert said.meaning.text.endswith("(onss)")


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("MSG00003", ["MSG00020"]),  # the whole leaves doubt, whatever its parts say
        ("MSG00002", ["MSG00005"]),
        ("", ["MSG00020", "unheard-of"]),  # nobody knows what the other part has done
        ("MSG00020", ["unheard-of"]),
        ("MSG00013", ["MSG00013", "unheard-of"]),
    ],
)
def test_not_done_is_said_only_where_whole_and_parts_all_say_so(whole: str, parts: list[str]) -> None:
    said = shipped().of_answer(part(whole) if whole else None, [part(one) for one in parts])
    assert said is not None
    assert said.may_be_done


@pytest.mark.parametrize("whole", [None, part("MSG00020"), Status(value="NO", return_code="10000")])
def test_what_whole_and_parts_say_was_not_done_was_not_done(whole: Status | None) -> None:
    said = shipped().of_answer(whole, [part("MSG00020"), part("MSG00001")])
    assert said is not None
    assert not said.may_be_done


@pytest.mark.parametrize(
    ("fault", "codes", "code", "kind"),
    [
        ("Server", (), "fault Server", Kind.TECHNICAL),
        ("Server", ("new",), "new", Kind.TECHNICAL),
        ("whatever", (), "fault whatever", Kind.TECHNICAL),
        ("Client", (), "fault Client", Kind.REJECT),
        ("Client.Authentication", (), "fault Client.Authentication", Kind.STOP),
        ("Client.Other", (), "fault Client.Other", Kind.REJECT),
        ("Sender", ("FailedAuthentication",), "FailedAuthentication", Kind.STOP),
        ("VersionMismatch", (), "fault VersionMismatch", Kind.STOP),
        ("Client", ("SOA-01001",), "SOA-01001", Kind.STOP),
        ("Server", ("MSG00000",), "MSG00000", Kind.TECHNICAL),
    ],
)
def test_a_fault_means_what_its_detail_says_or_else_its_code(
    fault: str, codes: tuple[str, ...], code: str, kind: Kind
) -> None:
    said = shipped().of_fault(fault, codes)
    assert (said.code, said.kind) == (code, kind)


def test_statuses_of_http_are_known_singly_or_by_class() -> None:
    table = shipped()
    kinds = {
        status: said.kind if (said := table.of_http(status)) else None for status in (200, 302, 403, 422, 429, 599)
    }
    assert list(kinds.values()) == [None, Kind.STOP, Kind.STOP, Kind.REJECT, Kind.TECHNICAL, Kind.TECHNICAL]
    assert table.is_telling(403)
    assert not table.is_telling(500)


def test_a_site_lays_its_own_meanings_over_the_shipped_ones() -> None:
    own = {
        "codes": {"MSG00005": {"kind": "ok", "means": "we know"}, "XYZ": {"kind": "stop"}},
        "http": {403: {"kind": "reject"}},
    }
    table = Statuses.from_data([SHIPPED, own])
    assert of("MSG00005", table=table).meaning.text == "we know"
    assert of("XYZ", table=table).kind is Kind.STOP
    assert of("MSG00001", table=table).kind is Kind.TECHNICAL
    forbidden = table.of_http(403)
    assert forbidden is not None
    assert forbidden.kind is Kind.REJECT


def test_every_fault_is_told_with_its_place() -> None:
    wrong = {
        "codes": {
            "A": {"kind": "perhaps"},
            "B": "ok",
            "C": {"kind": "ok", "why": 1},
            "D": {"kind": "ok", "means": 1},
            "E": {"kind": "reject", "not_done": True},
        },
        "values": [],
        "return_codes": {False: {"kind": "ok"}, 1.5: {"kind": "ok"}},
        "http": {"6xx": {"kind": "ok"}, 200: {"kind": "ok"}},
        "other": {},
    }
    with pytest.raises(StatusesError) as caught:
        Statuses.from_data([SHIPPED, wrong])
    assert [path for path, _ in caught.value.faults] == [
        (1, "codes", "A"),
        (1, "codes", "B"),
        (1, "codes", "C", "why"),
        (1, "codes", "D"),
        (1, "codes", "E"),
        (1, "values"),
        (1, "return_codes", False),
        (1, "return_codes", 1.5),
        (1, "http", "6xx"),
        (1, "other"),
    ]
