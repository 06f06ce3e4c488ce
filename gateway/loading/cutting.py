"""Cuts lines and rows into entries, as they come, without looking into them.

Rules that always hold: memory is bounded by one entry and what is read at a time; entries keep their order; what is not
of its form is unreadable, from where it stands. The event loop gets its turn after each `SLICE`.
"""

import asyncio
import csv
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator

from gateway.loading.submission import Raw, UnreadableError

SLICE = 32_768
"""Octets that are cut between two turns of the event loop: at most a millisecond or two, for the shortest rows."""
LARGEST = 8 << 20
"""Octets of one entry: what a body may have once it is inflated."""
LONGEST_ROW = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


async def sliced(octets: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield octets in small pieces, and let others have a turn between them."""
    async for piece in octets:
        for start in range(0, len(piece), SLICE):
            yield piece[start : start + SLICE]
            await asyncio.sleep(0)


async def _lines(octets: AsyncIterator[bytes], longest: int, form: str) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """Yield whole lines, without what ends them, and how many came before them."""
    begun: list[bytes] = []
    size, number = 0, 0
    async for piece in sliced(octets):
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            ended = b"".join((*begun, whole)).split(b"\n")
            yield number, ended
            number += len(ended)
            begun, size = [], 0
        begun.append(rest)
        size += len(rest)
        if size > longest:
            raise UnreadableError(f"Line {number + 1} is longer than {longest >> 20} MiB. Is it {form}?")
    if size:
        yield number, [b"".join(begun)]


async def lines(octets: AsyncIterator[bytes]) -> AsyncGenerator[list[Raw]]:
    """Yield the lines of NDJSON; empty ones are passed over."""
    async for before, whole in _lines(octets, LARGEST, "NDJSON, one object a line"):
        yield [(number, line, "") for number, line in enumerate(whole, before + 1) if line and not line.isspace()]


async def rows(octets: AsyncIterator[bytes]) -> AsyncGenerator[list[Raw]]:
    """Yield the rows of a CSV, its header first: UTF-8, with comma, semicolon or tab, whichever the header has most
    of; empty rows are passed over."""
    cutter: _Rows | None = None
    async for before, whole in _lines(octets, LONGEST_ROW, "CSV"):
        if before == 0:
            whole[0] = whole[0].removeprefix(_BYTE_ORDER_MARK)
        try:
            texts = b"\n".join(whole).decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise UnreadableError(f"It is not UTF-8 after line {before}. Save it as UTF-8.") from None
        if cutter is None:
            cutter = _Rows(max(",;\t", key=texts[0].count))
        yield list(cutter.cut(before, texts))
    if cutter is not None:
        cutter.end()


class _Rows:
    """Makes rows of lines: most often one of each, but a quoted field may go on in the next line."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._open: list[str] = []  # lines of a row that is not whole
        self._since = 0
        self._size = 0

    def cut(self, before: int, texts: list[str]) -> Iterator[Raw]:
        """Yield the rows that end within these lines."""
        if not self._open and not any('"' in text for text in texts):  # nearly always: one row of each line
            for number, fields in enumerate(self._read(texts, before + 1), before + 1):
                if any(fields):
                    yield number, tuple(fields), ""
            return
        for number, text in enumerate(texts, before + 1):
            if text.count('"') % 2 == 0 and not self._open:
                row, since = [text], number
            else:
                row, since = self._more(text, number), self._since
            for fields in self._read(row, since):
                if any(fields):
                    yield since, tuple(fields), ""

    def end(self) -> None:
        """Say that no more comes. Raises UnreadableError where a row is not whole."""
        if self._open:
            raise UnreadableError(
                f"The row that begins at line {self._since} has a quotation mark without its other one."
            )

    def _more(self, text: str, number: int) -> list[str]:
        """Add a line to the row that is open, or open one; return the row once it is whole."""
        if not self._open:
            self._since, self._size = number, 0
            self._open = [text + "\n"]
            return []
        self._open.append(text + "\n")
        self._size += len(text) + 1
        if self._size > LONGEST_ROW:
            self.end()
        if text.count('"') % 2 == 0:
            return []
        row, self._open = self._open, []
        row[-1] = text
        return row

    def _read(self, texts: Iterable[str], since: int) -> Iterator[list[str]]:
        reader = csv.reader(texts, delimiter=self._delimiter, strict=True)
        try:
            yield from reader
        except csv.Error:
            line = since + max(reader.line_num - 1, 0)
            raise UnreadableError(f"Line {line} is not CSV. Look at its quotation marks and line ends.") from None
