"""Takes the files out of archives: TAR as it comes, ZIP as a whole.

Rules that always hold: nothing is written to a disk; a file is named by its whole path in the archive; what inflates
out of proportion, is not whole or cannot be read is unreadable, from where it stands. A ZIP has its table at its end,
so it is held whole, and whoever calls bounds it.
"""

import asyncio
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

from gateway.loading.cutting import LARGEST, sliced
from gateway.loading.submission import Raw, UnreadableError

_BLOCK = tarfile.BLOCKSIZE
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PASSED_OVER = (tarfile.DIRTYPE, tarfile.XGLTYPE)
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib: the largest window, with gzip's header


async def zipped(octets: AsyncIterator[bytes]) -> AsyncGenerator[list[Raw]]:
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
                if member.flag_bits & 1:
                    raise UnreadableError(f"File {number} of the archive is encrypted. Take the password off.")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnreadableError(f"File {number} of the archive is compressed in a rare way. Use deflate.")
                _bounded(member.file_size, number)
                content = await asyncio.to_thread(_read, archive, member)
                _bounded(len(content), number)
                yield [(number, content, _name(member.filename))]
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        what = f"It cannot be read as ZIP from file {max(number, 1)} on ({type(error).__name__})."
        raise UnreadableError(f"{what} Make it anew.") from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a file's content, or a little more than its table says: what that says may be wrong on purpose, and
    `ZipFile.read` inflates all there is before it looks."""
    with archive.open(member) as file:
        return file.read(member.file_size + 1)


async def tarred(octets: AsyncIterator[bytes]) -> AsyncGenerator[list[Raw]]:
    """Yield the files of a TAR as it comes, with gzip around it or without."""
    reader = _Reader(octets)
    number, name = 0, ""
    while (header := await reader.take(_BLOCK)).count(0) < _BLOCK:
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            remedy = "Make it anew; it ended too early, or is none." if len(header) < _BLOCK else "Make it anew."
            raise UnreadableError(f"It cannot be read as TAR after file {number}. {remedy}") from None
        _bounded(member.size, number + 1)
        padded = await reader.take(member.size + -member.size % _BLOCK)
        if len(padded) < member.size:
            raise UnreadableError(f"The archive ends in the middle of file {number + 1}. Send all of it.")
        content = padded[: member.size]
        if member.type in _FILES:
            number += 1
            yield [(number, content, _name(name or member.name))]
            name = ""
        elif member.type == tarfile.GNUTYPE_LONGNAME:
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif member.type == tarfile.XHDTYPE:
            name = _pax_path(content) or name
        elif member.type in _PASSED_OVER:
            name = ""
        else:
            raise UnreadableError(f"What follows file {number} is no plain file. Leave links and the like out.")
    await reader.rest()


def _bounded(size: int, number: int) -> None:
    if not 0 <= size <= LARGEST:
        raise UnreadableError(f"File {number} of the archive is larger than {LARGEST >> 20} MiB. Leave it out.")


def _name(path: str) -> str:
    return path.removeprefix("./")


def _pax_path(records: bytes) -> str:
    """Return the path that a pax header gives the file behind it: records of `length key=value` (POSIX.1-2008)."""
    for record in records.split(b"\n"):
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return ""


class _Reader:
    """Octets as they come, taken by number, with gzip undone."""

    def __init__(self, octets: AsyncIterator[bytes]) -> None:
        self._octets = sliced(octets)
        self._first = b""  # until it is known whether they are gzip's
        self._inflater: zlib._Decompress | None = None
        self._rest = bytearray()

    async def take(self, size: int) -> bytes:
        """Return so many octets, or what is left."""
        while len(self._rest) < size and (piece := await anext(self._octets, b"")):
            if len(self._first) < len(_GZIP):
                self._first += piece
                if len(self._first) < len(_GZIP):
                    continue
                piece = self._first
                self._inflater = zlib.decompressobj(_GZIP_WINDOW) if piece.startswith(_GZIP) else None
            self._rest += piece if self._inflater is None else self._inflated(self._inflater, piece)
        if len(self._rest) < size and self._inflater is not None and not self._inflater.eof:
            raise UnreadableError("It ends in the middle of its gzip. Send all of it.")
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken

    async def rest(self) -> None:
        """Read what follows the archive's end: whoever sends it wants to be rid of it."""
        async for _ in self._octets:
            pass

    def _inflated(self, inflater: "zlib._Decompress", piece: bytes) -> bytes:
        plain = b""
        try:
            while piece:
                if inflater.eof:  # a gzip file may consist of several (RFC 1952 section 2.2)
                    self._inflater = inflater = zlib.decompressobj(_GZIP_WINDOW)
                plain += inflater.decompress(piece, LARGEST - len(plain))
                if len(plain) >= LARGEST:
                    raise UnreadableError("It inflates to so much at once that it is no archive of messages.")
                piece = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        except zlib.error:
            raise UnreadableError("Its gzip cannot be read. Make it anew.") from None
        return plain
