"""Remembers what messages of one shape ask, where that is sure: the messages of a run differ in values only.

A message's shape is the message without the plain texts between its tags. Reading a message strictly costs 60 us,
recognising its shape 7 us. It is sound, not a guess. What is learned was read strictly, and `learn` sees to it that

- behind what stands before its root element it consists of tags and texts: no `<!`, no `<?`, and no `>` but those that
  end a tag (XML 1.0, 2.4 and 3.1), so that what is left out stands between two tags, inside the root element;
- its digest depends on elements' names alone: it carries no document as text, and its operation names no sources.

Left out is only what can be nothing but text: ASCII that XML allows (2.2), without `<`, `&` and `>` (so without `]]>`).
So another message of that shape is the first one with other such texts: as well-formed, and equal in all that is looked
at. A text with anything else in it stays in the shape, and makes it another one.
"""

import re

from policies.model import Digest, Style

MOST = 256
LARGEST = 16_384
"""Octets: so that at most 4 MiB are remembered."""
_PLAIN_TEXT = re.compile(rb">[\t\n\r\x20-\x25\x27-\x3b=\x3f-\x7e]+<")
_TAGS_AND_TEXTS = re.compile(rb"(?:<[^<>!?][^<>]*>[^<>]*)+")
_DECLARATION = b"<?xml"

Shape = tuple[bytes, bytes]


class Shapes:
    """The shapes of one submission. `selectors` are the namespaces whose operations name sources in text."""

    def __init__(self, selectors: frozenset[str]) -> None:
        self._selectors = selectors
        self._known: dict[tuple[Shape, str], Digest] = {}

    def digest_of(self, body: bytes, content_type: str) -> Digest | None:
        """Return the digest of a message whose shape is known."""
        return self._known.get((shape_of(body), content_type)) if len(body) <= LARGEST else None

    def learn(self, body: bytes, content_type: str, found: Digest) -> None:
        """Remember the shape of a message that was read strictly, if its text has no part in what was found."""
        if not self._fits(found) or len(body) > LARGEST or b"\x00" in body:
            return
        shape = shape_of(body)
        if _TAGS_AND_TEXTS.fullmatch(body, len(shape[0])) is None:
            return
        if len(self._known) >= MOST:  # shapes that come once each: nothing is lost but a little time
            self._known.clear()
        self._known[shape, content_type] = found

    def _fits(self, found: Digest) -> bool:
        return found.style is Style.SOA and all(one.namespace not in self._selectors for one in found.operations)


def shape_of(body: bytes) -> Shape:
    """Return what stands before a message's root element, and the rest without its plain texts."""
    declared = body.find(b"?>") + 2 if body.startswith(_DECLARATION) else 0
    root = max(body.find(b"<", declared), 0)
    return body[:root], _PLAIN_TEXT.sub(b"><", body[root:])
