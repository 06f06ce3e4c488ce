"""What a call is: its class, from what is known without the body, and its sources, from the body's digest.

The asyncio side of `policies.classify` and `gateway.soap`: decisions are remembered where the same facts come again and
again, and a bulk body that is large is digested in slices, so that real-time does not feel it.

Rules that always hold: what is remembered is bounded, since clients choose what they send; a real-time body is looked
at beside its way to the upstream and never before it; nothing here changes a body or decides what becomes of a call.
"""

import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar

from gateway.config import Configuration
from gateway.config import Listener as ListenerSettings
from gateway.inbound import Inbound
from gateway.inbound.turns import SLICE_S, Turns
from gateway.proxy.calls import Call
from gateway.proxy.wire import RequestFields, is_description, path_of
from gateway.soap import Peek, PrefixCache, digesting
from policies.classify import CallFacts, ClassDecision, SourceDecision, class_of, identity_of
from policies.model import Digest

K = TypeVar("K")
V = TypeVar("V")
_MAX_DECISIONS = 1024
_BEGINNING = 16_384
"""Octets of a body in which it is looked for what is remembered: more than any header takes, and quickly copied."""
SLICE_COST_S = SLICE_S / 2
"""Of a slice of a digest (32 KiB): half a millisecond, and up to one where there is much markup (measured)."""


@dataclass(slots=True)
class Asked:
    """What a digest is made from, besides the body; and the digest, once made."""

    path: str
    fields: RequestFields
    digest: Digest | None = None
    kind: str = "unknown"  #: of the operation, once digested: read, write or unknown

    @property
    def content_type(self) -> str:
        """Return the Content-Type."""
        return self.fields.first(b"content-type")

    @property
    def content_encoding(self) -> str:
        """Return every Content-Encoding, joined as RFC 9110 section 5.2 has it."""
        return ",".join(self.fields.every(b"content-encoding"))


class Classifier:
    """Says what calls are, for one configuration."""

    def __init__(self, configuration: Configuration, turns: Turns) -> None:
        self._rules = configuration.rules
        self._catalogue = configuration.catalogue
        self._prefixes = PrefixCache()
        self._turns = turns
        self._classes: dict[tuple[object, ...], ClassDecision] = {}
        self._decisions: dict[tuple[Digest, str, str], SourceDecision] = {}
        self._reads_basic = any(rule.basic_users for rule in configuration.rules)

    def class_of(
        self,
        inbound: Inbound,
        listener: ListenerSettings,
        target: bytes,
        fields: RequestFields,
        *,
        tagged: bool,
        suspected: bool = False,
    ) -> ClassDecision:
        """Decide the class of a call, without its body. `suspected`: its client behaves like a batch, which counts."""
        peer, subject = inbound.connection.peer, inbound.connection.subject
        basic_user = _basic_user(fields.first(b"authorization")) if self._reads_basic else ""
        agent = fields.first(b"user-agent") if self._rules else ""
        describes = is_description(inbound.method, inbound.target) and not inbound.has_body
        declared, run = fields.every(b"x-traffic-class"), fields.every(b"x-bulk-run")
        key = (listener.traffic_class, tagged, declared, run, peer, subject, basic_user, agent, suspected, describes)
        decision = self._classes.get(key)
        if decision is None:
            facts = CallFacts(
                listener_class=listener.traffic_class,
                path=path_of(target),
                bulk_prefix=tagged,
                traffic_class=declared,
                bulk_run=run,
                peer=peer,
                tls_subject=subject,
                basic_user=basic_user,
                user_agent=agent,
                suspected=suspected,
                describes=describes,
            )
            decision = class_of(facts, self._rules)
            _remember(self._classes, key, decision)
        return decision

    def identity_of(self, inbound: Inbound) -> str:
        """Return who a client is, as far as that is verified."""
        return identity_of(inbound.connection.peer, inbound.connection.subject, self._rules)

    def look(self, call: Call, asked: Asked, pieces: list[bytes | memoryview]) -> None:
        """Look at a whole real-time body."""
        beginning = b"" if asked.content_encoding or not pieces else bytes(pieces[0][:_BEGINNING])
        found = self._prefixes.lookup(beginning, asked.content_type)
        if found is None:
            peek = Peek(asked.content_type, asked.content_encoding, self._catalogue.selectors)
            for piece in pieces:
                if peek.feed(bytes(piece)):
                    break
            found = peek.result()
            if beginning:
                self._prefixes.learn(bytes(pieces[0]), asked.content_type, peek)
        self._find(call, asked, found)

    async def looked_at(self, inbound: Inbound, call: Call, asked: Asked) -> AsyncIterator[bytes]:
        """Yield a real-time body as it comes, and look at each piece once it was taken."""
        peek = Peek(asked.content_type, asked.content_encoding, self._catalogue.selectors)
        seen = False
        async for data in inbound.chunks():
            call.bytes_in += len(data)
            yield data  # first sent, then looked at
            if not seen:
                seen = peek.feed(data)
        self._find(call, asked, peek.result())

    async def read(self, call: Call, asked: Asked, body: bytes) -> frozenset[str]:
        """Read a whole bulk body strictly; return the sources it asks.

        Raises:
            MalformedBodyError, TooLargeError: its compression cannot be read, or not within bounds.
        """
        steps = digesting(
            body,
            content_type=asked.content_type,
            content_encoding=asked.content_encoding,
            selectors=self._catalogue.selectors,
        )
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return self._find(call, asked, end.value)
            await self._turns.take(SLICE_COST_S)

    def _find(self, call: Call, asked: Asked, found: Digest) -> frozenset[str]:
        asked.digest = found
        soap_action = asked.fields.first(b"soapaction").strip('"')
        key = (found, asked.path, soap_action)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._catalogue.find(found, path=asked.path, soap_action=soap_action)
            _remember(self._decisions, key, decision)
        call.label, call.service, call.mismatch = decision.label, decision.service, decision.mismatch
        asked.kind = decision.kind
        return decision.sources


def _remember(decisions: dict[K, V], key: K, decision: V) -> None:
    if len(decisions) >= _MAX_DECISIONS:  # a client that varies what it sends must not fill memory
        decisions.clear()
    decisions[key] = decision


def _basic_user(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8", "replace").partition(":")[0]
    except binascii.Error:
        return ""
