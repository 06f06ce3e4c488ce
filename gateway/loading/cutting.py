"""Cuts what is submitted into entries, as it comes, without looking into them.

Rules that always hold: memory is bounded by one entry (`LARGEST`) and what is read at a time; what is not of its form
is unreadable, from where it stands; entries keep their order. ZIP has its table at its end, so it is held whole, and
whoever calls bounds it.
"""

import asyncio
import codecs
import csv
import io
import tarfile
import zipfile
import zlib
from collections.abc import AsyncIterator

from gateway.loading.submission import Raw, UnreadableError

LARGEST = 8 << 20
"""Octets of one entry: eight times what a bulk body may have by default."""
_LONGEST_ROW = 1 << 20
_BLOCK = 512  #: of TAR (POSIX.1-2008, pax)
_NOT_UTF8 = "It is not UTF-8. Save it as UTF-8."


async def lines(octets: AsyncIterator[bytes]) -> AsyncIterator[Raw]:
    """Yield the lines of NDJSON; empty ones are passed over."""
    rest, number = b"", 0
    async for piece in octets:
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        for line in whole.split(b"\n") if newline else ():
            number += 1
            if line.strip():
                yield Raw(number, line)
        if len(rest) > LARGEST:
            raise UnreadableError(f"Line {number + 1} is longer than {LARGEST >> 20} MiB. Is it NDJSON, one a line?")
    if rest.strip():
        yield Raw(number + 1, rest)


async def rows(octets: AsyncIterator[bytes]) -> AsyncIterator[Raw]:
    """Yield the rows of a CSV, its header first: UTF-8, comma, semicolon or tab, whichever the header has most of."""
    cut = _Rows()
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    try:
        async for piece in octets:
            whole, newline, rest = (rest + decoder.decode(piece)).rpartition("\n")
            for line in whole.split("\n") if newline else ():
                if (row := cut.row(line + "\n")) is not None:
                    yield row
            if len(rest) > _LONGEST_ROW:
                raise UnreadableError(f"Line {cut.number + 1} is longer than 1 MiB. Is it CSV?")
        rest += decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UnreadableError(_NOT_UTF8) from None
    if rest and (row := cut.row(rest)) is not None:
        yield row
    cut.end()


class _Rows:
    """Joins lines to rows: a quoted field may go on in the next line (RFC 4180)."""

    def __init__(self) -> None:
        self.number = 0  #: lines so far
        self._delimiter = ""
        self._pending: list[str] = []

    def row(self, line: str) -> Raw | None:
        """Take a line; return the row that ends with it, if one does and it is not empty."""
        self.number += 1
        self._delimiter = self._delimiter or max(",;\t", key=line.count)
        pending = self._pending
        pending.append(line)
        if sum(one.count('"') for one in pending) % 2:
            if sum(map(len, pending)) > _LONGEST_ROW:
                self.end()
            return None
        try:
            fields = tuple(next(csv.reader(pending, delimiter=self._delimiter, strict=True), ()))
        except csv.Error:
            raise UnreadableError(f"The row that ends at line {self.number} is not CSV.") from None
        first = self.number - len(pending) + 1
        self._pending = []
        return Raw(first, fields) if any(fields) else None

    def end(self) -> None:
        """Say that there is no more of the row."""
        if self._pending:
            first = self.number - len(self._pending) + 1
            raise UnreadableError(f"The row that begins at line {first} has a quotation mark without its other one.")


async def zipped(octets: AsyncIterator[bytes]) -> AsyncIterator[Raw]:
    """Yield the files of a ZIP, in the order of its table."""
    whole = io.BytesIO()
    async for piece in octets:
        whole.write(piece)
    number = 0
    try:
        with zipfile.ZipFile(whole) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                number += 1
                if member.file_size > LARGEST or member.flag_bits & 1:
                    raise UnreadableError(f"File {number} of the archive is encrypted, or larger than 8 MiB.")
                yield Raw(number, await asyncio.to_thread(archive.read, member), _base(member.filename))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UnreadableError(f"It cannot be read as ZIP from file {number} on ({type(error).__name__}).") from None


async def tarred(octets: AsyncIterator[bytes]) -> AsyncIterator[Raw]:
    """Yield the files of a TAR as it comes, with gzip around it or without."""
    reader = _Reader(octets)
    number, name = 0, ""
    while (header := await reader.take(_BLOCK)) and header.count(0) < _BLOCK:
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise UnreadableError(f"It cannot be read as TAR after file {number}.") from None
        if member.size > LARGEST:
            raise UnreadableError(f"File {number + 1} of the archive is larger than {LARGEST >> 20} MiB.")
        content = await reader.take(member.size + -member.size % _BLOCK)
        if len(content) < member.size:
            raise UnreadableError(f"The archive ends in the middle of file {number + 1}.")
        content = content[: member.size]
        if member.isreg():
            number += 1
            yield Raw(number, content, name or _base(member.name))
            name = ""
        elif member.type == tarfile.GNUTYPE_LONGNAME:
            name = _base(content.rstrip(b"\0").decode("utf-8", "replace"))
        elif member.type == tarfile.XHDTYPE:
            name = _pax_name(content)


def _pax_name(records: bytes) -> str:
    """Return the path that a pax header gives the file behind it: records of `length key=value` (POSIX.1-2008)."""
    for record in records.split(b"\n"):
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return _base(value.decode("utf-8", "replace"))
    return ""


class _Reader:
    """Octets as they come, taken by number, with gzip undone."""

    def __init__(self, octets: AsyncIterator[bytes]) -> None:
        self._octets = octets
        self._rest = bytearray()
        self._inflate: zlib._Decompress | None = None
        self._begun = False

    async def take(self, size: int) -> bytes:
        """Return so many octets, or what is left."""
        while len(self._rest) < size and (piece := await anext(self._octets, b"")):
            if not self._begun:
                self._begun = True
                if piece.startswith(b"\x1f\x8b"):
                    self._inflate = zlib.decompressobj(31)
            self._add(piece, size)
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken

    def _add(self, piece: bytes, size: int) -> None:
        if self._inflate is None:
            self._rest += piece
            return
        try:
            self._rest += self._inflate.decompress(piece, LARGEST + size)
            while self._inflate.unconsumed_tail and len(self._rest) < LARGEST + size:
                self._rest += self._inflate.decompress(self._inflate.unconsumed_tail, LARGEST + size)
        except zlib.error:
            raise UnreadableError("Its gzip cannot be read.") from None
        if self._inflate.unconsumed_tail:
            raise UnreadableError("It inflates to so much at once that it is no archive of messages.")


def _base(name: str) -> str:
    return name.rpartition("/")[2]
