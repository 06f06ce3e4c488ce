"""What a message and its Content-Type say of its encoding, and the Content-Type of one that was given none.

What comes as text (NDJSON's `body`, a CSV template) goes out as UTF-8, so it must not say anything else of itself; what
comes as octets (`base64`, archives) goes out as it is, and its Content-Type must not contradict it: the charset of a
Content-Type outranks a document's declaration (RFC 7303 section 3.2).
"""

import re

from policies.model import SoapVersion

_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:-]+)["']""", re.ASCII)
_CHARSET = re.compile(r"""charset\s*=\s*"?([^\s;"]+)""", re.IGNORECASE)
_UTF_8 = ("utf-8", "utf8")
_TYPES = {SoapVersion.SOAP_12: "application/soap+xml"}
"""SOAP 1.2 part 2 section 7.1.4; else SOAP 1.1 section 6."""


def is_utf8(body: bytes, content_type: str = "") -> bool:
    """Say whether neither a message nor its Content-Type claims an encoding other than UTF-8."""
    charset = _CHARSET.search(content_type)
    if charset is not None and charset[1].lower() not in _UTF_8:
        return False
    if b"\x00" in body[:4] or body.startswith((b"\xfe\xff", b"\xff\xfe")):
        return False
    declared = _DECLARED.match(body)
    return declared is None or declared[1].lower().decode("ascii") in _UTF_8


def type_of(soap: SoapVersion | None, *, utf8: bool) -> str:
    """Return the Content-Type of a message that was given none: with a charset only where that is surely right."""
    return _TYPES.get(soap or SoapVersion.SOAP_11, "text/xml") + ("; charset=utf-8" if utf8 else "")
