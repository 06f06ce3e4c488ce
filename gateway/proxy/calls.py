"""What is known of one call while it passes, and the books that are kept of it: metrics, one log line, the decision
field.

Rules that always hold:
- One call, one line, one count, whatever became of it.
- A line holds names of the configuration and of the catalogue, sizes, times and identifiers that `safe_id` let
  through: never a path (a client may put a national number there), a query, a body or a credential.

Decides nothing about a call.
"""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC
from functools import lru_cache
from itertools import count

from gateway.log import nameable, safe_id
from gateway.metrics import NO_SOURCE, Metrics
from gateway.proxy.wire import RequestFields
from policies.model import UNCLASSIFIED, Clock, Reason, TrafficClass

_PROCESS = secrets.token_hex(6)
_NUMBERS = count(1)
_REALTIME = b"X-Gateway-Decision: forwarded; class=realtime; mode=%s"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Call:
    """One call. Times are of a counter in seconds that starts anywhere."""

    arrived: float
    request_id: str = ""  #: of letters, digits and ._:/@+=- only
    traffic: TrafficClass = TrafficClass.REALTIME
    rule: str = ""  #: which rule made it bulk or real-time
    flow: str = ""
    route: str = ""
    label: str = NO_SOURCE  #: the `source` label
    service: str = ""
    pools: tuple[str, ...] = ()
    mismatch: str = ""
    names_run: str | None = None  #: what stands in `X-Bulk-Run`: a client's text, not to be logged
    run: str = ""  #: public id of the run that it belongs to
    outcome: str = "rejected"
    reason: Reason | None = None
    would_refuse: Reason | None = None  #: mode observe: why enforcement would have refused
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    waited: float = 0.0  #: for slots, seconds
    sent_at: float | None = None  #: when the exchange with the upstream began
    upstream: float = 0.0  #: how long it took, seconds
    faults: list[str] = field(default_factory=list)  #: what went wrong, for the log


def request_id_of(fields: RequestFields) -> str:
    """Return the caller's own identifier (`X-Request-Id`, or the trace of `traceparent`) if it is safe to log, else
    a new one."""
    read = fields.read
    if b"x-request-id" in read and (given := safe_id(fields.first(b"x-request-id"))):
        return given
    if b"traceparent" in read and (trace := _TRACEPARENT.fullmatch(fields.first(b"traceparent"))):
        return trace[1]
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def decision_field(call: Call, mode: str) -> bytes:
    """Write the `X-Gateway-Decision` line of a forwarded call (design section 4, 6)."""
    if call.traffic is TrafficClass.REALTIME and call.would_refuse is None:
        return _REALTIME % mode.encode("ascii")
    parts = ["forwarded", f"class={call.traffic}"]
    if call.traffic is TrafficClass.BULK:
        parts += [f"source={call.label}", f"pool={'+'.join(call.pools)}", f"wait={call.waited:.3f}"]
    parts.append(f"mode={mode}")
    if call.would_refuse is not None:
        parts.append(f"would-refuse={call.would_refuse}")
    return b"X-Gateway-Decision: " + "; ".join(parts).encode("ascii")


class Books:
    """Keeps the metrics and the access log, whose lines go to `write`."""

    def __init__(self, metrics: Metrics, clock: Clock, write: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._write = write

    def settle(self, call: Call, now: float, *, client: str) -> None:
        """Write a call into the books, once, when it is over."""
        metrics = self._metrics
        meters = metrics.call(call.label, call.traffic)
        meters.outcomes[call.outcome].inc()
        if call.label == UNCLASSIFIED:
            metrics.unclassified[call.traffic].inc()
        if call.mismatch:
            metrics.mismatches.inc()
        if call.reason is not None:
            metrics.refused(call.label, call.traffic, call.reason, as_fault=True)
        if call.sent_at is not None and call.outcome == "forwarded":
            meters.upstream_seconds.observe(call.upstream)
            metrics.added_seconds[call.traffic].observe(max(0.0, now - call.arrived - call.upstream - call.waited))
        if call.pools and (call.outcome == "forwarded" or call.waited):
            for pool in call.pools:
                metrics.slot_wait_seconds[pool].observe(call.waited)
        if call.would_refuse is not None:
            metrics.would_refuse.labels(call.would_refuse).inc()
        self._line(call, now, client)

    def _line(self, call: Call, now: float, client: str) -> None:
        # Written by hand: a JSON encoder costs as much as all else that the gateway does for a call (measured: 12 of
        # 80 us).
        line = (
            f'{{"event":"call","time":"{self._clock.wall().astimezone(UTC).isoformat(timespec="milliseconds")}"'
            f',"request_id":"{call.request_id}","class":"{call.traffic}","rule":{_quoted(call.rule)}'
            f',"client":{_quoted(client)},"route":{_quoted(call.route)},"source":{_quoted(call.label)}'
            f',"service":{_quoted(call.service)},"outcome":"{call.outcome}","status":{call.status}'
            f',"bytes_in":{call.bytes_in},"bytes_out":{call.bytes_out}'
            f',"total_ms":{(now - call.arrived) * 1000:.3f},"upstream_ms":{call.upstream * 1000:.3f}'
        )
        if call.traffic is TrafficClass.BULK:
            pools = _quoted("+".join(call.pools))
            line += f',"flow":{_quoted(nameable(call.flow))},"pools":{pools},"wait_ms":{call.waited * 1000:.3f}'
        if call.run:
            line += f',"run":{_quoted(call.run)}'
        if call.reason is not None:
            line += f',"reason":"{call.reason}"'
        if call.would_refuse is not None:
            line += f',"would_refuse":"{call.would_refuse}"'
        if call.mismatch:
            line += f',"mismatch":{_quoted(call.mismatch)}'
        if call.faults:
            line += f',"faults":{json.dumps(call.faults)}'
        self._write(line + "}")


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text)
