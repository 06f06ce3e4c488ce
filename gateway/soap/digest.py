"""A body's digest: whole and strict for bulk, by its beginning for real-time, from memory where that is sound.

Rules that always hold:
- The digest does not depend on how the body was cut into pieces, nor on prefixes, white space, encoding or compression.
- What is not understood is `Style.UNKNOWN`, with a reason that quotes nothing: doubt is decided by the catalogue,
  not here.
- Nothing raises because of a message, except what makes it unreadable at all (`MalformedBodyError`, `TooLargeError`).
- The body is never changed.
"""

import re
from collections.abc import Generator

from gateway.soap.coding import Inflater, MalformedBodyError, TooLargeError, UnknownCharsetError, override
from gateway.soap.envelope import SLICE, Envelope, Selectors
from gateway.soap.multipart import UnsoundMultipartError, is_multipart, root_part
from policies.model import Digest, Style

PEEK_LIMIT = 256 * 1024
"""Bytes after which a real-time message is given up: some hundred times the largest request seen."""
MAX_PREFIX = 4096
MAX_PREFIXES = 32
_START_TAG = re.compile(rb"""<[^>"']*(?:"[^"]*"[^>"']*|'[^']*'[^>"']*)*>""")
_NO_SELECTORS: Selectors = {}


def digest(
    body: bytes, *, content_type: str = "", content_encoding: str = "", selectors: Selectors = _NO_SELECTORS
) -> Digest:
    """Read a whole body strictly, at once. Raises as `digesting` does."""
    steps = digesting(body, content_type=content_type, content_encoding=content_encoding, selectors=selectors)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Digest = end.value
            return found


def digesting(
    body: bytes, *, content_type: str, content_encoding: str, selectors: Selectors
) -> Generator[None, None, Digest]:
    """Read a whole body strictly, pausing at each yield: a mebibyte takes some 20 ms, which others would feel.

    Raises:
        MalformedBodyError: its compression cannot be read.
        TooLargeError: it is larger than 8 MiB once inflated.
    """
    inflater = Inflater(content_encoding)
    if is_multipart(content_type):
        try:
            content_type, body = root_part((yield from _inflated(inflater, body)), content_type)
        except UnsoundMultipartError as unsound:
            return _unknown(str(unsound))
        inflater = Inflater("")
    envelope: Envelope | None = None
    for plain in inflater.pieces(body, SLICE):
        if envelope is not None:
            yield  # between slices only: of what fits into one, nothing waits half read
        else:
            try:
                envelope = Envelope(override(content_type, plain[:256]), selectors, early=False)
            except UnknownCharsetError:
                return _unknown("the Content-Type names an encoding that is not read")
        envelope.feed(plain, last=False)
    inflater.finish()
    if envelope is None:
        return _unknown("it is empty")
    envelope.feed(b"", last=True)
    envelope.release()
    yield from envelope.read_string()
    return envelope.result()


def _inflated(inflater: Inflater, body: bytes) -> Generator[None, None, bytes]:
    parts: list[bytes] = []
    for part in inflater.pieces(body, SLICE):
        parts.append(part)
        yield
    inflater.finish()
    return b"".join(parts)


class Peek:
    """Reads a real-time body as it passes, no further than needed."""

    def __init__(self, content_type: str, content_encoding: str, selectors: Selectors) -> None:
        self._content_type = content_type
        self._selectors = selectors
        self._envelope: Envelope | None = None
        self._verdict: Digest | None = None
        self._read = 0
        self._start = b""
        self._parts: list[bytes] | None = [] if is_multipart(content_type) else None
        try:
            self._inflater = Inflater(content_encoding, PEEK_LIMIT)
        except MalformedBodyError:
            self._verdict = _unknown("a coding that is not read")

    def feed(self, data: bytes) -> bool:
        """Take the next piece; return whether nothing more is needed."""
        if self._verdict is not None:
            return True
        try:
            plain = self._inflater.feed(data)
        except (MalformedBodyError, TooLargeError):
            self._verdict = _unknown("its compression cannot be read")
            return True
        self._read += len(plain)
        if self._parts is not None:
            self._parts.append(plain)
            return self._read > PEEK_LIMIT
        return self._feed(plain)

    def _feed(self, plain: bytes) -> bool:
        if self._envelope is None:
            self._start += plain  # enough of it to tell the encoding
            if len(self._start) < 4:
                return False
            try:
                self._envelope = Envelope(override(self._content_type, self._start), self._selectors, early=True)
            except UnknownCharsetError:
                self._verdict = _unknown("the Content-Type names an encoding that is not read")
                return True
            plain = self._start
        self._envelope.feed(plain, last=False)
        if self._read > PEEK_LIMIT and not self._envelope.done:
            self._envelope.stop("nothing was found in its first 256 KiB")
        return self._envelope.done or bool(self._envelope.why)

    def result(self) -> Digest:
        """Return what was understood."""
        if self._verdict is None and self._parts is not None:
            self._read_root(b"".join(self._parts))
        if self._verdict is not None:
            return self._verdict
        if self._envelope is None:
            return _unknown("it is empty")
        if not self._envelope.done:
            self._envelope.feed(b"", last=True)
        self._envelope.release()
        for _ in self._envelope.read_string():
            pass
        self._verdict = self._envelope.result()
        return self._verdict

    def _read_root(self, body: bytes) -> None:
        try:
            self._content_type, root = root_part(body, self._content_type, whole=self._read <= PEEK_LIMIT)
        except UnsoundMultipartError as unsound:
            self._verdict = _unknown(str(unsound))
        else:
            self._feed(root)

    def prefix(self, body: bytes) -> bytes | None:
        """Return the octets that decide the digest of `body`, where no others can: up to the operation's start tag's
        end."""
        envelope = self._envelope
        if envelope is None or not envelope.done or self._parts is not None or envelope.started_at < 0:
            return None
        if self.result().style is not Style.SOA:
            return None
        tag = _START_TAG.match(body, envelope.started_at)
        return body[: tag.end()] if tag is not None and tag.end() <= MAX_PREFIX else None


class PrefixCache:
    """Remembers digests by the octets that decide them. Sound, not a guess: equal octets are read alike.

    It helps where a client's envelope and header repeat exactly; a message id or time in the header makes it miss.
    """

    def __init__(self) -> None:
        self._known: list[tuple[bytes, str, Digest]] = []

    def lookup(self, body: bytes, content_type: str) -> Digest | None:
        """Return the digest of a body that is not compressed, if its beginning is known."""
        for index, (prefix, kind, known) in enumerate(self._known):
            if body.startswith(prefix) and kind == content_type:
                if index:
                    self._known.insert(0, self._known.pop(index))
                return known
        return None

    def learn(self, body: bytes, content_type: str, peek: Peek) -> None:
        """Remember what `peek` found in an uncompressed body, if its beginning decides it."""
        if b"\x00" in body[:4] or (prefix := peek.prefix(body)) is None:
            return
        self._known.insert(0, (prefix, content_type, peek.result()))
        del self._known[MAX_PREFIXES:]


def _unknown(why: str) -> Digest:
    return Digest(Style.UNKNOWN, unsound=why)
