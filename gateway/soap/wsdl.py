"""A WSDL or schema whose addresses lead to the gateway: the octets of attribute values are exchanged, nothing else.

The document is not written anew: expat says where the start tags are, and what the values mean; a scan of just those
tags says where the values stand.

Exchanged are `location` of `soap:address` (SOAP 1.1 and 1.2, and the HTTP binding) and of `wsdl:import`, and
`schemaLocation` of `xs:import`, `xs:include` and `xs:redefine`, where they are absolute http(s) URLs and `translate`
knows a new one. Relative ones lead to the gateway by themselves.

Rules that always hold: no DTD, no entity, nothing is fetched; what cannot be read for sure is not changed at all.
"""

import re
from collections.abc import Callable
from html import escape
from xml.parsers import expat

MAX_SIZE = 4 << 20
"""Octets: ten times the largest of the 28 contracts seen."""
_SEPARATOR = "}"
_WSDL = "http://schemas.xmlsoap.org/wsdl/"
_XSD = "http://www.w3.org/2001/XMLSchema"
_ADDRESSES = {f"{_WSDL}{binding}/{_SEPARATOR}address": "location" for binding in ("soap", "soap12", "http")}
_IMPORTS = {f"{_WSDL}{_SEPARATOR}import": "location"} | {
    f"{_XSD}{_SEPARATOR}{name}": "schemaLocation" for name in ("import", "include", "redefine")
}
_READ_ENCODINGS = {None, "utf-8", "us-ascii", "ascii", "iso-8859-1"}
_ATTRIBUTE = re.compile(rb"""\s+([^\s=<>"'/]+)\s*=\s*("[^"<]*"|'[^'<]*')""")
_NAME = re.compile(rb"<[^\s<>/]+")

Translate = Callable[[str, bool], str | None]
"""Takes an absolute URL, and whether it is the address of a service (else of a document); returns the new one, or
None: it stays."""


class UnreadableWsdlError(Exception):
    """The document cannot be read for sure; the text says why, and quotes nothing."""


def rewritten(document: bytes, translate: Translate) -> bytes:
    """Return the document with its addresses exchanged.

    Raises:
        UnreadableWsdlError: pass it on as it is.
    """
    if len(document) > MAX_SIZE:
        raise UnreadableWsdlError("it is larger than 4 MiB")
    if b"\x00" in document[:4] or document.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableWsdlError("it is not in an encoding that extends ASCII")
    pieces: list[bytes] = []
    done = 0
    for offset, attribute, fresh in _Places(translate).of(document):
        start, end = _value(document, offset, attribute)
        pieces += [document[done:start], escape(fresh).encode("ascii")]
        done = end
    return b"".join((*pieces, document[done:]))


class _Places:
    """Finds the start tags whose attribute is to be exchanged: offset, name, new value."""

    def __init__(self, translate: Translate) -> None:
        self._translate = translate
        self._found: list[tuple[int, str, str]] = []
        self._parser = parser = expat.ParserCreate(None, _SEPARATOR)
        parser.StartElementHandler = self._start
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype

    def of(self, document: bytes) -> list[tuple[int, str, str]]:
        try:
            self._parser.Parse(document, True)
        except expat.ExpatError as error:
            raise UnreadableWsdlError(f"not well-formed XML ({expat.ErrorString(error.code)})") from None
        except (ValueError, LookupError):
            raise UnreadableWsdlError("its encoding cannot be read") from None
        return self._found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        is_address = name in _ADDRESSES
        attribute = _ADDRESSES.get(name) or _IMPORTS.get(name)
        given = attributes.get(attribute, "") if attribute is not None else ""
        if attribute is None or not given.lower().startswith(("http://", "https://")):
            return
        fresh = self._translate(given, is_address)
        if fresh is not None and fresh != given:
            self._found.append((self._parser.CurrentByteIndex, attribute, fresh))

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if (encoding.lower() if encoding else None) not in _READ_ENCODINGS:
            raise UnreadableWsdlError("it declares an encoding that is not read")

    def _doctype(self, *_: object) -> None:
        raise UnreadableWsdlError("a document type declaration")


def _value(document: bytes, offset: int, attribute: str) -> tuple[int, int]:
    """Return where an attribute's value stands in the start tag at `offset`."""
    name = _NAME.match(document, offset)
    position = name.end() if name is not None else offset
    while (found := _ATTRIBUTE.match(document, position)) is not None:
        if found[1] == attribute.encode("ascii"):
            return found.start(2) + 1, found.end(2) - 1
        position = found.end()
    raise UnreadableWsdlError("an attribute that was read was not found again")
