"""An envelope with `{{column}}` where the values of a CSV row go.

Rules that always hold:
- Values are XML-escaped, in whatever depth they stand: inside the document that the classic style's `xmlString` carries
  as escaped text, twice. So a value can never be markup.
- A template that has no placeholder, a malformed one, or one inside a CDATA section that is no `xmlString`, is refused.
- `fixed_digest` says that every row has the same digest only if no value can have a part in it.
"""

import re
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from gateway.loading.submission import UnreadableError
from gateway.soap import digest
from gateway.soap.envelope import Selectors
from policies.model import Digest, Style

_PLACE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 section 2.2
_QUOTES = {'"': "&quot;", "'": "&apos;"}
_MARK = "x0placeholder0x"  # may be an element's name
LONGEST_VALUE = 4096
"""Characters: a value is a number, a name or a date."""


class Template:
    """A template, taken apart. Raises UnreadableError when it cannot be one."""

    def __init__(self, text: str, selectors: Selectors, content_type: str) -> None:
        parts = _PLACE.split(text.lstrip("\ufeff"))
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(parts[1::2]))
        if not self.columns:
            raise UnreadableError("The template has no {{column}}: every row would ask the same. Put one in.")
        if "{{" in "".join(parts[::2]):
            raise UnreadableError("The template has {{ without }}. Write {{column}}.")
        found = digest(_PLACE.sub(_MARK, text).encode(), content_type=content_type, selectors=selectors)
        if found.style is Style.UNKNOWN:
            raise UnreadableError(f"The template is no message that can be sent: {found.unsound}.")
        self._texts = parts[::2]
        self._places = parts[1::2]
        self._times = _times_escaped(self._texts, found)
        is_text = all(_is_text("".join(self._texts[: n + 1])) for n in range(len(self._places)))
        self.fixed_digest: Digest | None = found if is_text and _MARK not in _said(found) else None

    def rendered(self, values: Mapping[str, str]) -> bytes:
        """Return the message with these values. Raises ValueError for what XML cannot hold, or is too long."""
        pieces = [self._texts[0]]
        for place, times, text in zip(self._places, self._times, self._texts[1:], strict=True):
            value = values[place]
            if len(value) > LONGEST_VALUE or _NOT_IN_XML.search(value):
                raise ValueError
            for _ in range(times):
                value = escape(value, _QUOTES)
            pieces += (value, text)
        return "".join(pieces).encode("utf-8")


def _times_escaped(texts: Sequence[str], found: Digest) -> list[int]:
    """Return how often the value of each place is escaped."""
    times: list[int] = []
    before = ""
    for text in texts[:-1]:
        before += text
        in_cdata = before.rfind("<![CDATA[") > before.rfind("]]>")
        in_string = found.style is Style.SSDN and "xmlString" in before and "xmlString" in "".join(texts)[len(before) :]
        if in_cdata and not in_string:
            raise UnreadableError("The template has a {{column}} in a CDATA section. Take the section away.")
        times.append(2 if in_string and not in_cdata else 1)
    return times


def _is_text(before: str) -> bool:
    """Say whether what follows is character data, in the document and in the one inside it: there, and only there, an
    escaped value can change nothing else."""
    opened, closed = max(before.rfind("<"), before.rfind("&lt;")), max(before.rfind(">"), before.rfind("&gt;"))
    return closed > opened or before.rfind("<![CDATA[") == opened


def _said(found: Digest) -> str:
    operations = [(one.name, one.namespace, one.version, one.inner) for one in found.operations]
    return repr((operations, sorted(found.choices)))
