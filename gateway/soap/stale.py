"""Whether a message must not be stored: it would be stale, or a replay, when it is sent, or holds a credential.

WS-Security (OASIS Web Services Security 1.1.1, sections 10 and Username Token Profile 3.1): a `Timestamp` that expires,
a `UsernameToken` with a nonce or a time of its making, and a SAML assertion (SAML Token Profile 1.1.1) are good for
minutes only. Signatures alone are not. A password is a credential, and none is ever stored.

Rules that always hold: only the Header is read; nothing raises because of a message; what cannot be read says nothing.
"""

from xml.parsers import expat

_WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd}"
_WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd}"
_PIECE = 4096
_MARKS = (b"oasis-200401-wss", b"\x00")
"""Octets without which a message has no WS-Security; UTF-16 is told by its zeros."""
_STALE = "would be stale when it is sent"
_ASSERTION = f"{_STALE}: its SAML assertion is good for minutes"
_WHY = {
    (f"{_WSU}Timestamp", f"{_WSU}Expires"): f"{_STALE}: its WS-Security timestamp expires",
    (f"{_WSSE}UsernameToken", f"{_WSSE}Nonce"): f"{_STALE}: its user name token has a nonce, good for one sending",
    (f"{_WSSE}UsernameToken", f"{_WSU}Created"): f"{_STALE}: its user name token says when it was made",
    (f"{_WSSE}UsernameToken", f"{_WSSE}Password"): "holds a password, and credentials are never stored",
    (f"{_WSSE}Security", "urn:oasis:names:tc:SAML:1.0:assertion}Assertion"): _ASSERTION,
    (f"{_WSSE}Security", "urn:oasis:names:tc:SAML:2.0:assertion}Assertion"): _ASSERTION,
}


class _Found(Exception):  # noqa: N818  # leaves the parser; nobody else sees it
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def not_storable(body: bytes) -> str:
    """Say why a message, not compressed, must not be stored, as the end of a sentence about it; empty: it may."""
    if not any(mark in body for mark in _MARKS):
        return ""
    path: list[str] = []

    def start(name: str, _attributes: object) -> None:
        if len(path) == 1 and name.endswith("}Body"):
            raise _Found("")
        if path and (why := _WHY.get((path[-1], name))) is not None:
            raise _Found(why)
        path.append(name)

    def end(_name: str) -> None:
        path.pop()

    def doctype(*_: object) -> None:
        raise _Found("")

    parser = expat.ParserCreate(None, "}")
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, doctype
    try:
        for at in range(0, len(body), _PIECE):
            parser.Parse(body[at : at + _PIECE], False)
    except _Found as found:
        return found.why
    except (expat.ExpatError, ValueError, LookupError):
        return ""  # unsound: classification says so
    return ""
