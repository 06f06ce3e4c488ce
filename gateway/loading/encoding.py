"""Makes items of entries: reads, checks, classifies, packs and seals. Runs in processes of its own.

Rules that always hold:
- A message is digested strictly, like any bulk call; one that is not sound, or would be stale at night, is a fault.
- Where a template's digest cannot depend on a row's values it is made once; else for each row.
- A fault never quotes what it is about.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config import Route
from gateway.loading.national_number import is_sound
from gateway.loading.shapes import Shapes
from gateway.loading.submission import DEFAULT_TYPE, Fault, Raw, Submission
from gateway.loading.template import Template
from gateway.packing import StoredRequest, pack_request
from gateway.records import LaneKey, NewItem
from gateway.routing import Routes, outbound_target
from gateway.sealing import RunKey
from gateway.soap import MalformedBodyError, TooLargeError, digest
from gateway.soap.stale import not_storable
from policies.classify import Catalogue
from policies.model import Digest, Style

_TEXTS = ("key", "body", "base64", "path", "soapAction", "contentType")
LONGEST_KEY = 512
_MOST_KEPT = 1024  #: decisions that are remembered: entries choose their paths


class FaultyError(Exception):
    """An entry cannot be an item."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry that was read: what is sent, and how."""

    body: bytes
    key: str = ""
    path: str = ""
    soap_action: str = ""
    content_type: str = ""
    digest: Digest | None = None  #: where it is known already


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
        self._header = header
        self._content_type = submission.content_type or DEFAULT_TYPE
        self._template = (
            Template(submission.template, catalogue.selectors, self._content_type) if submission.form == "csv" else None
        )
        self._heads: dict[tuple[bytes, str, str], bytes] = {}
        self._shapes = Shapes(frozenset(catalogue.selectors))
        self._lanes: dict[tuple[Digest, str, str], tuple[LaneKey, bytes]] = {}

    def encoded(self, entries: Sequence[tuple[int, Raw]]) -> list[NewItem | Fault]:
        """Return an item, or a fault, for each entry, which comes with its number in the run."""
        return [self._encoded(number, raw) for number, raw in entries]

    def bodies(self, entries: Sequence[Raw]) -> list[bytes]:
        """Return what would be packed of those that are faultless, as samples for a dictionary."""
        samples: list[bytes] = []
        for raw in entries:
            try:
                samples.append(self._packed(self._read(raw))[1])
            except FaultyError:
                continue
        return samples

    def _encoded(self, number: int, raw: Raw) -> NewItem | Fault:
        try:
            entry = self._read(raw)
            lane, packed = self._packed(entry)
        except FaultyError as fault:
            return Fault(raw.line, fault.what, fault.remedy)
        return NewItem(
            seq=number,
            lane=lane,
            sealed=self._key.seal("request", self._run, number, packed),
            key_tag=self._key.key_tag(entry.key) if entry.key else b"",
            sealed_key=self._key.seal("key", self._run, number, entry.key.encode()) if entry.key else b"",
        )

    # Reading an entry.

    def _read(self, raw: Raw) -> _Entry:
        if isinstance(raw.content, tuple):
            return self._of_row(raw.content)
        if self._submission.form == "ndjson":
            return self._of_line(raw.content)
        return _Entry(raw.content, _key(raw.name))

    def _of_line(self, line: bytes) -> _Entry:
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise FaultyError("is not JSON", "Write one object a line.") from None
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            raise FaultyError("is no object of texts", 'Write {"key": "...", "body": "<...>"}, one a line.')
        if unknown := given.keys() - set(_TEXTS):
            known = f"Known: {', '.join(_TEXTS)}."
            raise FaultyError(f"has {len(unknown)} names that mean nothing here", known)
        return _Entry(
            _body(given),
            _key(given.get("key", "")),
            given.get("path", ""),
            given.get("soapAction", ""),
            given.get("contentType", ""),
        )

    def _of_row(self, fields: tuple[str, ...]) -> _Entry:
        assert self._template is not None
        submission = self._submission
        if len(fields) != len(self._header):
            raise FaultyError(
                f"has {len(fields)} fields where the header has {len(self._header)}", "Give each row every column."
            )
        values: Mapping[str, str] = dict(zip(self._header, map(str.strip, fields), strict=True))
        for column in submission.ssin_columns:
            if not is_sound(values[column]):
                raise FaultyError(f"has no sound national number in column {column}", "Look at its check digits.")
        if empty := next((column for column in self._template.columns if not values[column]), None):
            raise FaultyError(f"has nothing in column {empty}", "Fill it in, or leave the row out.")
        try:
            body = self._template.rendered(values)
        except ValueError:
            raise FaultyError("has a value that XML cannot hold, or that is too long", "Take it out.") from None
        key = _key(values[submission.key_column]) if submission.key_column else ""
        return _Entry(body, key, digest=self._template.fixed_digest)

    # Classifying and packing it.

    def _packed(self, entry: _Entry) -> tuple[LaneKey, bytes]:
        content_type = entry.content_type or self._content_type
        path = entry.path or self._submission.path
        action = (entry.soap_action or self._submission.soap_action).strip('"')
        found = entry.digest or self._digested(entry.body, content_type)
        known = self._lanes.get((found, path, action))
        if known is None:
            known = self._lane(found, path, action)
            if len(self._lanes) < _MOST_KEPT:
                self._lanes[found, path, action] = known
        lane, target = known
        head = self._heads.get((target, content_type, action))
        if head is None:
            headers = ((b"Content-Type", _octets(content_type)), (b"SOAPAction", b'"%s"' % _octets(action)))
            head = pack_request(StoredRequest(target, headers, b""))
            if len(self._heads) < _MOST_KEPT:
                self._heads[target, content_type, action] = head
        return lane, head + entry.body  # a packed request ends with its body

    def _digested(self, body: bytes, content_type: str) -> Digest:
        if len(body) > self._body_limit:
            raise FaultyError("is larger than a bulk message may be", "Raise `bulk.body_limit`, or leave it out.")
        if (known := self._shapes.digest_of(body, content_type)) is not None:
            return known
        try:
            found = digest(body, content_type=content_type, selectors=self._catalogue.selectors)
        except (MalformedBodyError, TooLargeError):
            raise FaultyError("cannot be read", "Leave it out, or mend it.") from None
        if found.style is Style.UNKNOWN:
            raise FaultyError(f"is no sound message: {found.unsound}", "Mend it, or leave it out.")
        if why := not_storable(body):
            raise FaultyError(f"would be stale when it is sent: {why}", "Leave WS-Security times and nonces out.")
        self._shapes.learn(body, content_type, found)
        return found

    def _lane(self, found: Digest, path: str, action: str) -> tuple[LaneKey, bytes]:
        if not path.startswith("/") or not path.isascii() or any(ord(one) <= 32 for one in path):
            raise FaultyError("has no path that it could be sent to", "Give `path`, for all or for this one.")
        target = path.encode("ascii")
        route = self._routes.of(target)
        if route is None:
            raise FaultyError("has a path that no route leads from", "See `routes` in the configuration.")
        decision = self._catalogue.find(found, path=path.partition("?")[0], soap_action=action)
        sources = tuple(sorted(decision.sources))
        lane = LaneKey(route.prefix, sources, decision.kind == "read", decision.service)
        return lane, outbound_target(target, route)


def _body(given: dict[str, Any]) -> bytes:
    if ("body" in given) == ("base64" in given):
        raise FaultyError("has not exactly one of body and base64", "Give the message as text, or its octets.")
    if "body" in given:
        try:
            body: bytes = given["body"].encode("utf-8")
        except UnicodeEncodeError:
            raise FaultyError("has a body that is no text", "Give its octets as base64.") from None
        return body
    try:
        return base64.b64decode(given["base64"], validate=True)
    except (binascii.Error, ValueError):
        raise FaultyError("has a base64 that is none", "Encode it anew.") from None


def _key(text: str) -> str:
    if len(text) > LONGEST_KEY or (not text.isascii() and any(0xD800 <= ord(one) <= 0xDFFF for one in text)):
        raise FaultyError("has a key that is too long, or no text", f"At most {LONGEST_KEY} characters.")
    return text


def _octets(text: str) -> bytes:
    if not text.isascii() or any(ord(one) < 32 for one in text):
        raise FaultyError("has a header value that HTTP cannot carry", "ASCII only, in one line.")
    return text.encode("ascii")
