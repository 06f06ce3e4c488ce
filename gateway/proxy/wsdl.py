"""WSDLs and schemas on their way to a client, their addresses exchanged for the gateway's where the route says so.

Rules that always hold: only an answer of 200 to a GET of `?wsdl` or `?xsd=` on a route with `wsdl_address` is looked
into; its Content-Length follows the exchange, no other field changes; what cannot be read for sure passes as it is,
and the log says so. Such a request goes out without Accept-Encoding, or its answer could not be read.
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from gateway.config import Route, UpstreamSettings
from gateway.inbound import Inbound
from gateway.log import EventLog
from gateway.proxy.wire import Fields, answer_fields, answer_head
from gateway.soap.wsdl import MAX_SIZE, Translate, UnreadableWsdlError, rewritten
from gateway.upstream import Answer, BrokenAnswerError

LARGEST = 32 << 20
"""Octets of a document without a length that are read to know it whole; those above `MAX_SIZE` pass as they are."""


def translator(route: Route, upstreams: Mapping[str, UpstreamSettings]) -> Translate:
    """Return what knows the gateway's address for an URL of the route's upstream.

    A service's own address is exchanged whatever host it names, since servers often write an inner name there; a
    document's only if it lies at the upstream.
    """
    base = (route.wsdl_address or "").rstrip("/")
    upstream = upstreams[route.upstream]
    leads_to = route.replace if route.replace is not None else route.prefix

    def translate(url: str, is_address: bool) -> str | None:  # the signature is soap.wsdl's
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80)
        if not is_address and (host, port) != (upstream.host, upstream.port):
            return None
        path = parts.path or "/"
        if not path.startswith(leads_to) or not base.isascii() or not url.isascii():
            return None
        query = f"?{parts.query}" if parts.query else ""
        return f"{base}{route.prefix}{path[len(leads_to) :]}{query}"

    return translate


async def relay_description(
    inbound: Inbound,
    answer: Answer,
    extra: tuple[bytes, ...],
    translate: Translate,
    log: EventLog,
    *,
    keep_alive: bool,
) -> bool:
    """Read the whole answer, exchange its addresses, write it; return whether the connection may go on.

    Raises:
        UpstreamError: the answer broke off; nothing was written.
        ClientGoneError: the client went away.
    """
    parts: list[bytes] = []
    size = 0
    async for data in answer.chunks():
        parts.append(data)
        size += len(data)
        if size > LARGEST:
            raise BrokenAnswerError("a WSDL without length that does not end within 32 MiB", bytes_written=True)
    document = b"".join(parts)
    try:
        document = await asyncio.to_thread(rewritten, document, translate)
    except UnreadableWsdlError as why:
        log.warning("wsdl passed as it is", why=str(why), remedy="Its addresses lead past the gateway: correct them.")
    keep_alive = keep_alive and inbound.speaks_11
    if not keep_alive:
        extra = (*extra, b"Connection: close")
    fields = _with_length(answer_fields(answer.headers), len(document))
    head = answer_head(b"1.1" if inbound.speaks_11 else b"1.0", answer.status, answer.reason, fields, extra)
    inbound.write(head, document)
    return keep_alive


def can_be_rewritten(answer: Answer) -> bool:
    """Say whether an answer is a document that may be read and is not too large."""
    fields = {name.lower(): value.lower() for name, value in answer.headers}
    plain = fields.get(b"content-encoding", b"identity") == b"identity"
    is_small = answer.length is None or answer.length <= MAX_SIZE
    return (
        answer.status == 200 and answer.has_body and plain and is_small and b"xml" in fields.get(b"content-type", b"")
    )


def _with_length(fields: Fields, size: int) -> Fields:
    length = b"%d" % size
    changed = [(name, length if name.lower() == b"content-length" else value) for name, value in fields]
    if len(changed) == sum(name.lower() != b"content-length" for name, _ in changed):
        changed.append((b"Content-Length", length))
    return changed
