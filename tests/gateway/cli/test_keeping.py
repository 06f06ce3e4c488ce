"""Downloads kept in files: whole, or as many whole lines as came; what was there is never lost."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway.cli.keeping as room
from gateway.cli.asking import BrokenOffError
from gateway.cli.keeping import NotWholeError, keep


def line(seq: int) -> bytes:
    return json.dumps({"seq": seq, "body": "x" * 20}).encode() + b"\n"


def broken_off(*parts: bytes) -> Iterator[bytes]:
    yield from parts
    raise BrokenOffError("the gateway is gone")


@pytest.mark.parametrize("adds", [False, True])
def test_a_whole_download_replaces_the_file_or_is_added_to_it(tmp_path: Path, adds: bool) -> None:
    output = tmp_path / "out"
    output.write_bytes(line(1))
    keep([line(2)[:5], line(2)[5:]], output, adds=adds, lines=True)
    assert output.read_bytes() == (line(1) if adds else b"") + line(2)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("back", [7, 1 << 20])
def test_of_lines_that_break_off_the_whole_ones_stay(
    tmp_path: Path, back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_BACK", back)
    output = tmp_path / "out"
    with pytest.raises(NotWholeError, match="up to item 2: ask again with --after 2"):
        keep(broken_off(line(1) + line(2)[:9], line(2)[9:] + line(3)[:12]), output, adds=False, lines=True)
    assert output.read_bytes() == line(1) + line(2)
    keep([line(3)], output, adds=True, lines=True)
    assert output.read_bytes() == line(1) + line(2) + line(3)


@pytest.mark.parametrize(("part", "lines"), [(b'{"seq": 1', True), (b"", True), (line(1), False)])
def test_where_nothing_whole_came_the_file_is_as_it_was(tmp_path: Path, part: bytes, lines: bool) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"before")
    with pytest.raises(NotWholeError, match="nothing was written"):
        keep(broken_off(part), output, adds=False, lines=lines)
    assert output.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [output]
