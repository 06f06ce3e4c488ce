"""Remembers what messages of one shape ask, where that is sure: the messages of a run differ in values only.

Two messages have one shape when they are the same but for the text between their tags. Reading a message strictly costs
60 us, recognising its shape 6 us. It is sound, not a guess; a message whose shape is known has the digest of the first
one, since all that a digest is made of stands in tags, and the text that differs is text whatever it says:

- Every `<` and `>` is part of the shape, so the sequence of tags is the first one's, which was read strictly. It had as
  many of one as of the other and no `<!`, so each `<` begins a tag (XML 1.0, 2.4 and 3.1) and each `>` ends one.
- The text holds no `&` (no reference), nothing but ASCII that XML allows (2.2), and nothing outside of the root element
  but white space. `]]>` cannot be in it, since there is no `>`.
- The operation names no sources in text, and carries no document as text (`fits`).
"""

import re

from policies.model import Digest, Style

MOST = 64
_TEXT = re.compile(rb">[^<>]+")
_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DECLARATION = re.compile(rb"<\?xml[^<>?]*\?>\s*<")


class Shapes:
    """The shapes of one submission. `selectors` are the namespaces whose operations name sources in text."""

    def __init__(self, selectors: frozenset[str]) -> None:
        self._selectors = selectors
        self._known: dict[tuple[bytes, str], Digest] = {}

    def digest_of(self, body: bytes, content_type: str) -> Digest | None:
        """Return the digest of a message whose shape is known."""
        shape = shape_of(body)
        return self._known.get((shape, content_type)) if shape is not None else None

    def learn(self, body: bytes, content_type: str, found: Digest) -> None:
        """Remember the shape of a message that was read strictly, if its text has no part in what was found."""
        if len(self._known) < MOST and self._fits(found) and (shape := shape_of(body)) is not None:
            self._known[shape, content_type] = found

    def _fits(self, found: Digest) -> bool:
        return found.style is Style.SOA and all(one.namespace not in self._selectors for one in found.operations)


def shape_of(body: bytes) -> bytes | None:
    """Return a message's shape; None: it is not of the plain kind whose text can be told from its tags."""
    if not body.isascii() or b"&" in body or b"<!" in body or body.count(b"<") != body.count(b">"):
        return None
    processing = body.count(b"<?")
    if processing and (processing > 1 or not _DECLARATION.match(body)):
        return None
    if _NOT_XML.search(body) or not body.rstrip().endswith(b">"):
        return None
    return _TEXT.sub(b">", body)
