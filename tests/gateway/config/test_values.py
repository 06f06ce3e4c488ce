"""How durations, sizes, rates, dates, URLs and paths are written, and what they become."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.config.values import (
    At,
    BaseUrl,
    Day,
    Duration,
    Moment,
    Place,
    Rate,
    Secret,
    Size,
    Text,
    duration_text,
    shown,
    size_text,
)

SECONDS = Duration(0, 1e9)
BYTES = Size(0, 2**50)
NOWHERE = Place(Path("/"), {})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("8s", 8), ("500ms", 0.5), ("10min", 600), ("1h", 3600), ("2d", 172_800), ("1.5 s", 1.5), ("7", 7), (9, 9)],
)
def test_a_duration_becomes_seconds(written: object, seconds: float) -> None:
    read = SECONDS.read(written)
    assert read == seconds
    assert isinstance(read, float)


@pytest.mark.parametrize(
    "written", ["", "5m", "s", "-1s", "1h30", "1e3", "0x10", "\u0661s", True, None, [1], "5 S", "8s\n"]
)
def test_what_is_no_duration_is_told_with_an_example(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a duration"):
        SECONDS.read(written)


@pytest.mark.parametrize("written", ["999ms", "61s", 0, -5, float("inf"), float("nan"), 10**400])
def test_a_duration_outside_its_bounds_is_told_with_the_bounds(written: object) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        Duration(1, 60).read(written)
    assert caught.value.context == {
        "what": f"{shown(written)} is outside what is allowed here",
        "remedy": "Write a duration from 1s to 1min.",
    }


@given(st.integers(1, 10**7))
def test_a_duration_is_shown_as_it_can_be_written(milliseconds: int) -> None:
    assert SECONDS.read(duration_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)


def test_no_duration_at_all_is_shown_in_seconds() -> None:
    assert duration_text(0.0) == "0s"


@pytest.mark.parametrize(
    ("written", "size"),
    [("64KiB", 65_536), ("1MiB", 1_048_576), ("1.5kB", 1500), ("7B", 7), (12, 12), ("2 GiB", 2**31)],
)
def test_a_size_becomes_bytes(written: object, size: int) -> None:
    read = BYTES.read(written)
    assert read == size
    assert isinstance(read, int)


@pytest.mark.parametrize("written", ["1mb", "1K", "x", True, None, "1KiB/s"])
def test_what_is_no_size_is_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a size"):
        BYTES.read(written)


@pytest.mark.parametrize("written", ["0.5B", 3, "1GiB"])
def test_half_bytes_and_sizes_outside_their_bounds_are_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is outside"):
        Size(4, 1024).read(written)


def test_a_pace_may_say_that_it_is_a_second() -> None:
    pace = Size(1, 2048, a_second=True)
    assert [pace.read(written) for written in ("1KiB/s", "1 KiB /s", "1KiB", 1024)] == [1024] * 4


@given(st.integers(1, 2**36))
def test_a_size_in_binary_units_is_shown_as_it_can_be_written(size: int) -> None:
    assert BYTES.read(size_text(size * 1024)) == pytest.approx(size * 1024, rel=1e-5)


@pytest.mark.parametrize(
    ("written", "rate"), [("10/s", 10), ("600/min", 10), ("36000 / h", 10), (2, 2), ("0.5/s", 0.5)]
)
def test_a_rate_becomes_starts_a_second(written: object, rate: float) -> None:
    assert Rate().read(written) == rate


@pytest.mark.parametrize("written", ["10", "10/d", "/s", True, None, "10 per s"])
def test_what_is_no_rate_is_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a rate"):
        Rate().read(written)


@pytest.mark.parametrize("written", ["0/s", -1, "10001/s"])
def test_a_rate_outside_its_bounds_is_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is outside"):
        Rate().read(written)


@pytest.mark.parametrize("written", ["https://h:4520", "http://[::1]:80/", "https://b2b.ksz-bcss.fgov.be"])
def test_a_url_of_an_upstream_is_scheme_host_and_port(written: str) -> None:
    assert BaseUrl().read(written) == written.rstrip("/")


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("https://h/path", "has a path"),
        ("https://h?", "has a path or a query"),
        ("https://h/#x", "has a path or a query"),
        ("https://u:hidden@h", "holds a user or a password"),
        ("ftp://h", "does not begin with"),
        ("h:4520", "does not begin with"),
        ("https://", "names no host"),
        ("https://h:0", "names no host"),
        ("https://bücher.example", "names no host"),
        ("https://h:hidden", "is not a URL"),
        ("https://[hidden", "is not a URL"),
        (8080, "is not a URL"),
    ],
)
def test_any_other_url_is_told_and_never_quoted(written: object, what: str) -> None:
    with pytest.raises(PydanticCustomError, match=what) as caught:
        BaseUrl().read(written)
    assert "hidden" not in str(caught.value.context)


@pytest.mark.parametrize("written", ["2026-12-24", date(2026, 12, 24)])
def test_a_day_becomes_a_date(written: object) -> None:
    assert Day().read(written) == date(2026, 12, 24)


@pytest.mark.parametrize("written", ["2026-13-01", "24/12/2026", 20261224, None, "2026-12-24T08:00"])
def test_what_is_no_day_is_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a date"):
        Day().read(written)


@pytest.mark.parametrize("written", ["2026-12-24T12:00", "2026-12-24 12:00:00", datetime(2026, 12, 24, 12)])
def test_a_moment_without_an_offset_stays_naive(written: object) -> None:
    assert Moment().read(written) == datetime(2026, 12, 24, 12)


@pytest.mark.parametrize("written", ["2026-12-24", "12:00", "2026-12-24T25:00", 3, None])
def test_what_is_no_moment_is_told(written: object) -> None:
    with pytest.raises(PydanticCustomError, match="is not a date with a time"):
        Moment().read(written)


@pytest.mark.parametrize(
    ("written", "what"), [(3, "in quotes|is read as a number"), (True, "truth value"), ("a\nb", "is not")]
)
def test_text_is_one_line(written: object, what: str) -> None:
    with pytest.raises(PydanticCustomError, match=what):
        Text().read(written)


def test_a_path_is_relative_to_the_configuration_and_its_file_must_be_readable(tmp_path: Path) -> None:
    place = Place(tmp_path, {})
    (tmp_path / "here").write_text("x")
    assert At().read_at("here", place) == tmp_path / "here"
    assert At().read_at(str(tmp_path / "here"), place) == tmp_path / "here"
    for wrong, what in (("gone", "there is no file"), (".", "is not a file"), ("", "not a path"), (3, "not a path")):
        with pytest.raises(PydanticCustomError, match=what):
            At().read_at(wrong, place)


def test_a_file_without_the_right_to_read_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is given by hand: for root every file is readable."""
    (tmp_path / "here").write_text("x")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PydanticCustomError, match="cannot be read"):
        At().read_at("here", Place(tmp_path, {}))


def test_without_a_place_a_path_stays_as_it_is() -> None:
    assert At().read_at(Path("gone"), None) == Path("gone")


def test_a_secret_comes_from_a_file_or_the_environment_and_shows_itself_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"gu\xc3\xa9 \r\n")
    place = Place(tmp_path, {"NAME": "gué "})
    for written in ({"file": "secret"}, {"env": "NAME"}):
        secret = Secret().read_at(written, place)
        assert secret.get_secret_value() == "gué "
        assert "gué" not in repr(secret) + str(secret)
        assert Secret().read_at(secret, None) is secret


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("hidden", "may not stand in the configuration"),
        (1234, "may not stand in the configuration"),
        ({"file": "a", "env": "b"}, "does not say where"),
        ({"vault": "hidden"}, "does not say where"),
        (None, "does not say where"),
        ({"env": ""}, "names nothing"),
        ({"env": 3}, "names nothing"),
        ({"env": "GONE"}, "has no variable GONE"),
        ({"env": "EMPTY"}, "is empty"),
        ({"file": "gone"}, "there is no file"),
        ({"file": "octets"}, "cannot be read as text"),
        ({"file": "large"}, "too large"),
        ({"file": "empty"}, "is empty"),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_without_it(written: object, what: str, tmp_path: Path) -> None:
    (tmp_path / "octets").write_bytes(b"hidden\xff")
    (tmp_path / "large").write_bytes(b"hidden" * 20_000)
    (tmp_path / "empty").write_bytes(b"\n")
    with pytest.raises(PydanticCustomError, match=what) as caught:
        Secret().read_at(written, Place(tmp_path, {"EMPTY": ""}))
    assert "hidden" not in str(caught.value.context)


def test_a_secret_needs_a_place() -> None:
    with pytest.raises(PydanticCustomError, match="only be looked up"):
        Secret().read_at({"env": "NAME"}, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), ({}, "a group of keys"), ([1], "a list"), ("x" * 99, f'"{"x" * 56}...')],
)
def test_values_are_quoted_shortly(value: Any, text: str) -> None:
    assert shown(value) == text
