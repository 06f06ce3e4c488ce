"""Real-time or bulk, whose traffic it is, and (with the catalogue) which sources a call asks.

The class is decided without the body. Rules that always hold:
- Any signal may raise a call to bulk, and bulk wins: the listener, the prefix `/bulk/`, `X-Traffic-Class`,
  `X-Bulk-Run`, a client rule. A value of `X-Traffic-Class` that is not known raises too: doubt is never faster.
- Who is known by address or certificate only, by a rule that allows it, may declare itself real-time, and that
  overrules the listener's default, or a suspicion, and nothing else.
- Whoever fetches a WSDL or schema calls nothing: that is never bulk.
- HTTP Basic users and User-Agents are not verified here, so they can raise and never lower; `X-Forwarded-For` is not
  looked at.

The flow, for fairness, is the first matching rule's name, else the certificate's subject, else the address.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from policies.catalogue import Catalogue, CatalogueError, Service, SourceDecision
from policies.model import TrafficClass

__all__ = [
    "SUSPECTED",
    "CallFacts",
    "Catalogue",
    "CatalogueError",
    "ClassDecision",
    "ClientRule",
    "Service",
    "SourceDecision",
    "class_of",
    "identity_of",
]


SUSPECTED = "suspected"
"""The rule that makes a call bulk because its client behaves like a batch."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What may be looked at to tell a call's class."""

    listener_class: TrafficClass
    path: str  #: without query and `/bulk/`
    bulk_prefix: bool  #: whether `/bulk/` was there
    traffic_class: tuple[str, ...] = ()  #: values of X-Traffic-Class
    bulk_run: tuple[str, ...] = ()  #: values of X-Bulk-Run
    peer: str = ""  #: address of the connection's other end
    tls_subject: str = ""  #: subject of its verified certificate
    basic_user: str = ""
    user_agent: str = ""
    describes: bool = False  #: it fetches a WSDL or schema, and calls nothing
    suspected: bool = False  #: it behaves like a batch (policies.suspicion), and that counts


@dataclass(frozen=True, slots=True)
class ClientRule:
    """A client that the configuration knows. All kinds of criteria that are given must match, one of each kind."""

    name: str
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    tls_subjects: tuple[str, ...] = ()
    basic_users: tuple[str, ...] = ()
    user_agents: tuple[str, ...] = ()  #: beginnings
    traffic: TrafficClass | None = None
    may_declare_realtime: bool = False

    @property
    def verified(self) -> bool:
        """Whether the rule rests on something that a client cannot just write."""
        return bool(self.networks or self.tls_subjects)

    def matches(self, facts: CallFacts) -> bool:
        """Say whether a call is this client's."""
        return (
            bool(self.networks or self.tls_subjects or self.basic_users or self.user_agents)
            and (not self.networks or _is_in(facts.peer, self.networks))
            and (not self.tls_subjects or facts.tls_subject in self.tls_subjects)
            and (not self.basic_users or facts.basic_user in self.basic_users)
            and (not self.user_agents or facts.user_agent.startswith(self.user_agents))
        )


@dataclass(frozen=True, slots=True)
class ClassDecision:
    """The class, and why; whose traffic it is; the run that the caller names, if any."""

    traffic: TrafficClass
    rule: str
    flow: str
    run_id: str | None = None


def class_of(facts: CallFacts, rules: Sequence[ClientRule]) -> ClassDecision:
    """Decide the class of a call."""
    matching = [rule for rule in rules if rule.matches(facts)]
    flow = matching[0].name if matching else facts.tls_subject or facts.peer
    run_id = facts.bulk_run[0] if facts.bulk_run else None
    if facts.describes:
        return ClassDecision(TrafficClass.REALTIME, "wsdl", flow)
    if (why := _raised(facts, matching)) is not None:
        return ClassDecision(TrafficClass.BULK, why, flow, run_id)
    if facts.listener_class is TrafficClass.REALTIME and not facts.suspected:
        return ClassDecision(TrafficClass.REALTIME, "listener", flow)
    verified = [rule for rule in matching if rule.verified]
    if facts.traffic_class and any(rule.may_declare_realtime for rule in verified):
        return ClassDecision(TrafficClass.REALTIME, "header X-Traffic-Class", flow)
    for rule in verified:
        if rule.traffic is TrafficClass.REALTIME:
            return ClassDecision(TrafficClass.REALTIME, f"client rule {rule.name}", flow)
    return ClassDecision(TrafficClass.BULK, SUSPECTED if facts.suspected else "listener", flow)


def identity_of(peer: str, tls_subject: str, rules: Sequence[ClientRule]) -> str:
    """Return who a client is, as far as that is verified: what it may fetch later is decided by it.

    The first rule that rests on addresses and certificates alone and matches, else the certificate's subject, else the
    address. What a client writes itself (Basic user, User-Agent) does not come into it: whoever fetches need not be the
    program that called.
    """
    facts = CallFacts(TrafficClass.REALTIME, "", bulk_prefix=False, peer=peer, tls_subject=tls_subject)
    for rule in rules:
        if rule.verified and rule.matches(facts):
            return f"rule {rule.name}"
    return f"subject {tls_subject}" if tls_subject else f"address {peer}"


def _raised(facts: CallFacts, matching: Sequence[ClientRule]) -> str | None:
    if facts.bulk_prefix:
        return "path prefix /bulk/"
    if facts.bulk_run:
        return "header X-Bulk-Run"
    if any(value.strip().lower() != TrafficClass.REALTIME for value in facts.traffic_class):
        return "header X-Traffic-Class"
    return next((f"client rule {rule.name}" for rule in matching if rule.traffic is TrafficClass.BULK), None)


def _is_in(peer: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:  # a Unix socket, or none
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
