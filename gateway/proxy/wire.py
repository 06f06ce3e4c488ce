"""Header fields and targets as bytes: what goes through, what is ours, what belongs to one hop only.

Rules that always hold:
- What passes, passes as it was written: order, case of names, repeated fields. Only space around values may differ.
- Hop-by-hop fields (RFC 9110 section 7.6.1, those that `Connection` names included) go neither way. `Content-Length`
  and `Host` cannot be named away: they carry framing and routing.
- The gateway's own tags (`X-Traffic-Class`, `X-Bulk-Run`) and `Expect` (answered here) are not passed on.
- The target's octets are kept; only the `/bulk/` tag, a route's `replace` and a foreign authority are taken off.

Never reads a body, never invents a field except `Host` (the upstream's), and, in answers, framing and our decision.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",  # goes with an h2c upgrade offer, which is ignored
    }
)
_NOT_FORWARDED = HOP_BY_HOP | {b"expect", b"x-traffic-class", b"x-bulk-run", b"host"}
_CANNOT_BE_NAMED_AWAY = frozenset({b"content-length", b"host", b"content-type", b"content-encoding"})
_READ = frozenset(
    {
        b"transfer-encoding",
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-type",
        b"cookie",
        b"expect",
        b"prefer",
        b"soapaction",
        b"traceparent",
        b"user-agent",
        b"x-bulk-run",
        b"x-request-id",
        b"x-traffic-class",
    }
)
BULK_TAG = b"/bulk/"
OWN_PATHS = b"/.gateway/"
"""Paths that the gateway keeps for itself on traffic listeners."""
_KINDS: dict[bytes, tuple[bytes, bool, bool]] = {}
_MAX_KINDS = 1024

Fields = list[tuple[bytes, bytes]]


@dataclass(slots=True, eq=False)
class RequestFields:
    """A request's header, split into what goes on and what the gateway reads. Calls share it: nothing changes it."""

    forwarded: Fields  #: end-to-end fields in their order, `Host` in its place
    read: dict[bytes, list[bytes]] = field(
        default_factory=dict
    )  #: lower-case name -> values, only names the gateway reads
    hosts: int = 1  #: how many Host fields there were

    @property
    def chunked(self) -> bool:
        """Whether the body comes chunked."""
        return b"transfer-encoding" in self.read

    @property
    def invites(self) -> bool:
        """Whether the client waits for an invitation to send the body (RFC 9110 section 10.1.1)."""
        return b"expect" in self.read and self.first(b"expect").lower() == "100-continue"

    def without(self, name: bytes) -> "RequestFields":
        """Return the same without a field, given in lower case, to be forwarded."""
        kept = [pair for pair in self.forwarded if pair[0].lower() != name]
        return RequestFields(kept, self.read, self.hosts)

    def first(self, name: bytes) -> str:
        """Return the first value of a field that the gateway reads, or an empty text."""
        values = self.read.get(name)
        return values[0].decode("latin-1") if values else ""

    def every(self, name: bytes) -> tuple[str, ...]:
        """Return all values of a field that the gateway reads."""
        values = self.read.get(name)
        return tuple([value.decode("latin-1") for value in values]) if values else ()


def _kind_of(name: bytes) -> tuple[bytes, bool, bool]:
    """Return a field's name in lower case, whether it is forwarded, and whether the gateway reads it."""
    kind = _KINDS.get(name)
    if kind is None:
        lower = name.lower()
        kind = lower, lower not in _NOT_FORWARDED, lower in _READ
        if len(_KINDS) < _MAX_KINDS:  # names come from clients
            _KINDS[name] = kind
    return kind


def request_fields(raw: Fields, authority: bytes | None) -> RequestFields:
    """Split a request's raw header. `authority` replaces the value of Host; None keeps the client's."""
    forwarded: Fields = []
    read: dict[bytes, list[bytes]] = {}
    hosts = 0
    for pair in raw:
        name, passes, is_read = _KINDS.get(pair[0]) or _kind_of(pair[0])
        if is_read:
            read.setdefault(name, []).append(pair[1])
        if passes:
            forwarded.append(pair)
        elif name == b"host":
            hosts += 1
            forwarded.append(pair if authority is None else (pair[0], authority))
    if not hosts and authority is not None:  # HTTP/1.0 may lack it; the upstream speaks 1.1 and needs it
        forwarded.insert(0, (b"Host", authority))
    connection = read.get(b"connection")
    kept = _without_named(forwarded, connection) if connection else forwarded
    return RequestFields(kept, read, hosts)


def unsound(fields: RequestFields, *, speaks_11: bool) -> str:
    """Say what makes a header that llhttp took no request that may be forwarded; empty: nothing."""
    if fields.hosts > 1 or (speaks_11 and not fields.hosts):
        return "one Host field is needed (RFC 9112 section 3.2)"
    codings = fields.read.get(b"transfer-encoding")
    if codings is None:
        return ""
    if not speaks_11:
        return "HTTP/1.0 has no Transfer-Encoding (RFC 9112 section 6.1)"
    if [coding.lower() for coding in codings] != [b"chunked"]:
        return "a transfer coding other than chunked; send the body chunked only, and say gzip in Content-Encoding"
    return ""


def answer_fields(raw: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return an answer's end-to-end fields in their order and case."""
    kept: Fields = []
    connection: list[bytes] = []
    for pair in raw:
        name = (_KINDS.get(pair[0]) or _kind_of(pair[0]))[0]
        if name not in HOP_BY_HOP:
            kept.append(pair)
        elif name == b"connection":
            connection.append(pair[1])
    return _without_named(kept, connection) if connection else kept


def _without_named(fields: Fields, connection: Iterable[bytes]) -> Fields:
    named = {token.strip().lower() for value in connection for token in value.split(b",")}
    named -= _CANNOT_BE_NAMED_AWAY
    named -= {b"close", b"keep-alive", b"upgrade", b""}
    return [pair for pair in fields if pair[0].lower() not in named] if named else fields


def origin_form(target: bytes) -> bytes:
    """Return the path and query of a request target; an absolute-form's authority never chooses the destination."""
    if target.startswith(b"/"):
        return target
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        slash = rest.find(b"/")
        return rest[slash:] if slash >= 0 else b"/"
    return target


def path_of(target: bytes) -> str:
    """Return the path without its query, for decisions; what is forwarded is never made from it."""
    return target.partition(b"?")[0].decode("latin-1")


def is_description(method: bytes, target: bytes) -> bool:
    """Say whether a request asks for a WSDL or schema rather than calling a service."""
    return method == b"GET" and target.partition(b"?")[2].lower().startswith((b"wsdl", b"singlewsdl", b"xsd"))


def untag(target: bytes) -> tuple[bytes, bool]:
    """Take the `/bulk/` tag off a target; say whether it was there."""
    if target.startswith(BULK_TAG):
        return target[len(BULK_TAG) - 1 :], True
    return target, False


def answer_head(version: bytes, status: int, reason: bytes, fields: Fields, extra: tuple[bytes, ...] = ()) -> bytes:
    """Write a status line and header, `extra` being ready lines without their line end."""
    lines = [b"HTTP/%s %d %s" % (version, status, reason)]
    lines += [b"%s: %s" % pair for pair in fields]
    lines += extra
    lines.append(b"\r\n")
    return b"\r\n".join(lines)
