"""The root part of a multipart/related message (RFC 2387), as SOAP with Attachments and MTOM send it.

Read from a copy, and strictly: a message that two readers could take apart in two ways is not taken apart at all, since
then what we looked at might not be what the source looks at.

Rules that always hold:
- The root is the part whose Content-ID is `start`, or the first one; exactly one part may be it.
- A delimiter stands at the beginning of a line and ends with it; the last one is there, unless a beginning was
  given.
- Parameters said twice, folded or odd header lines of a part, and transfer encodings that change octets are unsound.

Never decodes an attachment, and never quotes one.
"""

import re

MAX_PARTS = 100
_PART_HEADER = 8192
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046 section 5.1.1
_FIELD = re.compile(rb"([!#-'*+.0-9A-Z^-z|~-]+):[ \t]*([ -~\t\x80-\xff]*)")
_PLAIN = (b"", b"7bit", b"8bit", b"binary")


class UnsoundMultipartError(Exception):
    """The message cannot be taken apart in one way only; the text says why."""


def is_multipart(content_type: str) -> bool:
    """Say whether a Content-Type announces several parts."""
    return content_type.lstrip().lower().startswith("multipart/")


def root_part(body: bytes, content_type: str, *, whole: bool = True) -> tuple[str, bytes]:
    """Return the root part's Content-Type and octets.

    Args:
        whole: False when `body` is only the beginning of the message; the root must be whole in it.

    Raises:
        UnsoundMultipartError: it cannot be told.
    """
    boundary, start = _parameters(content_type)
    roots: list[tuple[str, bytes]] = []
    for number, (fields, content, complete) in enumerate(_parts(body, boundary, whole=whole)):
        is_root = fields.get(b"content-id") == start if start is not None else number == 0
        if is_root:
            if not complete:
                raise UnsoundMultipartError("its root part is too long, or late, to be looked at")
            if fields.get(b"content-transfer-encoding", b"").lower() not in _PLAIN:
                raise UnsoundMultipartError("the root part's transfer encoding is not read")
            roots.append((fields.get(b"content-type", b"").decode("latin-1"), content))
    if len(roots) != 1:
        raise UnsoundMultipartError("it has no root part, or several")
    return roots[0]


def _parameters(content_type: str) -> tuple[bytes, bytes | None]:
    from email.message import Message  # late: 10 ms that a start without such messages does not need

    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() != "multipart/related":
        raise UnsoundMultipartError("multipart, but not multipart/related")
    given = message.get_params([])[1:]
    names = [name.lower() for name, _ in given]
    if len(set(names)) < len(names):
        raise UnsoundMultipartError("its Content-Type says a parameter twice")
    parameters = {name.lower(): value for name, value in given}
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise UnsoundMultipartError("its boundary is missing, or not one of RFC 2046")
    start = parameters.get("start")
    return boundary.encode("ascii"), start.encode("latin-1", "replace") if start is not None else None


def _parts(body: bytes, boundary: bytes, *, whole: bool) -> list[tuple[dict[bytes, bytes], bytes, bool]]:
    """Return each part's header, content, and whether its end was there."""
    delimiter = re.compile(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r\n|\Z)")
    parts: list[tuple[dict[bytes, bytes], bytes, bool]] = []
    position, closed = -1, False
    while not closed and (found := delimiter.search(body, max(position - 2, 0))) is not None:
        if position >= 0:
            parts.append((*_part(body[position : found.start()]), True))
        elif body[: found.start()].strip():
            raise UnsoundMultipartError("there is text before its first part")
        position, closed = found.end(), found[1] is not None
        if len(parts) > MAX_PARTS:
            raise UnsoundMultipartError("it has too many parts")
    if closed and body[position:].strip():
        raise UnsoundMultipartError("there is text behind its last part")
    if position < 0 or (whole and not closed):
        raise UnsoundMultipartError("its parts are not delimited by its boundary")
    if not closed and b"\r\n\r\n" in body[position : position + _PART_HEADER]:
        parts.append((*_part(body[position:]), False))
    return parts


def _part(octets: bytes) -> tuple[dict[bytes, bytes], bytes]:
    if octets.startswith(b"\r\n"):
        return {}, octets[2:]
    header, separator, content = octets.partition(b"\r\n\r\n")
    if not separator or len(header) > _PART_HEADER:
        raise UnsoundMultipartError("the header of a part has no end")
    fields: dict[bytes, bytes] = {}
    for line in header.split(b"\r\n"):
        field = _FIELD.fullmatch(line)
        if field is None or field[1].lower() in fields:
            raise UnsoundMultipartError("the header of a part is folded, odd, or says something twice")
        fields[field[1].lower()] = field[2].rstrip()
    return fields, content
