"""What an answer says of its request: faults and business statuses, in codes. Read with lxml from a copy.

New style: `status` with `value` and `code`, found by name, of the answer as a whole and of each source; classic style
(SSDN): the `ResultSummary` of the whole and of each reply inside `xmlString`; faults: their code and subcodes, and the
codes in their detail. Where they stand: the BCSS's contracts; what they mean: policies/statuses.yaml.

Rules that always hold:
- No DTD, no entity, nothing fetched, sizes bounded; whatever a body holds, nothing is raised: it is not readable.
- Only what looks like a code is returned, and never anything that may be a national number.

Decides nothing: `policies.recovery` does.
"""

import re
from itertools import islice

from lxml import etree

from gateway.soap.coding import Inflater, MalformedBodyError, TooLargeError, UnknownCharsetError, override
from gateway.soap.multipart import UnsoundMultipartError, is_multipart, root_part
from policies.recovery import AnswerFacts
from policies.statuses import Status

LARGEST = 8 << 20
"""Octets of an answer that are read; the largest seen has 26 kB."""
DEEPEST = 4
"""Levels below the answer's element at which a status may stand: its own, and those of single sources."""
MOST = 32
"""Codes, or statuses, of one answer that are kept."""
LOOKED_AT = 1000
"""Elements called `status` of one answer that are looked at."""
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}")
_LIKE_A_NATIONAL_NUMBER = re.compile(r"\d(?:[.:_-]?\d){10}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_DECLARATION = re.compile(r"\s*<\?xml\s[^>]*\?>")
_ENVELOPES = ("http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope")
_VALUE = "{*}Value"
_DETAILS = ("{*}reasonCode", "{*}ReasonCode", "{*}Code", "{*}code")
_TICKETS = ("{*}ticketCBSS", "{*}Ticket")
_UNREADABLE = (
    MalformedBodyError,
    TooLargeError,
    UnknownCharsetError,
    UnsoundMultipartError,
    etree.LxmlError,
    LookupError,
    ValueError,
)


def read_answer(status: int, content_type: str, content_encoding: str, body: bytes) -> AnswerFacts:
    """Read an answer.

    Args:
        status: of HTTP.
        content_type, content_encoding: as they came; empty where there was none.
    """
    try:
        soap_body = _body_of(content_type, content_encoding, body)
        if soap_body is None:
            return AnswerFacts(status, readable=False)
        child = next(soap_body.iterchildren("*"), None)
        if child is None:
            return AnswerFacts(status)
        match _local(child):
            case "Fault":
                return _fault(status, child)
            case "xmlString":
                return _classic(status, child.text or "")
            case _:
                return _new_style(status, child)
    except _UNREADABLE:
        return AnswerFacts(status, readable=False)


def _body_of(content_type: str, content_encoding: str, body: bytes) -> etree._Element | None:
    if len(body) > LARGEST:
        raise TooLargeError
    inflater = Inflater(content_encoding, LARGEST)
    octets = inflater.feed(body)
    inflater.finish()
    if is_multipart(content_type):
        content_type, octets = root_part(octets, content_type)
    root = _parsed(octets, override(content_type, octets))
    for namespace in _ENVELOPES:
        if root.tag == f"{{{namespace}}}Envelope":
            return root.find(f"{{{namespace}}}Body")
    return None


def _parsed(octets: bytes, encoding: str | None = None) -> etree._Element:
    parser = etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    root = etree.fromstring(octets, parser)
    if root.getroottree().docinfo.internalDTD is not None:
        raise ValueError("a document type declaration")
    return root


# The three kinds of answers.


def _fault(status: int, fault: etree._Element) -> AnswerFacts:
    own = [*fault.iterfind("{*}faultcode"), *(value for one in fault.iterfind("{*}Code") for value in one.iter(_VALUE))]
    name, *subcodes = [_safe(one.text).rpartition(":")[2] for one in own[:MOST]] or [""]
    details = [_safe(one.text) for one in islice(fault.iter(*_DETAILS), MOST)]
    details += [_safe(one.get("Code")) for one in islice(fault.iter("{*}SystemError"), MOST)]
    codes = dict.fromkeys(filter(None, (*subcodes, *details)))
    return AnswerFacts(status, fault=name or "fault", codes=tuple(codes), ticket=_ticket(fault))


def _classic(status: int, document: str) -> AnswerFacts:
    # It is text already: an encoding that it declares means nothing any more.
    text = document.lstrip("\ufeff")
    declaration = _DECLARATION.match(text)
    reply = _parsed(text[declaration.end() if declaration else 0 :].strip().encode("utf-8", "surrogatepass"), "utf-8")
    wholes = [_summary(one) for one in reply.iterfind("{*}ReplyContext/{*}ResultSummary")]
    parts = [
        _summary(summary, of=_text(one, "ServiceId"))
        for one in islice(reply.iterfind("{*}ServiceReply"), MOST)
        for summary in one.iterfind("{*}ResultSummary")
    ]
    if not wholes and not parts:
        return AnswerFacts(status, readable=False)
    return AnswerFacts(status, whole=next(iter(wholes), None), parts=tuple(parts), ticket=_ticket(reply))


def _summary(summary: etree._Element, of: str = "") -> Status:
    codes = [_safe(one.text) for one in islice(summary.iterfind("{*}Detail/{*}ReasonCode"), MOST)]
    known = tuple(dict.fromkeys(code for code in codes if code))
    return Status(known, value=_safe(summary.get("ok")), return_code=_text(summary, "ReturnCode"), of=of)


def _new_style(status: int, answer: etree._Element) -> AnswerFacts:
    own = next(answer.iterfind("{*}status"), None)
    parts: list[Status] = []
    for one in islice(answer.iter("{*}status"), LOOKED_AT):
        parent = one.getparent()
        if one is own or parent is None or answer not in islice(one.iterancestors(), DEEPEST):
            continue
        of = _safe(parent.get("authenticSource")) or _local(parent).removesuffix("Result")
        if (part := _status(one, of)) is not None:
            parts.append(part)
    whole = _status(own) if own is not None else None
    return AnswerFacts(status, whole=whole, parts=tuple(parts[:MOST]), ticket=_ticket(answer))


def _status(element: etree._Element, of: str = "") -> Status | None:
    code, value = _text(element, "code"), _text(element, "value")
    return Status((code,) if code else (), value, of=of) if code or value else None


# Text, with nothing personal.


def _ticket(element: etree._Element) -> str:
    return next((_safe(one.text) for one in element.iter(*_TICKETS)), "")


def _text(element: etree._Element, name: str) -> str:
    return _safe(element.findtext(f"{{*}}{name}"))


def _safe(text: str | None) -> str:
    code = (text or "").strip()
    if _UUID.fullmatch(code):  # the tickets of the BCSS; their digits may look like anything
        return code
    return code if _CODE.fullmatch(code) and not _LIKE_A_NATIONAL_NUMBER.search(code) else ""


def _local(element: etree._Element) -> str:
    return etree.QName(element).localname
