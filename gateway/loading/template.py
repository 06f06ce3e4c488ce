"""An envelope with `{{column}}` where the values of a CSV row go.

Rules that always hold:
- Values are XML-escaped, in whatever depth they stand: inside the document that the classic style's `xmlString` carries
  as escaped text, twice. So a value can never be markup.
- A value may stand in text and in an attribute, and nowhere else: not in a name, a namespace, a comment, a CDATA
  section (but for that of `xmlString`).
- `fixed_digest` says that every row has the same digest, and does so only if no value has a part in it: then a row's
  digest differs from the template's in nothing that is looked at.
"""

import re
from collections.abc import Callable, Mapping
from xml.parsers import expat
from xml.sax.saxutils import escape

from gateway.loading.declared import is_utf8
from gateway.loading.submission import UnreadableError
from gateway.soap import MalformedBodyError, TooLargeError, digest
from gateway.soap.envelope import MAX_INNER, Selectors
from gateway.soap.multipart import is_multipart
from gateway.soap.stale import not_storable
from policies.model import Digest, Style

_PLACE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 section 2.2
_QUOTES = {'"': "&quot;", "'": "&apos;"}
_MARK = re.compile("\ue000([0-9]+)\ue001")
"""Stands for a place while the template is looked at. Private characters: XML has them in text, never in names."""
_STRING = "xmlString"
LONGEST_VALUE = 4096
"""Characters: a value is a number, a name or a date."""


class Template:
    """A template, taken apart. Raises UnreadableError when it cannot be one."""

    def __init__(self, text: str, selectors: Selectors, content_type: str) -> None:
        text = text.lstrip("\ufeff")
        parts = _PLACE.split(text)
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(parts[1::2]))
        if not self.columns:
            raise UnreadableError("The template has no {{column}}: every row would ask the same. Put one in.")
        if "{{" in "".join(parts[::2]) or "\ue000" in text or "\ue001" in text:
            raise UnreadableError("The template has {{ without }}, or private characters. Write {{column}}.")
        marked = "".join(_between(parts[::2], [f"\ue000{n}\ue001" for n in range(len(parts) // 2)])).encode("utf-8")
        if not is_utf8(marked, content_type) or is_multipart(content_type):
            raise UnreadableError("The template is sent as one document in UTF-8, and says otherwise. Correct it.")
        found = _digest(marked, selectors, content_type)
        times = _times_escaped(marked, found, parts[1::2])
        self._first = parts[0]
        self._rest = [(parts[n], times[n // 2], parts[n + 1]) for n in range(1, len(parts), 2)]
        self.fixed_digest: Digest | None = None if any(map(_MARK.search, _said(found))) else found

    def rendered(self, values: Mapping[str, str]) -> tuple[bytes, Digest | None]:
        """Return the message with these values, and its digest where that is known.

        Raises ValueError for what XML cannot hold, or is too long.
        """
        pieces = [self._first]
        for place, times, text in self._rest:
            value = values[place]
            if len(value) > LONGEST_VALUE:
                raise ValueError
            if not (value.isascii() and value.isalnum()):
                if _NOT_IN_XML.search(value):
                    raise ValueError
                for _ in range(times):
                    value = escape(value, _QUOTES)
            pieces += (value, text)
        body = "".join(pieces).encode("utf-8")
        # What is larger may be beyond a bound that the template is within.
        return body, self.fixed_digest if len(body) <= MAX_INNER else None


def _between(texts: list[str], others: list[str]) -> list[str]:
    pairs = zip(texts, [*others, ""], strict=True)
    return [one for pair in pairs for one in pair]


def _digest(marked: bytes, selectors: Selectors, content_type: str) -> Digest:
    try:
        found = digest(marked, content_type=content_type, selectors=selectors)
    except (MalformedBodyError, TooLargeError):
        raise UnreadableError("The template is too large.") from None
    if found.style is Style.UNKNOWN:
        why = f"{found.unsound}"
        if "well-formed" in why:
            why += ". A {{column}} may stand in text and in the value of an attribute only"
        raise UnreadableError(f"The template is no message that can be sent: {why}.")
    if why := not_storable(marked):
        raise UnreadableError(f"A message of it {why}. Leave WS-Security times, nonces and passwords out.")
    return found


def _said(found: Digest) -> list[str]:
    """Return every text of a message that its digest has in it."""
    said = [text for one in found.operations for text in (one.name, one.namespace, one.version, one.inner)]
    return said + [text for choice in found.choices for text in choice]


def _times_escaped(marked: bytes, found: Digest, columns: list[str]) -> list[int]:
    """Return how often the value of each place is escaped."""
    outer = _Places(marked, string=_STRING if found.style is Style.SSDN else "")
    inner = _Places(outer.string.lstrip("\ufeff \t\r\n").encode("utf-8"), "utf-8") if outer.string else None
    times: list[int] = []
    for place, column in enumerate(columns):
        in_string = inner is not None and place in outer.in_string
        around = outer.in_text | outer.in_cdata if in_string else outer.in_text
        within = inner.in_text if in_string and inner is not None else around
        if place not in around or place not in within:
            raise UnreadableError(
                f"The template has {{{{{column}}}}} where no value can stand: in a namespace, a comment, a CDATA "
                "section. A {{column}} may stand in text and in the value of an attribute."
            )
        times.append(in_string + (place in outer.in_text))
    return times


class _Places:
    """Finds what the marks of a document, known to be sound, stand in."""

    def __init__(self, document: bytes, encoding: str | None = None, string: str = "") -> None:
        self.in_text: set[int] = set()  #: in text or the value of an attribute
        self.in_cdata: set[int] = set()
        self.in_string: set[int] = set()  #: in the text of the element named `string`
        self.string = ""  #: that text
        self._name = string
        self._path: list[str] = []
        self._text: list[str] = []
        self._cdata = False
        parser = expat.ParserCreate(encoding, "}")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._flushing(self._path.pop)
        parser.StartCdataSectionHandler = self._flushing(lambda: self._in_cdata(True))
        parser.EndCdataSectionHandler = self._flushing(lambda: self._in_cdata(False))
        parser.CommentHandler = self._flushing(lambda: None)
        parser.ProcessingInstructionHandler = self._flushing(lambda: None)
        parser.CharacterDataHandler = self._text.append
        parser.Parse(document, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._flush()
        self._path.append(name.rpartition("}")[2])
        for value in attributes.values():  # declarations of namespaces are not among them
            self.in_text |= _marks(value)

    def _flushing(self, then: Callable[[], object]) -> Callable[..., None]:
        def handler(*_: object) -> None:
            self._flush()
            then()

        return handler

    def _in_cdata(self, value: bool, /) -> None:
        self._cdata = value

    def _flush(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        (self.in_cdata if self._cdata else self.in_text).update(_marks(text))
        if self._name and self._path and self._path[-1] == self._name:
            self.in_string |= _marks(text)
            self.string += text


def _marks(text: str) -> set[int]:
    return {int(number) for number in _MARK.findall(text)}
