"""A download kept in a file: whole, or as many whole lines of it as came.

Rules that always hold:
- The file has its name only once what is in it is whole; until then it is `<name>.part`, for its owner's eyes only.
- An answer that breaks off adds the whole lines that came (NDJSON), or leaves the file as it was (ZIP).
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from gateway.cli.asking import BrokenOffError


class NotWholeError(Exception):
    """The answer broke off. The message says what is there now, and how to go on."""


def keep(parts: Iterable[bytes], output: Path, *, adds: bool, lines: bool) -> None:
    """Write a download to a file.

    Args:
        adds: what the file has already stays, and this comes after it.
        lines: it is made of lines, each a JSON object with its `seq`.

    Raises:
        NotWholeError: the answer broke off.
    """
    unfinished = output.with_name(output.name + ".part")
    try:
        with open(unfinished, "w+b", opener=_private) as file:
            if adds and output.exists():
                with output.open("rb") as before:
                    shutil.copyfileobj(before, file)
            try:
                _write(parts, file)
            except BrokenOffError:
                last = _cut_to_lines(file) if lines else None
                if last is None:
                    raise NotWholeError(f"The answer broke off; nothing was written to {output}. Ask again.") from None
                unfinished.replace(output)
                raise NotWholeError(
                    f"The answer broke off. {output} has what came, up to item {last}: ask again with --after {last}, "
                    "and what is missing is added to it."
                ) from None
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(parts: Iterable[bytes], file: BinaryIO) -> None:
    for octets in parts:
        file.write(octets)


_BACK = 1 << 20


def _cut_to_lines(file: BinaryIO) -> int | None:
    """Cut a file behind its last whole line; return that line's `seq`, or None when there is none."""
    end = _newline_before(file, file.seek(0, os.SEEK_END))
    if end < 0:
        return None
    file.truncate(end + 1)
    file.seek(_newline_before(file, end) + 1)
    return int(json.loads(file.readline())["seq"])


def _newline_before(file: BinaryIO, end: int) -> int:
    """Return where the last line break before `end` is; -1: there is none."""
    while end > 0:
        begin = max(0, end - _BACK)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at
        end = begin
    return -1


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
