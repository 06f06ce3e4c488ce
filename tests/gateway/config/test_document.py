"""YAML by version 1.2, with positions, bounded, and all faults at once."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.document import Document, read


def parsed(directory: Path, text: str | bytes) -> Document:
    path = directory / "d.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path)


def told(document: Document) -> list[str]:
    return [f"{f.line}:{f.column} {f.key}: {f.what}" for f in document.faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("08:00", "08:00"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".inf", ".inf"),
        ("9" * 5000, "9" * 5000),
        ("'12'", "12"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object, tmp_path: Path) -> None:
    document = parsed(tmp_path, f"a: {text}\n")
    assert document.content == {"a": value}
    assert type(document.content["a"]) is type(value)
    assert document.faults == []


def test_keys_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    assert parsed(tmp_path, "on: 1\n12: 2\ntrue: 3\n").content == {"on": 1, "12": 2, "true": 3}


def test_every_value_and_key_has_its_position(tmp_path: Path) -> None:
    document = parsed(tmp_path, "a:\n  b: [x,\n      y]\n")
    assert str(document.fault(("a", "b", 1), "is wrong", "Mend it.")).endswith("d.yaml:3:7: a.b[1]: is wrong. Mend it.")
    assert document.fault(("a", "b"), "", at_key=True).column == 3
    assert document.fault(("a", "missing", "deep"), "").line == 1
    assert (document.fault(("gone",), "").line, document.fault(("gone",), "").column) == (1, 1)
    assert document.has("a", "b", 1)
    assert not document.has("a", "c")
    assert document.names("a") == {"b"}
    assert document.written("a", "b", 0) == "x"
    assert document.written("a", "c") is None


def test_anchors_aliases_and_merge_keys_work_and_own_keys_win(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {y: 3, <<: *a}\nd: {<<: [*a, {z: 4}]}\n"
    document = parsed(tmp_path, text)
    assert document.faults == []
    assert document.content["b"] == {"x": 1, "y": 2}
    assert document.content["c"] == {"x": 1, "y": 3}
    assert document.content["d"] == {"x": 1, "y": 2, "z": 4}
    assert document.fault(("c", "y"), "").line == 3
    assert document.fault(("c", "x"), "").line == 1


def test_all_faults_of_structure_are_told_at_once(tmp_path: Path) -> None:
    text = "a: 1\na: 2\n[b]: 3\nc: !!python/object:os.system x\nd: {<<: 3}\n"
    assert told(parsed(tmp_path, text)) == [
        "2:1 a: stands twice",
        "3:1 : has a list or a group as a key",
        "4:4 c: has a tag (!)",
        "5:9 d: merges (<<) something that is no group of keys",
    ]


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("a:\n\tb: 1\n", "2:1", "YAML allows no tabs"),
        ("a: *x\n", "1:4", "Define the anchor"),
        ("a: b: c\n", "1:5", "quotes"),
        ("a: @x\n", "1:4", "in quotes"),
        ("a: 1\n---\nb: 2\n", "2:1", "one document"),
        ("a: [1\nb: 2\n", "2:", "brackets"),
    ],
)
def test_a_fault_of_syntax_is_told_with_its_place_and_a_remedy(
    text: str, what: str, remedy: str, tmp_path: Path
) -> None:
    [fault] = parsed(tmp_path, text).faults
    assert f"{fault.line}:{fault.column}".startswith(what)
    assert "is not YAML" in fault.what
    assert remedy in fault.remedy


def test_octets_that_are_no_utf_8_and_control_characters_are_told(tmp_path: Path) -> None:
    [fault] = parsed(tmp_path, b"a: 1\nb: \xe9\n").faults
    assert (fault.line, fault.column, fault.what) == (2, 4, "is not UTF-8")
    [fault] = parsed(tmp_path, b"a: \x01\n").faults
    assert "is not YAML" in fault.what


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert parsed(tmp_path, b"\xef\xbb\xbfa: 1\n").content == {"a": 1}


def test_a_file_that_is_not_there_is_a_fault_without_a_position(tmp_path: Path) -> None:
    [fault] = read(tmp_path / "gone.yaml").faults
    assert str(fault).startswith(f"{tmp_path}/gone.yaml: no such file or directory. Name the configuration")


def test_an_empty_file_holds_nothing_and_is_no_fault_of_yaml(tmp_path: Path) -> None:
    document = parsed(tmp_path, "# nothing yet\n")
    assert (document.content, document.faults) == (None, [])


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]",
        "&a {b: *a}",
        "&a {<<: *a}",
        "[" * 60 + "]" * 60,
        "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
    ],
    ids=["list in itself", "group in itself", "merged into itself", "deep", "billion laughs"],
)
def test_what_has_no_end_or_too_much_is_told_once(text: str, tmp_path: Path) -> None:
    assert len(parsed(tmp_path, text).faults) == 1


@pytest.mark.parametrize("loader", ["CBaseLoader", "BaseLoader"])
def test_a_deep_pile_of_brackets_is_a_fault_and_no_crash(
    loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With libyaml's parser, and with PyYAML's own, which recurses."""
    monkeypatch.setattr("gateway.config.document._Loader", getattr(yaml, loader))
    assert len(parsed(tmp_path, "[" * 5000).faults) == 1


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    assert told(parsed(tmp_path, b"#" * (4 * 1024 * 1024 + 1))) == ["0:0 : is larger than 4 MiB"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t0<\\~é", max_size=40))
def test_no_text_breaks_the_reader(text: str, tmp_path: Path) -> None:
    document = parsed(tmp_path, text)
    assert all(fault.line >= 1 and fault.column >= 1 for fault in document.faults)
