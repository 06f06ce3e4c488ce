"""What a configuration can say: every key with its meaning, its unit, its default and the reason for it.

The models are frozen. A model checks each of its values by itself; what must agree between keys is checked in
`gateway.config.checks`, so that all faults can be told at once. Attribute and YAML key are the same word, except
`class` (attribute `traffic_class`), `from` (`start`) and `to` (`end`). Durations are float seconds, sizes int bytes,
rates float starts a second, paths absolute once read from a file.

Never reads a file, a clock or the environment.
"""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from gateway.config.endpoints import (
    HOUR,
    Address,
    Client,
    Endpoint,
    Flag,
    Line,
    Listener,
    Name,
    Port,
    Route,
    Section,
    UpstreamSettings,
)
from gateway.config.values import At, Day, Duration, Moment, Rate, Secret, Size, Text
from policies.pools import Reading

MIB = 1024 * 1024

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
ErrorStatus = Annotated[int, Field(strict=True, ge=400, le=599)]


class Observe(Section):
    """Who answers for a gateway that refuses nothing, and until when."""

    owner: Line = Field(description="Who answers for bulk that goes through unrefused meanwhile.")
    until: Annotated[date, Day()] = Field(description="Last day of observing; at most 92 days ahead, so that it ends.")


class PoolSettings(Section):
    """What differs from the recommendation for one pool."""

    slots: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = Field(
        default=None,
        description="Bulk calls in progress at a time. Left out: the recommendation (4 or 2); 0 stops the pool.",
    )
    rate: Annotated[float, Rate()] | None = Field(
        default=None, description="Pace of starts, 10/s. Left out: as fast as slots."
    )
    exceeds_recommendation: Line | None = Field(
        default=None, description="Why more slots than recommended; needed then."
    )


class Bulk(Section):
    """What happens to mass calls."""

    reading: Reading = Field(
        default=Reading.DEFAULT,
        description="How the rule of 4 and 2 is read. default: 4 for BCSS and National Register together, 2 for each "
        "other source; strict: 2 for all others together; split: 4 each for the BCSS and the National Register.",
    )
    total_bulk: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = Field(
        default=None, description="Most bulk calls in progress over all pools. Left out: the pools alone bound it."
    )
    closed: Literal["refuse", "park", "queue"] = Field(
        default="refuse",
        description="Bulk in closed hours. refuse: a caller held for hours times out and tries again. queue: stored, "
        "and answered with 202 and where the answer will be.",
    )
    park_time: Annotated[float, Duration(0, 24 * HOUR)] = Field(
        default=600.0,
        description="park: the opening is at most so far away. 10min: bridges a job started a little early.",
    )
    park_length: Count = Field(default=10_000, description="park: most calls that wait for it; about 100 MB of memory.")
    queue_time: Annotated[float, Duration(0, HOUR)] = Field(
        default=8.0, description="Longest wait for a slot. 8s: real clients give up after 10 to 15 s."
    )
    queue_length: Count = Field(
        default=1000, description="Most calls waiting in a pool; a refusal is better than a late slot."
    )
    refusal_delay: Annotated[float, Duration(0, 30)] = Field(
        default=2.0,
        description="No refusal earlier than this after arrival: a naive loop must not burn its file in minutes.",
    )
    refusal_delay_limit: Count = Field(
        default=1000, description="Most refusals delayed at a time; more are answered at once."
    )
    body_limit: Annotated[int, Size(1024, 64 * MIB)] = Field(
        default=MIB,
        description="Largest bulk request, which is read whole. 1MiB: a hundred times what the services take.",
    )
    margin_min: Annotated[float, Duration(0, HOUR)] = Field(
        default=1.0, description="Before closing, the least time in which nothing starts. 1s: clocks differ a little."
    )
    margin_max: Annotated[float, Duration(0, HOUR)] = Field(
        default=300.0,
        description="Before closing, the most. Between both: the p99 seen at the source. 5min bounds outliers.",
    )
    pools: dict[str, PoolSettings] = Field(default_factory=dict, description="By name of the pool, see `check`.")
    share: dict[str, Annotated[int, Field(strict=True, ge=0, le=1000)]] | None = Field(
        default=None,
        description="This gateway's part of each cap, where several share them without PostgreSQL; a pool that is not "
        "named has 0. Left out: this is the only gateway.",
    )


class StoreSettings(Section):
    """Where runs are kept."""

    url: Annotated[SecretStr, Secret()] | None = Field(
        default=None,
        description="postgresql://user:password@host/database, for several gateways. Left out: SQLite in `data_dir`.",
    )
    timeout: Annotated[float, Duration(0.1, 60)] = Field(
        default=5.0, description="For an answer of PostgreSQL. 5s: well inside a lease, and far above what it takes."
    )
    key: Annotated[SecretStr, Secret()] | None = Field(
        default=None,
        description="32 octets in base64, which wrap the keys of runs. Left out: made in `data_dir` at first start.",
    )


class Token(Section):
    """Who may use the API over TCP."""

    name: Name = Field(description="Shown as the author of what is done with it.")
    sha256: Annotated[str, Text(r"[0-9a-f]{64}", "64 hex digits, as `bcss-gateway token` prints them")] = Field(
        description="SHA-256 of the token."
    )
    role: Literal["viewer", "operator"] = Field(default="viewer", description="viewer reads; operator changes too.")


class Administration(Section):
    """The API of operators."""

    address: Address = Field(default="127.0.0.1", description="Where to listen. This host only.")
    port: Port = Field(default=8081, description="TCP port; 0 takes a free one (for tests).")
    tokens: tuple[Token, ...] = Field(default=(), description="Left out: closed over TCP; the socket is for this host.")
    hosts: tuple[Line, ...] = Field(
        default=(), description="Host names it may be called by, besides its own address and localhost."
    )


class RunSettings(Section):
    """How mass runs are carried out."""

    max_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(
        default=5, description="Calls for one item at the most. 5: with the pauses between, some two hours."
    )
    retry_first: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=30.0, description="Pause before the second attempt; doubled each time. 30s: a hiccup is over by then."
    )
    retry_longest: Annotated[float, Duration(0.01, 24 * HOUR)] = Field(
        default=3600.0, description="The longest such pause."
    )
    cool_down: Annotated[float, Duration(0, 24 * HOUR)] = Field(
        default=300.0, description="From an interruption to its resumption, as the BCSS asks (recommendation 4)."
    )
    ramp_step: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=60.0, description="After it, one slot; one more for each such time without a fault."
    )
    burst_faults: Annotated[int, Field(strict=True, ge=1, le=1000)] = Field(
        default=5, description="Technical faults of a source that interrupt it, if they are also half of `burst_calls`."
    )
    burst_calls: Annotated[int, Field(strict=True, ge=2, le=10_000)] = Field(
        default=20, description="The last calls to a source that are looked at."
    )
    burst_time: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=60.0, description="How far back they may lie. 60s: older ones say nothing of now."
    )
    reject_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05,
        description="Share of rejects above which a run is paused for a person. 0.05: few rejects are asked.",
    )
    reject_minimum: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=200, description="Settled items before the share means anything."
    )
    retention: Annotated[float, Duration(HOUR, 3660 * 24 * HOUR)] = Field(
        default=30 * 24 * HOUR, description="Ended runs are purged then: their key, items and answers."
    )


class SuspicionSettings(Section):
    """Clients that behave like a batch and do not say so."""

    action: Literal["show", "bulk"] = Field(
        default="show",
        description="show: counted and logged. bulk: treated as bulk, until calm. show: a person decides first.",
    )
    minimum_calls: Annotated[int, Field(strict=True, ge=10, le=100_000)] = Field(
        default=30,
        description="Calls of one client to one source in a minute before anything is suspected. 30: one loop's pace.",
    )
    rate: Annotated[float, Rate()] = Field(
        default=10.0, description="A pace that is suspect however irregular. 10/s: a whole office stays below."
    )
    calm: Annotated[float, Duration(1, 24 * HOUR)] = Field(
        default=300.0, description="A suspicion ends after so long without cause. 5min: pauses of a batch are shorter."
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
        default="closed",
        description="Bulk on Belgian public holidays on weekdays. closed: the rule says Monday to Friday.",
    )
    open_dates: tuple[Annotated[date, Day()], ...] = Field(default=(), description="Weekdays open all day, as agreed.")
    closed_dates: tuple[Annotated[date, Day()], ...] = Field(
        default=(), description="Days closed all day, weekends included."
    )
    exceptions: tuple[OpenSpan, ...] = Field(default=(), description="Spans in closed hours in which bulk may run.")


class Limits(Section):
    """Bounds on what clients may do to the gateway."""

    header_time: Annotated[float, Duration(0.01, 300)] = Field(
        default=10.0,
        description="For a request's header to arrive. 10s: slow networks manage, slow-loris attacks do not.",
    )
    idle_time: Annotated[float, Duration(0.01, HOUR)] = Field(
        default=75.0, description="Idle connections are closed then. 75s: longer than clients keep theirs (nginx: 75s)."
    )
    body_grace: Annotated[float, Duration(0, HOUR)] = Field(
        default=10.0,
        description="For how long a body's pace is not looked at. 10s: a stall of a few seconds is normal.",
    )
    body_pace: Annotated[int, Size(1, 1024 * MIB, a_second=True)] = Field(
        default=1024, description="Bytes a second a body must bring on average after that. 1KiB/s: any working network."
    )
    connections: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=12_000, description="Most client connections: 10,000 parked calls, and room for people."
    )
    head_size: Annotated[int, Size(1024, MIB)] = Field(
        default=64 * 1024, description="Largest request line with header. 64KiB: SAML tokens in headers fit."
    )


class Answers(Section):
    """How the gateway answers itself."""

    decision_header: Flag = Field(
        default=True, description="Add X-Gateway-Decision to answers. true: people find causes."
    )
    soap11_status: ErrorStatus = Field(
        default=500,
        description="Status of SOAP 1.1 faults. 500: WS-I Basic Profile; stacks throw away the body of a 503.",
    )
    soap12_status: ErrorStatus = Field(default=500, description="Of SOAP 1.2 Receiver faults. 500: its HTTP binding.")
    other_status: ErrorStatus = Field(
        default=503, description="Of refusals of anything else (RFC 9457). 503: come back later."
    )


class Settings(Section):
    """A whole configuration."""

    mode: Literal["enforce", "observe"] = Field(
        default="enforce",
        description="observe: forwards everything and says what would have been refused. Default: the cap.",
    )
    observe: Observe | None = Field(default=None, description="Needed with `mode: observe`.")
    data_dir: Annotated[Path, At(must_be_readable=False)] = Field(
        default=Path("var"),
        validate_default=True,
        description="Lock, and what may still run after a stop. A local file system; made when missing.",
    )
    listeners: tuple[Listener, ...] = Field(
        default_factory=lambda: (Listener(),), description="Ports for calls, each with its default class."
    )
    telemetry: Endpoint = Field(default_factory=Endpoint, description="Port for metrics and health.")
    upstreams: dict[Name, UpstreamSettings] = Field(default_factory=dict, description="By a name of your choice.")
    routes: tuple[Route, ...] = Field(default=(), description="Longest prefix wins; no match is answered with 404.")
    clients: tuple[Client, ...] = Field(
        default=(), description="Callers that are known. The first match names the flow."
    )
    catalogue: tuple[Annotated[Path, At()], ...] = Field(
        default=(), description="Own services, laid over the shipped ones."
    )
    bulk: Bulk = Field(default_factory=Bulk, description="What happens to mass calls.")
    suspicion: SuspicionSettings = Field(
        default_factory=SuspicionSettings, description="Clients that behave like a batch and do not say so."
    )
    windows: Windows = Field(default_factory=Windows, description="When bulk may start.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="Where runs are kept.")
    administration: Administration = Field(default_factory=Administration, description="The API of operators.")
    runs: RunSettings = Field(default_factory=RunSettings, description="How mass runs are carried out.")
    statuses: tuple[Annotated[Path, At()], ...] = Field(
        default=(), description="Own meanings of business statuses and fault codes, laid over the shipped ones."
    )
    limits: Limits = Field(default_factory=Limits, description="Bounds on what clients may do.")
    answers: Answers = Field(default_factory=Answers, description="How the gateway answers itself.")
    watch_files: Annotated[float, Duration(0, HOUR)] = Field(
        default=5.0,
        description="How often this file and those it names are looked at; changed ones are read anew. 0: only on "
        "SIGHUP. 5s: soon, and no load.",
    )
    drain_time: Annotated[float, Duration(0, 10 * 60)] = Field(
        default=25.0, description="On stop, for calls in flight to end. 25s: inside the 30 s that Kubernetes gives."
    )

    @property
    def hold_total(self) -> float:
        """T, seconds: how long a source may be busy with a call, the largest of all upstreams."""
        return max((one.call_timeout + one.hold for one in self.upstreams.values()), default=60.0)
