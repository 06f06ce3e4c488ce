"""Makes items of entries: reads, checks, classifies, packs and seals. Runs in processes of its own.

Rules that always hold:
- A message is digested strictly, like any bulk call; one that is not sound, or would be stale at night, is a fault.
- A digest is known without reading the message only where that is the same: by a template, or by its shape.
- A fault never quotes what it is about.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config import Route
from gateway.loading.declared import is_utf8, type_of
from gateway.loading.national_number import digits_of
from gateway.loading.shapes import Shapes
from gateway.loading.submission import Fault, Raw, Submission
from gateway.loading.template import Template
from gateway.packing import StoredRequest, pack_request
from gateway.records import LaneKey
from gateway.routing import Routes, outbound_target
from gateway.sealing import RunKey
from gateway.soap import MalformedBodyError, TooLargeError, digest
from gateway.soap.multipart import UnsoundMultipartError, is_multipart, root_part
from gateway.soap.stale import not_storable
from policies.classify import Catalogue
from policies.model import Digest, SoapVersion, Style

_TEXTS = ("key", "body", "base64", "path", "soapAction", "contentType")
LONGEST_KEY = 512
_MOST_LANES = 1024
_SAMPLES_SIZE = 8 << 20
_BULK_TAG = "/bulk/"  # of the traffic listener: whoever copies its URL means the same target

Row = tuple[int, int, bytes, bytes, bytes]
"""An item: its number in the run, which lane, and sealed request, key tag and sealed key."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a portion. In plain tuples: it goes to another process."""

    lanes: list[LaneKey]
    rows: list[Row]
    faults: list[tuple[int, str, str]]


class FaultyError(Exception):
    """An entry cannot be an item."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


@dataclass(slots=True)
class _Entry:
    """An entry that was read: what is sent, and how."""

    body: bytes
    key: str = ""
    path: str = ""
    soap_action: str = ""
    content_type: str = ""
    digest: Digest | None = None  #: where it is known already


@dataclass(frozen=True, slots=True)
class _Head:
    """What messages that are sent alike have in common."""

    lane: LaneKey
    packed: bytes  #: what stands before the body


class Encoder:
    """Makes the items of one submission. Raises UnreadableError when its template cannot be one."""

    def __init__(
        self,
        submission: Submission,
        catalogue: Catalogue,
        routes: Sequence[Route],
        body_limit: int,
        *,
        run: str,
        key: RunKey,
        header: tuple[str, ...] = (),
    ) -> None:
        self._submission = submission
        self._catalogue = catalogue
        self._routes = Routes(routes)
        self._body_limit = body_limit
        self._run = run
        self._key = key
        self._shapes = Shapes(frozenset(catalogue.selectors))
        self._heads: dict[tuple[Digest, str, str, str, bool], _Head] = {}
        self._last: tuple[Digest, str, str, str, bool] | None = None
        self._last_head: _Head | None = None
        self._template: Template | None = None
        self._columns: list[tuple[str, int, bool]] = []
        if submission.form == "csv":
            self._width = len(header)
            self._template = Template(submission.template, catalogue.selectors, submission.content_type)
            self._columns = [
                (column, header.index(column), column in submission.ssin_columns)
                for column in columns_of(submission, self._template)
            ]

    def use(self, dictionary: bytes) -> None:
        """Compress with a dictionary from now on."""
        self._key = self._key.with_dictionary(dictionary)

    def encoded(self, number: int, entries: Sequence[Raw]) -> Encoded:
        """Return an item, or a fault, for each entry. The first is number `number` of the run."""
        lanes: dict[int, tuple[int, LaneKey]] = {}
        rows: list[Row] = []
        faults: list[tuple[int, str, str]] = []
        seal, run = self._key.seal, self._run
        for seq, raw in enumerate(entries, number):
            try:
                entry = self._read(raw)
                head = self._head(entry)
            except FaultyError as fault:
                faults.append((raw[0], fault.what, fault.remedy))
                continue
            lane = lanes.setdefault(id(head.lane), (len(lanes), head.lane))[0]
            sealed = seal("request", run, seq, head.packed + entry.body)
            if entry.key:
                sealed_key = seal("key", run, seq, entry.key.encode("utf-8"))
                rows.append((seq, lane, sealed, self._key.key_tag(entry.key), sealed_key))
            else:
                rows.append((seq, lane, sealed, b"", b""))
        return Encoded([lane for _, lane in lanes.values()], rows, faults)

    def samples(self, entries: Sequence[Raw]) -> list[bytes]:
        """Return what would be packed of those that are faultless, for a dictionary to be made of."""
        samples: list[bytes] = []
        size = 0
        for raw in entries:
            try:
                entry = self._read(raw)
                samples.append(self._head(entry).packed + entry.body)
            except FaultyError:
                continue
            size += len(samples[-1])
            if size > _SAMPLES_SIZE:
                break
        return samples

    # Reading an entry.

    def _read(self, raw: Raw) -> _Entry:
        _, content, name = raw
        if isinstance(content, tuple):
            return self._of_row(content)
        if self._submission.form == "ndjson":
            return self._of_line(content)
        return _Entry(content, _key(name))

    def _of_line(self, line: bytes) -> _Entry:
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise FaultyError("is not JSON", "Write one object a line.") from None
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            raise FaultyError("is no object of texts", 'Write {"key": "...", "body": "<...>"}, one a line.')
        if unknown := given.keys() - set(_TEXTS):
            raise FaultyError(f"has {len(unknown)} names that mean nothing here", f"Known: {', '.join(_TEXTS)}.")
        content_type = given.get("contentType", "")
        body = self._body(given, content_type or self._submission.content_type)
        return _Entry(
            body, _key(given.get("key", "")), given.get("path", ""), given.get("soapAction", ""), content_type
        )

    def _body(self, given: dict[str, Any], content_type: str) -> bytes:
        if ("body" in given) == ("base64" in given):
            raise FaultyError("has not exactly one of body and base64", "Give the message as text, or its octets.")
        if "base64" in given:
            try:
                return base64.b64decode(given["base64"], validate=True)
            except (binascii.Error, ValueError):
                raise FaultyError("has a base64 that is none", "Encode it anew.") from None
        try:
            body: bytes = given["body"].encode("utf-8")
        except UnicodeEncodeError:
            raise FaultyError("has a body that is no text", "Give its octets as base64.") from None
        if not is_utf8(body, content_type):
            raise FaultyError(
                "has a body that is sent as UTF-8 and says otherwise", "Correct it, or give its octets as base64."
            )
        return body

    def _of_row(self, fields: tuple[str, ...]) -> _Entry:
        assert self._template is not None
        if len(fields) != self._width:
            raise FaultyError(
                f"has {len(fields)} fields where the header has {self._width}", "Give each row every column."
            )
        values: dict[str, str] = {}
        for column, index, is_number in self._columns:
            value = fields[index].strip()
            if is_number:
                value = digits_of(value)
                if not value:
                    raise FaultyError(
                        f"has no sound national number in column {column}",
                        "Look at its check digits, and whether leading zeros are there.",
                    )
            elif not value:
                raise FaultyError(f"has nothing in column {column}", "Fill it in, or leave the row out.")
            values[column] = value
        try:
            body, found = self._template.rendered(values)
        except ValueError:
            raise FaultyError("has a value that XML cannot hold, or that is too long", "Take it out.") from None
        key = _key(values[self._submission.key_column]) if self._submission.key_column else ""
        return _Entry(body, key, digest=found)

    # Classifying it.

    def _head(self, entry: _Entry) -> _Head:
        if len(entry.body) > self._body_limit:
            raise FaultyError("is larger than a bulk message may be", "Leave it out, or raise `bulk.body_limit`.")
        content_type = entry.content_type or self._submission.content_type
        path = entry.path or self._submission.path
        action = (entry.soap_action or self._submission.soap_action).strip('"')
        found = entry.digest or self._digested(entry.body, content_type)
        last = self._last
        utf8 = not content_type and is_utf8(entry.body)
        if last is not None and found is last[0] and (path, action, content_type, utf8) == last[1:]:
            assert self._last_head is not None
            return self._last_head  # hashing a digest takes longer than all else here
        facts = found, path, action, content_type, utf8
        head = self._heads.get(facts)
        if head is None:
            head = self._new_head(found, path, action, content_type or type_of(found.soap, utf8=utf8))
            if len(self._heads) >= _MOST_LANES:  # entries choose their paths
                self._heads.clear()
            self._heads[facts] = head
        self._last, self._last_head = facts, head
        return head

    def _digested(self, body: bytes, content_type: str) -> Digest:
        found = self._shapes.digest_of(body, content_type)
        if found is None:
            found = self._read_strictly(body, content_type)
            self._shapes.learn(body, content_type, found)
        return found

    def _read_strictly(self, body: bytes, content_type: str) -> Digest:
        try:
            found = digest(body, content_type=content_type, selectors=self._catalogue.selectors)
            if found.style is Style.UNKNOWN:
                raise FaultyError(f"is no sound message: {found.unsound}", "Mend it, or leave it out.")
            root = root_part(body, content_type)[1] if is_multipart(content_type) else body
        except (MalformedBodyError, TooLargeError, UnsoundMultipartError):
            raise FaultyError("cannot be read", "Leave it out, or mend it.") from None
        if why := not_storable(root):
            raise FaultyError(why, "Leave WS-Security times, nonces and passwords out.")
        return found

    def _new_head(self, found: Digest, path: str, action: str, content_type: str) -> _Head:
        if path.startswith(_BULK_TAG):
            path = path[len(_BULK_TAG) - 1 :]
        if not path.startswith("/") or not path.isascii() or any(ord(one) <= 32 or ord(one) == 127 for one in path):
            raise FaultyError("has no path that it could be sent to", "Give `path`, for all or for this one.")
        target = path.encode("ascii")
        route = self._routes.of(target)
        if route is None:
            raise FaultyError("has a path that no route leads from", "See `routes` in the configuration.")
        decision = self._catalogue.find(found, path=path.partition("?")[0], soap_action=action)
        sources = tuple(sorted(decision.sources))
        lane = LaneKey(route.prefix, sources, decision.kind == "read", decision.service)
        headers = _headers(found, content_type, action)
        return _Head(lane, pack_request(StoredRequest(outbound_target(target, route), headers, b"")))


def columns_of(submission: Submission, template: Template) -> tuple[str, ...]:
    """Return the columns that a row must fill in."""
    wanted = (*template.columns, *submission.ssin_columns, *filter(None, (submission.key_column,)))
    return tuple(dict.fromkeys(wanted))


def faults_of(encoded: Encoded) -> list[Fault]:
    """Return the faults of a portion."""
    return [Fault(*fault) for fault in encoded.faults]


def _headers(found: Digest, content_type: str, action: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the fields that say what the message is: SOAP 1.2 has its action in the Content-Type (RFC 3902)."""
    if '"' in action:
        raise FaultyError("has a soapAction with a quotation mark in it", "Give the URI only.")
    if found.soap is SoapVersion.SOAP_12:
        if action and "action=" not in content_type.lower():
            content_type += f'; action="{action}"'
        return ((b"Content-Type", _octets(content_type)),)
    return ((b"Content-Type", _octets(content_type)), (b"SOAPAction", b'"%s"' % _octets(action)))


def _key(text: str) -> str:
    if len(text) > LONGEST_KEY or any(0xD800 <= ord(one) <= 0xDFFF for one in text):
        raise FaultyError("has a key, or file name, that is too long or no text", f"At most {LONGEST_KEY} characters.")
    return text


def _octets(text: str) -> bytes:
    if not text.isascii() or any(ord(one) < 32 or ord(one) == 127 for one in text):
        raise FaultyError("has a header value that HTTP cannot carry", "ASCII only, in one line.")
    return text.encode("ascii")
