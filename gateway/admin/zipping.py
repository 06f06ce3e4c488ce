"""A ZIP archive that is written as it is sent: any number of members, nothing but the member in hand in memory.

The directory at an archive's end needs a line for each member; those gather in a temporary file once they are many.
They hold numbers and names of ours, nothing of a message.

Rules that always hold: a member's octets come out as they went in; sizes are in front of each member, so that readers
that do not seek can follow; ZIP64 (APPNOTE 6.3.10, section 4.5.3) wherever a number needs it. The standard library's
zipfile keeps an object for each member: 5 GB for ten million.
"""

import struct
import zlib
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_MOST_16, _MOST_32 = 0xFFFF, 0xFFFFFFFF
_VERSION_64, _UTF_8, _DEFLATED = 45, 1 << 11, 8
_TIME, _DATE = 0, (1980 - 1980) << 9 | 1 << 5 | 1  # members have no date of their own
_FILE_MODE = 0o100600 << 16
_UNIX = 3 << 8
_HELD = 16 * 1024 * 1024
_PART = 1024 * 1024


class ZipWriter:
    """Yields an archive's octets. Used as a context, since the directory may lie in a file."""

    def __init__(self) -> None:
        self._offset = 0
        self._count = 0
        self._directory = SpooledTemporaryFile(max_size=_HELD)  # noqa: SIM115  # closed by the context

    def __enter__(self) -> "ZipWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.close()

    def member(self, name: str, content: bytes) -> bytes:
        """Return what to send for a member of less than 4 GiB."""
        path = name.encode()
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(content) + packer.flush()
        checksum, flags = zlib.crc32(content), _UTF_8
        sizes = (checksum, len(packed), len(content))
        local = _LOCAL.pack(b"PK\x03\x04", 20, flags, _DEFLATED, _TIME, _DATE, *sizes, len(path), 0)
        extra, offset = b"", self._offset
        if offset >= _MOST_32:
            extra, offset = struct.pack("<HHQ", 1, 8, offset), _MOST_32
        self._directory.write(
            _CENTRAL.pack(
                b"PK\x01\x02",
                _UNIX | _VERSION_64,
                _VERSION_64 if extra else 20,
                flags,
                _DEFLATED,
                _TIME,
                _DATE,
                *sizes,
                len(path),
                len(extra),
                0,
                0,
                0,
                _FILE_MODE,
                offset,
            )
            + path
            + extra
        )
        octets = local + path + packed
        self._offset += len(octets)
        self._count += 1
        return octets

    def end(self) -> Iterator[bytes]:
        """Yield what ends the archive."""
        begin, size = self._offset, self._directory.tell()
        self._directory.seek(0)
        while part := self._directory.read(_PART):
            yield part
        count = self._count
        if count >= _MOST_16 or begin >= _MOST_32 or size >= _MOST_32:
            yield _END_64.pack(
                b"PK\x06\x06", _END_64.size - 12, _UNIX | _VERSION_64, _VERSION_64, 0, 0, count, count, size, begin
            )
            yield _LOCATOR_64.pack(b"PK\x06\x07", 0, begin + size, 1)
        few = min(count, _MOST_16)
        yield _END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, _MOST_32), min(begin, _MOST_32), 0)
