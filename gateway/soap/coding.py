"""What a body is before it is XML: compressed or not, and in which encoding of characters. Works on a copy; what is
relayed stays.

Rules that always hold: what is inflated is bounded (a bomb costs `MAX_INFLATED` bytes and no more), several codings
on top of each other and codings that are not known are unreadable, and a truncated or trailing body is not taken for
a whole one.
"""

import re
import zlib
from collections.abc import Iterator

MAX_INFLATED = 8 << 20
"""Bytes that a body may have once inflated: eight times what a bulk body may have as it comes."""
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits
_CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([^\s"';,]+)""", re.IGNORECASE)
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_LIKE_ASCII = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "latin1", "windows-1252"}
_UTF_16 = {"utf-16", "utf-16le", "utf-16be"}


class MalformedBodyError(Exception):
    """The body's compression cannot be read."""


class TooLargeError(Exception):
    """The body is larger, once inflated, than it may be."""


class UnknownCharsetError(Exception):
    """The Content-Type names an encoding of characters that is not read here."""


class Inflater:
    """Undoes a Content-Encoding, piece by piece.

    Raises:
        MalformedBodyError: from all methods, when the coding is not known or the data does not follow it.
    """

    def __init__(self, content_encoding: str, limit: int = MAX_INFLATED) -> None:
        coding = content_encoding.strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise MalformedBodyError
        self._coding = coding
        self._left = limit
        self._inflate: zlib._Decompress | None = None
        if coding in ("gzip", "x-gzip"):
            self._inflate = zlib.decompressobj(_GZIP)

    def feed(self, data: bytes) -> bytes:
        """Return what the next piece inflates to. Raises TooLargeError past the limit."""
        return b"".join(self.pieces(data, self._left + 1))

    def pieces(self, data: bytes, size: int) -> Iterator[bytes]:
        """Yield the same in pieces of at most `size` octets, so that whoever inflates much can pause in between."""
        if self._coding in ("", "identity"):
            for start in range(0, len(data), size):
                yield data[start : start + size]
            return
        while data:
            yield self._inflated(data, size)
            assert self._inflate is not None
            data = self._inflate.unconsumed_tail

    def _inflated(self, data: bytes, size: int) -> bytes:
        if self._inflate is None:  # deflate means zlib's format (RFC 9110 section 8.4.1.2), but some send it raw
            self._inflate = zlib.decompressobj(_ZLIB if data[0] & 0x0F == 8 else _RAW)
        try:
            plain = self._inflate.decompress(data, min(size, self._left + 1))
        except zlib.error:
            raise MalformedBodyError from None
        self._left -= len(plain)
        if self._left < 0:
            raise TooLargeError
        if self._inflate.unused_data:
            raise MalformedBodyError
        return plain

    def finish(self) -> None:
        """Say that there is no more: what is not whole is malformed."""
        if self._inflate is not None and not self._inflate.eof:
            raise MalformedBodyError


def override(content_type: str, beginning: bytes) -> str | None:
    """Return the encoding that expat must be told, or None where the document says it itself.

    A byte order mark comes before the charset of the Content-Type, that before the document's declaration (RFC 7303
    section 3). Where both say something that reads ASCII alike, the declaration is followed: names of operations are
    ASCII.

    Raises:
        UnknownCharsetError: the Content-Type names an encoding that is not read here.
    """
    if beginning.startswith(_BYTE_ORDER_MARKS):
        return None
    named = _CHARSET.search(content_type)
    if named is None:
        return None
    charset = named[1].lower()
    if charset in _UTF_16:
        return charset
    if charset not in _LIKE_ASCII:
        raise UnknownCharsetError
    if beginning.startswith(b"<?xml") and b"encoding" in beginning.partition(b"?>")[0]:
        return None
    return "utf-8" if charset == "utf8" else charset
