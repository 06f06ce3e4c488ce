"""`bcss-gateway explain`: what the gateway would make of a message, without sending it.

It asks the same rooms as the traffic path (`class_of`, `digest`, `Catalogue.find`, `Layout`, `Calendar`), so that
what it says is what would happen. It prints names of operations and sources, never what else a message holds.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.app import SystemClock
from gateway.config import Configuration, Route
from gateway.proxy.wire import path_of, request_fields, untag
from gateway.routing import Routes
from gateway.soap import MalformedBodyError, TooLargeError, digest
from policies.classify import CallFacts, SourceDecision, class_of
from policies.model import Digest, Style, TrafficClass


@dataclass(frozen=True, slots=True)
class Question:
    """How the messages would arrive."""

    path: str = ""
    headers: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    listener: int = 0
    at: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be made of one message."""

    file: str
    style: str
    operations: tuple[str, ...]
    service: str
    kind: str
    sources: tuple[str, ...]
    confidence: str
    source_rule: str
    mismatch: str
    traffic: str
    class_rule: str
    flow: str
    route: str
    upstream: str
    pools: tuple[str, ...]
    outcome: str


def explain(configuration: Configuration, files: list[Path], question: Question, *, as_json: bool) -> int:
    """Explain each file; return the exit status."""
    try:
        at = _instant(configuration, question.at)
        explanations = [_explained(configuration, str(file), _read(file), question, at) for file in files]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if as_json:
        for explanation in explanations:
            print(json.dumps(asdict(explanation), ensure_ascii=False))
    else:
        _print(explanations)
    return 0


def _read(file: Path) -> bytes:
    return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()


def _instant(configuration: Configuration, text: str) -> datetime:
    zone = configuration.calendar.zone
    if not text:
        return SystemClock().wall().astimezone(zone)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'--at: "{text}" is not a time; write it as "2026-11-24T09:30".') from None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=zone)


def _explained(configuration: Configuration, name: str, body: bytes, question: Question, at: datetime) -> Explanation:
    fields = request_fields(_parsed(question.headers), None)
    target, tagged = untag(question.path.encode("utf-8"))
    listeners = configuration.settings.listeners
    if not 0 <= question.listener < len(listeners):
        raise ValueError(f"--listener: there are {len(listeners)}, counted from 0.")
    facts = CallFacts(
        listener_class=listeners[question.listener].traffic_class,
        path=path_of(target),
        bulk_prefix=tagged,
        traffic_class=fields.every(b"x-traffic-class"),
        bulk_run=fields.every(b"x-bulk-run"),
        peer=question.address,
        tls_subject="",
        basic_user="",
        user_agent=fields.first(b"user-agent"),
    )
    decision = class_of(facts, configuration.rules)
    found, trouble = _digest(configuration, body, fields.first(b"content-type"), fields.every(b"content-encoding"))
    sources = configuration.catalogue.find(
        found, path=path_of(target), soap_action=fields.first(b"soapaction").strip('"')
    )
    route = Routes(configuration.settings.routes).of(target)
    pools = _pools(configuration, sources, route)
    return Explanation(
        file=name,
        style=found.style if found.style is not Style.UNKNOWN else f"unknown: {found.unsound}",
        operations=tuple(str(operation) for operation in found.operations),
        service=sources.service,
        kind=sources.kind,
        sources=tuple(sorted(sources.sources)) or ("unclassified",),
        confidence=sources.confidence,
        source_rule=sources.rule,
        mismatch=sources.mismatch,
        traffic=decision.traffic,
        class_rule=decision.rule,
        flow=decision.flow,
        route=route.prefix if route else "",
        upstream=route.upstream if route else "",
        pools=pools if decision.traffic is TrafficClass.BULK else (),
        outcome=trouble or _outcome(configuration, decision.traffic, decision.run_id, route, at),
    )


def _parsed(headers: Iterable[str]) -> list[tuple[bytes, bytes]]:
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise ValueError(f'--header: "{header}" is not a field; write it as "Name: value".')
        fields.append((name.strip().encode(), value.strip().encode()))
    return fields


def _digest(
    configuration: Configuration, body: bytes, content_type: str, codings: tuple[str, ...]
) -> tuple[Digest, str]:
    try:
        selectors = configuration.catalogue.selectors
        coding = ",".join(codings)
        return digest(body, content_type=content_type, content_encoding=coding, selectors=selectors), ""
    except MalformedBodyError:
        return Digest(Style.UNKNOWN, unsound="the compression cannot be read"), "bulk is refused: malformed"
    except TooLargeError:
        return Digest(Style.UNKNOWN, unsound="larger than a bulk body may be"), "bulk is refused: too_large"


def _pools(configuration: Configuration, sources: SourceDecision, route: Route | None) -> tuple[str, ...]:
    if sources.sources:
        return configuration.layout.needs(sources.sources)
    reachable = route.sources if route is not None and route.sources else tuple(configuration.catalogue.sources)
    return configuration.layout.unclassified(reachable)


def _outcome(
    configuration: Configuration, traffic: TrafficClass, run_id: str | None, route: Route | None, at: datetime
) -> str:
    settings, calendar = configuration.settings, configuration.calendar
    if route is None:
        return "answered with 404: no route leads there"
    if traffic is TrafficClass.REALTIME:
        return "forwarded at once"
    if run_id is not None:
        return "refused: unknown_run (there are no runs yet)"
    if calendar.is_open(at):
        return f"takes its slots and is forwarded; waits at most {settings.bulk.queue_time:g} s when none is free"
    return _closed(configuration, at)


def _closed(configuration: Configuration, at: datetime) -> str:
    bulk = configuration.settings.bulk
    opening = configuration.calendar.next_opening(at)
    when = f"until {opening:%A %Y-%m-%d %H:%M} ({opening.tzname()})" if opening is not None else "for good"
    if configuration.settings.mode == "observe":
        return f"forwarded (mode observe); enforcement would refuse it: office_hours, {when}"
    if bulk.closed == "park" and opening is not None and (opening - at).total_seconds() <= bulk.park_time:
        return f"parked {when}"
    return f"refused: office_hours, {when}"


def _print(explanations: list[Explanation]) -> None:
    console = Console()
    for explanation in explanations:
        table = Table(title=explanation.file, show_header=False, title_justify="left")
        rows = asdict(explanation)
        del rows["file"]
        for name, value in rows.items():
            shown = "\n".join(value) if isinstance(value, tuple | list) else str(value)
            table.add_row(name.replace("_", " "), shown or "-")
        console.print(table)
