"""Hands an upstream's answer to the client, octet for octet, as it comes.

Rules that always hold:
- The status, the fields in their order and case, and the body's octets are the upstream's. Only framing is ours: a body
  without a known length goes out chunked, to an HTTP/1.0 client until the connection closes.
- An answer that breaks off midway breaks off for the client too: the connection is reset, and no last chunk is
  written. It is never completed, and no fault of ours is put behind its beginning.
- Memory is bounded: what the client does not take is not read from the upstream.

Never looks into a body, never retries.
"""

from collections.abc import Callable

from gateway.inbound import ClientGoneError, Inbound
from gateway.proxy.wire import answer_fields, answer_head
from gateway.upstream import SMALL, Answer, UpstreamError

_CHUNKED = b"Transfer-Encoding: chunked"
_CLOSE = b"Connection: close"
_LAST_CHUNK = b"0\r\n\r\n"

Copy = Callable[[bytes], None]


class CutError(Exception):
    """The answer broke off after its beginning had gone to the client, whose connection has been reset."""


async def relay(
    inbound: Inbound, answer: Answer, extra: tuple[bytes, ...], *, keep_alive: bool, copy: Copy | None = None
) -> bool:
    """Write the answer to the client; return whether its connection may go on. `copy` is handed each piece of the body.

    Raises:
        CutError: the upstream broke off midway.
        ClientGoneError: the client went away.
        UpstreamError: the upstream failed before a byte was written to the client.
    """
    keep_alive, chunked = write_beginning(inbound, answer, extra, keep_alive=keep_alive, copy=copy)
    if answer.has_body and not answer.complete:
        await _stream(inbound, answer, copy, chunked=chunked)
    return keep_alive


def write_beginning(
    inbound: Inbound, answer: Answer, extra: tuple[bytes, ...], *, keep_alive: bool, copy: Copy | None = None
) -> tuple[bool, bool]:
    """Write what there is of an answer, which may be all; return whether the client's connection may go on, and
    whether the body goes out chunked.

    Raises:
        ClientGoneError: the client went away.
    """
    fields = answer_fields(answer.headers)
    keep_alive = keep_alive and inbound.speaks_11
    chunked = answer.has_body and answer.length is None and inbound.speaks_11
    version = b"1.1" if inbound.speaks_11 else b"1.0"
    if chunked:
        extra = (*extra, _CHUNKED)
    if not keep_alive:
        extra = (*extra, _CLOSE)
    head = answer_head(version, answer.status, answer.reason, fields, extra)
    pieces = answer.take_pieces()
    if copy is not None:
        for piece in pieces:
            copy(bytes(piece))
    if chunked:
        pieces = [*map(_framed, pieces), _LAST_CHUNK if answer.complete else b""]
    if sum(map(len, pieces)) > SMALL:
        inbound.write(head, *pieces)
    else:
        inbound.write(b"".join((head, *pieces)))
    return keep_alive, chunked


def write_more(inbound: Inbound, answer: Answer, *, chunked: bool) -> None:
    """Write what more there is of an answer, which may be its end.

    Raises:
        ClientGoneError: the client went away.
    """
    pieces = answer.take_pieces()
    if chunked:
        pieces = [*map(_framed, pieces), _LAST_CHUNK if answer.complete else b""]
    if any(pieces):
        inbound.write(*pieces)


async def _stream(inbound: Inbound, answer: Answer, copy: Copy | None, *, chunked: bool) -> None:
    try:
        await inbound.drain()
        async for data in answer.chunks():
            if copy is not None:
                copy(data)
            inbound.write(_framed(data) if chunked else data)
            await inbound.drain()
    except UpstreamError as trouble:
        inbound.cut()
        raise CutError from trouble
    except ConnectionError as gone:
        raise ClientGoneError from gone
    if chunked:
        inbound.write(_LAST_CHUNK)


def _framed(data: bytes | memoryview) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def is_fault(answer: Answer) -> bool:
    """Say whether an answer is a SOAP fault, by its status and type."""
    return answer.status == 500 and any(  # SOAP 1.1 over HTTP: a fault comes with 500 (SOAP 1.1 section 6.2)
        name.lower() == b"content-type" and b"xml" in value.lower() for name, value in answer.headers
    )
