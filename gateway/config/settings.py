"""What a configuration can say: every key with its meaning, its unit, its default and the reason for it.

The models are frozen. A model checks each of its values by itself; what must agree between keys is checked in
`gateway.config.checks`, so that all faults can be told at once. Attribute and YAML key are the same word, except
`class` (attribute `traffic_class`), `from` (`start`) and `to` (`end`). Durations are float seconds, sizes int bytes,
rates float starts a second, paths absolute once read from a file.

Never reads a file, a clock or the environment.
"""

from datetime import date, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

from gateway.config.values import At, BaseUrl, Day, Duration, Moment, Rate, Secret, Size, Text, shown, unfit
from policies.model import TrafficClass
from policies.pools import Reading

HOUR = 3600.0
MIB = 1024 * 1024

Line = Annotated[str, Text()]
Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, dots, dashes and _")]
UrlPath = Annotated[str, Text(r"/[!-~]*", "a path that begins with / and holds ASCII without spaces")]
Flag = Annotated[bool, Field(strict=True)]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
ErrorStatus = Annotated[int, Field(strict=True, ge=400, le=599)]


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
        if not isinstance(value, str):
            raise ValueError
        return ip_network(value)
    except ValueError as error:
        remedy = "Clear the bits after the prefix." if "host bits" in str(error) else "Write 10.1.0.0/16 or 10.1.2.3."
        raise unfit(f"{shown(value)} is not an address or an address range", remedy) from None


def _closed(value: Any) -> Any:
    if value == "queue":
        raise unfit('"queue" needs stored queues, which come with mass runs', "Use refuse or park.")
    return value


Address = Annotated[str, BeforeValidator(_address)]
Network = Annotated[
    IPv4Network | IPv6Network, BeforeValidator(_network), WithJsonSchema({"type": "string", "minLength": 2})
]


class Section(BaseModel):
    """A group of keys: nothing unknown in it, nothing changed once read, no value in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, hide_input_in_errors=True)


class Observe(Section):
    """Who answers for a gateway that refuses nothing, and until when."""

    owner: Line = Field(description="Who answers for bulk that goes through unrefused meanwhile.")
    until: Annotated[date, Day()] = Field(description="Last day of observing; at most 92 days ahead, so that it ends.")


class ListenerTls(Section):
    """TLS of a listener: 1.2 at least."""

    certificate: Annotated[Path, At()] = Field(description="PEM: the gateway's certificate, then its intermediates.")
    key: Annotated[Path, At()] | None = Field(None, description="PEM: its key. Left out: it is in `certificate`.")
    key_password: Annotated[SecretStr, Secret()] | None = Field(None, description="Password of the key, if any.")
    client_ca: Annotated[Path, At()] | None = Field(None, description="PEM: the CAs that issue clients' certificates.")
    client_certificate: Literal["none", "optional", "required"] = Field(
        "none", description="Whether clients show a certificate. none: an internal network rarely has client CAs."
    )

    @property
    def password(self) -> str | None:
        """The key's password, in the clear: for the TLS library only."""
        return self.key_password.get_secret_value() if self.key_password is not None else None


class Listener(Section):
    """A port that takes calls."""

    address: Address = Field(
        "127.0.0.1",
        description="Where to listen. This host only, since whoever reaches it calls with your certificate.",
    )
    port: Port = Field(8080, description="TCP port; 0 takes a free one (for tests).")
    traffic_class: TrafficClass = Field(
        TrafficClass.REALTIME,
        validation_alias="class",
        description="Class of calls that say nothing else. realtime: a person may be waiting.",
    )
    tls: ListenerTls | None = Field(None, description="Left out: plain HTTP, usual beside the client on one host.")


class Endpoint(Section):
    """Where /metrics, /healthz and /readyz are."""

    address: Address = Field("0.0.0.0", description="All addresses: Prometheus asks from elsewhere. No secrets there.")  # noqa: S104
    port: Port = Field(9464, description="TCP port; 9464 is what OpenTelemetry's Prometheus exporters use.")


class Credentials(Section):
    """User and password that the gateway itself uses for stored items."""

    user: Line = Field(description="User name.")
    password: Annotated[SecretStr, Secret()] = Field(description="Password, from a file or the environment.")


class UpstreamSettings(Section):
    """A host that web services are called at."""

    url: Annotated[str, BaseUrl()] = Field(description="Scheme, host and port; the path is the caller's.")
    environment: Literal["test", "acceptance", "production"] | None = Field(
        None, description="Which BCSS environment it belongs to. Left out: guessed from the host's name."
    )
    certificate: Annotated[Path, At()] | None = Field(None, description="PEM: client certificate, intermediates.")
    key: Annotated[Path, At()] | None = Field(None, description="PEM: its key. Left out: it is in `certificate`.")
    key_password: Annotated[SecretStr, Secret()] | None = Field(None, description="Password of the key, if any.")
    ca: Annotated[Path, At()] | None = Field(None, description="PEM: the only CAs trusted. Left out: the system's.")
    server_name: Line | None = Field(None, description="Name in the server's certificate, where it is not the host.")
    connect_timeout: Annotated[float, Duration(0.01, 300)] = Field(
        10.0, description="Name lookup, TCP and TLS. 10s: three lost SYNs (RFC 6298: 1+2+4 s) and a handshake."
    )
    first_byte_timeout: Annotated[float, Duration(0.01, HOUR)] = Field(
        120.0, description="Real-time: request sent to answer begun. 120s: longer than clients wait (usually 60s)."
    )
    total_timeout: Annotated[float, Duration(0.01, 24 * HOUR)] = Field(
        600.0, description="Real-time: the whole exchange. 600s: bounds leaks, and never a large answer."
    )
    call_timeout: Annotated[float, Duration(0.01, HOUR)] = Field(
        30.0, description="Bulk: last check before the first byte, to the answer's last byte. A slot is held so long."
    )
    hold: Annotated[float, Duration(0.01, HOUR)] = Field(
        30.0,
        description="How long a source may go on working after the call timeout; its slot is held meanwhile. "
        "As long as the call timeout: no published bound exists.",
    )
    keep_alive: Annotated[float, Duration(0, 300)] = Field(
        4.0, description="Idle time after which a connection is dropped. 4s: below the 5 s of common servers."
    )
    connections: Annotated[int, Field(strict=True, ge=1, le=100_000)] = Field(
        256, description="Most connections at a time. 256: far above what people cause; it stops a run-away client."
    )
    preserve_host: Flag = Field(False, description="Pass the client's Host. false: servers expect their own name.")
    credentials: Credentials | None = Field(None, description="HTTP Basic for stored items (with mass runs).")

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
    replace: UrlPath | None = Field(None, description="What the prefix becomes. Left out: the path stays as it is.")
    sources: tuple[Name, ...] | None = Field(
        None, description="Sources that can be reached here: bulk that is not recognised then takes slots of these only."
    )


class Client(Section):
    """Callers that are known by where they come from or what they show: all kinds of criteria given must match."""

    name: Name = Field(description="Shown in logs; calls of one client are one flow, for fairness.")
    networks: tuple[Network, ...] = Field((), description="Addresses or ranges; one must hold the peer's address.")
    tls_subjects: tuple[Line, ...] = Field((), description="Subjects of client certificates, RFC 4514; one must match.")
    basic_users: tuple[Line, ...] = Field((), description="HTTP Basic users. Not verified here: can only raise to bulk.")
    user_agents: tuple[Line, ...] = Field((), description="Beginnings of User-Agent. Not verified: only raise to bulk.")
    traffic_class: TrafficClass | None = Field(
        None, validation_alias="class", description="Class of these calls. Left out: the listener's."
    )
    may_declare_realtime: Flag = Field(
        False, description="Whether `X-Traffic-Class: realtime` overrules a bulk default. Needs a verified criterion."
    )


class PoolSettings(Section):
    """What differs from the recommendation for one pool."""

    slots: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = Field(
        None, description="Bulk calls in progress at a time. Left out: the recommendation (4 or 2); 0 stops the pool."
    )
    rate: Annotated[float, Rate()] | None = Field(None, description="Pace of starts, 10/s. Left out: as fast as slots.")
    exceeds_recommendation: Line | None = Field(None, description="Why more slots than recommended; needed then.")


class Bulk(Section):
    """What happens to mass calls."""

    reading: Reading = Field(
        Reading.DEFAULT,
        description="How the rule of 4 and 2 is read. default: 4 for BCSS and National Register together, 2 for each "
        "other source; strict: 2 for all others together; split: 4 each for the BCSS and the National Register.",
    )
    total_bulk: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = Field(
        None, description="Most bulk calls in progress over all pools. Left out: the pools alone bound it."
    )
    closed: Annotated[Literal["refuse", "park"], BeforeValidator(_closed)] = Field(
        "refuse", description="Bulk in closed hours. refuse: a caller held for hours times out and tries again."
    )
    park_time: Annotated[float, Duration(0, 24 * HOUR)] = Field(
        600.0, description="park: the opening is at most so far away. 10min: bridges a job started a little early."
    )
    park_length: Count = Field(10_000, description="park: most calls that wait for the opening; about 100 MB of memory.")
    queue_time: Annotated[float, Duration(0, HOUR)] = Field(
        8.0, description="Longest wait for a slot. 8s: real clients give up after 10 to 15 s."
    )
    queue_length: Count = Field(1000, description="Most calls waiting in a pool; a refusal is better than a late slot.")
    refusal_delay: Annotated[float, Duration(0, 30)] = Field(
        2.0, description="No refusal earlier than this after arrival: a naive loop must not burn its file in minutes."
    )
    refusal_delay_limit: Count = Field(1000, description="Most refusals delayed at a time; more are answered at once.")
    body_limit: Annotated[int, Size(1024, 64 * MIB)] = Field(
        MIB, description="Largest bulk request, which is read whole. 1MiB: a hundred times what the services take."
    )
    margin_min: Annotated[float, Duration(0, HOUR)] = Field(
        1.0, description="Before closing, the least time in which nothing starts. 1s: clocks differ a little."
    )
    margin_max: Annotated[float, Duration(0, HOUR)] = Field(
        300.0, description="Before closing, the most. Between both: the p99 seen at the source. 5min bounds outliers."
    )
    pools: dict[str, PoolSettings] = Field(default_factory=dict, description="By name of the pool, see `check`.")
    share: dict[str, Annotated[int, Field(strict=True, ge=0, le=1000)]] | None = Field(
        None,
        description="This gateway's part of each cap, where several share them without PostgreSQL; a pool that is not "
        "named has 0. Left out: this is the only gateway.",
    )


class OpenSpan(Section):
    """A time-boxed leave to run bulk in closed hours."""

    start: Annotated[datetime, Moment()] = Field(validation_alias="from", description="Begin, Brussels time.")
    end: Annotated[datetime, Moment()] = Field(validation_alias="to", description="End, Brussels time, excluded.")
    owner: Line = Field(description="Who asked for it.")
    reason: Line = Field(description="Why, and with whom at the BCSS it was agreed.")


class Windows(Section):
    """When bulk may start, apart from the BCSS's hours."""

    holidays: Literal["closed", "open"] = Field(
        "closed", description="Bulk on Belgian public holidays on weekdays. closed: the rule says Monday to Friday."
    )
    open_dates: tuple[Annotated[date, Day()], ...] = Field((), description="Weekdays open all day, as agreed.")
    closed_dates: tuple[Annotated[date, Day()], ...] = Field((), description="Days closed all day, weekends included.")
    exceptions: tuple[OpenSpan, ...] = Field((), description="Spans in closed hours in which bulk may run.")


class Limits(Section):
    """Bounds on what clients may do to the gateway."""

    header_time: Annotated[float, Duration(0.01, 300)] = Field(
        10.0, description="For a request's header to arrive. 10s: slow networks manage, slow-loris attacks do not."
    )
    idle_time: Annotated[float, Duration(0.01, HOUR)] = Field(
        75.0, description="Idle connections are closed then. 75s: longer than clients keep theirs (nginx: 75s)."
    )
    body_grace: Annotated[float, Duration(0, HOUR)] = Field(
        10.0, description="For how long a body's pace is not looked at. 10s: a stall of a few seconds is normal."
    )
    body_pace: Annotated[int, Size(1, 1024 * MIB, a_second=True)] = Field(
        1024, description="Bytes a second a body must bring on average after that. 1KiB/s: any working network."
    )
    connections: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        12_000, description="Most client connections: 10,000 parked calls, and room for people."
    )
    head_size: Annotated[int, Size(1024, MIB)] = Field(
        64 * 1024, description="Largest request line with header. 64KiB: SAML tokens in headers fit."
    )


class Answers(Section):
    """How the gateway answers itself."""

    decision_header: Flag = Field(True, description="Add X-Gateway-Decision to answers. true: people find causes.")
    soap11_status: ErrorStatus = Field(
        500, description="Status of SOAP 1.1 faults. 500: WS-I Basic Profile; stacks throw away the body of a 503."
    )
    soap12_status: ErrorStatus = Field(500, description="Of SOAP 1.2 Receiver faults. 500: its HTTP binding.")
    other_status: ErrorStatus = Field(503, description="Of refusals of anything else (RFC 9457). 503: come back later.")


class Settings(Section):
    """A whole configuration."""

    mode: Literal["enforce", "observe"] = Field(
        "enforce", description="observe forwards everything and says what would have been refused. enforce: the cap holds."
    )
    observe: Observe | None = Field(None, description="Needed with `mode: observe`.")
    data_dir: Annotated[Path, At(must_be_readable=False)] = Field(
        Path("var"), description="Lock, and what may still run after a stop. A local file system; made when missing."
    )
    listeners: tuple[Listener, ...] = Field((Listener(),), description="Ports for calls, each with its default class.")
    telemetry: Endpoint = Field(default_factory=Endpoint, description="Port for metrics and health.")
    upstreams: dict[Name, UpstreamSettings] = Field(default_factory=dict, description="By a name of your choice.")
    routes: tuple[Route, ...] = Field((), description="Longest prefix wins; no match is answered with 404.")
    clients: tuple[Client, ...] = Field((), description="Callers that are known. The first match names the flow.")
    catalogue: tuple[Annotated[Path, At()], ...] = Field((), description="Own services, laid over the shipped ones.")
    bulk: Bulk = Field(default_factory=Bulk, description="What happens to mass calls.")
    windows: Windows = Field(default_factory=Windows, description="When bulk may start.")
    limits: Limits = Field(default_factory=Limits, description="Bounds on what clients may do.")
    answers: Answers = Field(default_factory=Answers, description="How the gateway answers itself.")
    drain_time: Annotated[float, Duration(0, 10 * 60)] = Field(
        25.0, description="On stop, for calls in flight to end. 25s: inside the 30 s that Kubernetes gives."
    )

    @property
    def hold_total(self) -> float:
        """T, seconds: how long a source may be busy with a call, the largest of all upstreams."""
        return max((one.call_timeout + one.hold for one in self.upstreams.values()), default=60.0)
