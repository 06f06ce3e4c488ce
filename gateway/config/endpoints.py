"""Who calls, where, and where calls go: listeners, telemetry, upstreams, routes, clients.

One half of what a configuration can say, with `gateway.config.settings`, which states the rules that hold for both.
Here too are the forms that both use: names, lines, addresses, ports.

A model checks each of its values by itself. Never looks at another key, the clock or the network; a certificate's file
is looked for, but not read.
"""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from gateway.config.values import At, BaseUrl, Duration, Secret, Text, shown, unfit
from policies.model import TrafficClass

HOUR = 3600.0

Line = Annotated[str, Text()]
Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, dots, dashes and _")]
UrlPath = Annotated[str, Text(r"/[!-~]*", "a path that begins with / and holds ASCII without spaces")]
Flag = Annotated[bool, Field(strict=True)]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]


def _address(value: Any) -> str:
    try:
        return str(ip_address(value)) if isinstance(value, str) else _not_an_address(value)
    except ValueError:
        return _not_an_address(value)


def _not_an_address(value: Any) -> str:
    raise unfit(f"{shown(value)} is not an IP address", 'Write one such as 127.0.0.1, "::1" or 0.0.0.0.')


def _network(value: Any) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(value if isinstance(value, str) else "")
    except ValueError as error:
        remedy = "Clear the bits after the prefix." if "host bits" in str(error) else "Write 10.1.0.0/16 or 10.1.2.3."
        raise unfit(f"{shown(value)} is not an address or an address range", remedy) from None


Address = Annotated[str, BeforeValidator(_address)]
Network = Annotated[
    IPv4Network | IPv6Network, BeforeValidator(_network), WithJsonSchema({"type": "string", "minLength": 2})
]


class Section(BaseModel):
    """A group of keys: nothing unknown in it, nothing changed once read, no value in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, hide_input_in_errors=True)


class ListenerTls(Section):
    """TLS of a listener: 1.2 at least."""

    certificate: Annotated[Path, At()] = Field(description="PEM: the gateway's certificate, then its intermediates.")
    key: Annotated[Path, At()] | None = Field(
        default=None, description="PEM: its key. Left out: it is in `certificate`."
    )
    key_password: Annotated[SecretStr, Secret()] | None = Field(
        default=None, description="Password of the key, if any."
    )
    client_ca: Annotated[Path, At()] | None = Field(
        default=None, description="PEM: the CAs that issue clients' certificates."
    )
    client_certificate: Literal["none", "optional", "required"] = Field(
        default="none",
        description="Whether clients show a certificate. none: an internal network rarely has client CAs.",
    )

    @property
    def password(self) -> str | None:
        """The key's password, in the clear: for the TLS library only."""
        return self.key_password.get_secret_value() if self.key_password is not None else None


class Listener(Section):
    """A port that takes calls."""

    address: Address = Field(
        default="127.0.0.1",
        description="Where to listen. This host only, since whoever reaches it calls with your certificate.",
    )
    port: Port = Field(default=8080, description="TCP port; 0 takes a free one (for tests).")
    traffic_class: TrafficClass = Field(
        default=TrafficClass.REALTIME,
        validation_alias="class",
        description="Class of calls that say nothing else. realtime: a person may be waiting.",
    )
    tls: ListenerTls | None = Field(
        default=None, description="Left out: plain HTTP, usual beside the client on one host."
    )


class Endpoint(Section):
    """Where /metrics, /healthz and /readyz are."""

    address: Address = Field(
        default="0.0.0.0",  # noqa: S104  # meant: Prometheus asks from elsewhere
        description="All addresses, since Prometheus asks from elsewhere. No secrets are there.",
    )
    port: Port = Field(default=9464, description="TCP port; 9464 is what OpenTelemetry's Prometheus exporters use.")


class Credentials(Section):
    """User and password that the gateway itself uses for stored items."""

    user: Line = Field(description="User name.")
    password: Annotated[SecretStr, Secret()] = Field(description="Password, from a file or the environment.")


class UpstreamSettings(Section):
    """A host that web services are called at."""

    url: Annotated[str, BaseUrl()] = Field(description="Scheme, host and port; the path is the caller's.")
    environment: Literal["test", "acceptance", "production"] | None = Field(
        default=None, description="Which BCSS environment it belongs to. Left out: guessed from the host's name."
    )
    certificate: Annotated[Path, At()] | None = Field(
        default=None, description="PEM: client certificate, intermediates."
    )
    key: Annotated[Path, At()] | None = Field(
        default=None, description="PEM: its key. Left out: it is in `certificate`."
    )
    key_password: Annotated[SecretStr, Secret()] | None = Field(
        default=None, description="Password of the key, if any."
    )
    ca: Annotated[Path, At()] | None = Field(
        default=None, description="PEM: the only CAs trusted. Left out: the system's."
    )
    server_name: Line | None = Field(
        default=None, description="Name in the server's certificate, where it is not the host."
    )
    connect_timeout: Annotated[float, Duration(0.01, 300)] = Field(
        default=10.0, description="Name lookup, TCP and TLS. 10s: three lost SYNs (RFC 6298: 1+2+4 s) and a handshake."
    )
    first_byte_timeout: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=120.0,
        description="Real-time: request sent to answer begun. 120s: longer than clients wait (usually 60s).",
    )
    total_timeout: Annotated[float, Duration(0.01, 24 * HOUR)] = Field(
        default=600.0, description="Real-time: the whole exchange. 600s: bounds leaks, and never a large answer."
    )
    call_timeout: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=30.0,
        description="Bulk: last check before the first byte, to the answer's last byte. A slot is held so long.",
    )
    hold: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=30.0,
        description="How long a source may go on working after the call timeout; its slot is held meanwhile. "
        "As long as the call timeout: no published bound exists.",
    )
    keep_alive: Annotated[float, Duration(0, 300)] = Field(
        default=4.0, description="Idle time after which a connection is dropped. 4s: below the 5 s of common servers."
    )
    connections: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        default=256,
        description="Most connections at a time. 256: far above what people cause; it stops a run-away client.",
    )
    preserve_host: Flag = Field(
        default=False, description="Pass the client's Host. false: servers expect their own name."
    )
    credentials: Credentials | None = Field(default=None, description="HTTP Basic for stored items (with mass runs).")

    @property
    def host(self) -> str:
        """The host, lower case, an IPv6 address without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The TCP port, the scheme's own when none is written."""
        return urlsplit(self.url).port or (443 if self.uses_tls else 80)

    @property
    def uses_tls(self) -> bool:
        """Whether calls go out over TLS."""
        return self.url.startswith("https://")

    @property
    def authority(self) -> str:
        """The value of Host (RFC 9110 section 7.2): no port when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.uses_tls else 80) else f"{host}:{self.port}"


class Route(Section):
    """Which paths lead to which upstream."""

    prefix: UrlPath = Field(description="Paths that begin so, up to a boundary (`/SOA` is not `/SOA4520`).")
    upstream: Name = Field(description="A name under `upstreams`.")
    replace: UrlPath | None = Field(
        default=None, description="What the prefix becomes. Left out: the path stays as it is."
    )
    wsdl_address: Annotated[str, BaseUrl()] | None = Field(
        default=None,
        description="The gateway's own scheme, host and port as clients reach it: written into WSDLs and schemas in "
        "place of the upstream's. Left out: they pass as they are.",
    )
    sources: tuple[Name, ...] | None = Field(
        default=None,
        description="Sources reached here. Bulk that is not recognised needs a slot of each; left out: all.",
    )


class Client(Section):
    """Callers that are known by where they come from or what they show: all kinds of criteria given must match."""

    name: Name = Field(description="Shown in logs; calls of one client are one flow, for fairness.")
    networks: tuple[Network, ...] = Field(
        default=(), description="Addresses or ranges; one must hold the peer's address."
    )
    tls_subjects: tuple[Line, ...] = Field(default=(), description="Subjects of client certificates (RFC 4514).")
    basic_users: tuple[Line, ...] = Field(default=(), description="HTTP Basic users. Not verified: only raise to bulk.")
    user_agents: tuple[Line, ...] = Field(default=(), description="Beginnings of User-Agent. Not verified: only raise.")
    traffic_class: TrafficClass | None = Field(
        default=None, validation_alias="class", description="Class of these calls. Left out: the listener's."
    )
    may_declare_realtime: Flag = Field(
        default=False,
        description="Whether `X-Traffic-Class: realtime` overrules a bulk default. Needs a verified criterion.",
    )
