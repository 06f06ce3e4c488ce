"""What an answer says of its request: faults and business statuses, in codes. Read with lxml from a copy.

New style: `status` with `value` and `code`, found by name, of the answer as a whole and of each source; classic style
(SSDN): `ReturnCode` and the `ReasonCode`s of each reply inside `xmlString`; faults: their code, and the codes in their
detail. Where they stand: the BCSS's contracts, see policies/statuses.yaml for what they mean.

Rules that always hold:
- No DTD, no entity, nothing fetched, sizes bounded; whatever a body holds, nothing is raised: it is not readable.
- Only what looks like a code is returned, and never anything that may be a national number.

Decides nothing: `policies.recovery` does.
"""

import re
from collections.abc import Iterator

from lxml import etree

from gateway.soap.coding import Inflater, MalformedBodyError, TooLargeError
from gateway.soap.multipart import UnsoundMultipartError, is_multipart, root_part
from policies.recovery import AnswerFacts

LARGEST = 8 << 20
"""Octets of an answer that are read; the largest seen has 26 kB."""
DEEPEST = 4
"""Levels below the answer's element at which a status may stand: its own, and those of single sources."""
MOST = 32
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}")
_LIKE_A_NATIONAL_NUMBER = re.compile(r"\d{11}")
_ENVELOPES = ("http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope")
_FAULT_CODES = frozenset({"reasonCode", "ReasonCode", "Code", "code"})


def read_answer(status: int, content_type: str, content_encoding: str, body: bytes) -> AnswerFacts:
    """Read an answer.

    Args:
        status: of HTTP.
        content_type, content_encoding: as they came; empty where there was none.
    """
    try:
        body_element = _body_of(_plain(content_type, content_encoding, body))
    except (MalformedBodyError, TooLargeError, UnsoundMultipartError, etree.XMLSyntaxError, ValueError):
        body_element = None
    child = next(_elements(body_element), None) if body_element is not None else None
    if child is None:
        return AnswerFacts(status, readable=body_element is not None)
    name = _local(child)
    if name == "Fault":
        return AnswerFacts(status, fault=_fault_code(child), codes=_codes(child, _FAULT_CODES), ticket=_ticket(child))
    if name == "xmlString":
        return _ssdn(status, child.text or "")
    statuses = [one for one in _within(child, DEEPEST) if _local(one) == "status"]
    return AnswerFacts(
        status,
        codes=_texts(statuses, "code"),
        values=_texts(statuses, "value"),
        ticket=_ticket(child),
    )


def _plain(content_type: str, content_encoding: str, body: bytes) -> bytes:
    if len(body) > LARGEST:
        raise TooLargeError
    inflater = Inflater(content_encoding, LARGEST)
    body = inflater.feed(body)
    inflater.finish()
    return root_part(body, content_type)[1] if is_multipart(content_type) else body


def _parsed(octets: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    root = etree.fromstring(octets, parser)
    if root.getroottree().docinfo.doctype:
        raise ValueError("a document type declaration")
    return root


def _body_of(octets: bytes) -> etree._Element | None:
    root = _parsed(octets)
    envelope = etree.QName(root)
    if envelope.localname != "Envelope" or envelope.namespace not in _ENVELOPES:
        return None
    return root.find(f"{{{envelope.namespace}}}Body")


def _ssdn(status: int, document: str) -> AnswerFacts:
    try:
        # It is text already: an encoding that it declares means nothing, and lxml refuses text that declares one.
        octets = re.sub(r"^\s*<\?xml[^>]*\?>", "", document.lstrip("\ufeff")).encode("utf-8", "surrogatepass")
        reply = _parsed(octets)
    except (etree.XMLSyntaxError, ValueError):
        return AnswerFacts(status, readable=False)
    summaries = [one for one in _within(reply, DEEPEST) if _local(one) == "ResultSummary"]
    details = [detail for one in summaries for detail in _elements(one) if _local(detail) == "Detail"]
    return AnswerFacts(
        status,
        codes=_texts(details, "ReasonCode"),
        return_codes=_texts(summaries, "ReturnCode"),
        ticket=_ticket(reply),
    )


def _fault_code(fault: etree._Element) -> str:
    for one in _within(fault, 3):
        if _local(one) in ("faultcode", "Value") and one.text:
            return next(iter(_safe(one.text.rpartition(":")[2])), "fault")
    return "fault"


def _codes(element: etree._Element, names: frozenset[str]) -> tuple[str, ...]:
    found = [one.text or "" for one in _within(element, 6) if _local(one) in names and not len(one)]
    found += [one.get("Code") or "" for one in _within(element, 6) if _local(one) == "SystemError"]
    return tuple(dict.fromkeys(code for text in found for code in _safe(text)))[:MOST]


def _texts(elements: list[etree._Element], name: str) -> tuple[str, ...]:
    texts = (child.text or "" for one in elements for child in _elements(one) if _local(child) == name)
    return tuple(dict.fromkeys(code for text in texts for code in _safe(text)))[:MOST]


def _ticket(element: etree._Element) -> str:
    for one in _within(element, 5):
        if _local(one) in ("ticketCBSS", "Ticket"):
            return next(iter(_safe(one.text or "")), "")
    return ""


def _safe(text: str) -> Iterator[str]:
    code = text.strip()
    if _CODE.fullmatch(code) and not _LIKE_A_NATIONAL_NUMBER.search(code):
        yield code


def _elements(element: etree._Element) -> Iterator[etree._Element]:
    return (child for child in element if isinstance(child.tag, str))


def _within(element: etree._Element, depth: int) -> Iterator[etree._Element]:
    for child in _elements(element):
        yield child
        if depth > 1:
            yield from _within(child, depth - 1)


def _local(element: etree._Element) -> str:
    return etree.QName(element).localname
