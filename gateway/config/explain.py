"""What a configuration means, for the person who answers for it; and what may be written, for an editor.

`describe` is what `bcss-gateway check` prints: is bulk open and until when, which pool has how many slots for whom,
where calls go, who is taken for what, how long things may take, where runs are kept and who may steer them, how far the
catalogue is to be trusted, and warnings.
`schema` is the JSON Schema of the YAML.

Rules that always hold: the text says what follows from the settings, not what was typed; no secret is in it; the same
configuration at the same instant gives the same text.

Never checks anything: what is described was found sound.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from gateway.config.endpoints import Client, Listener, UpstreamSettings
from gateway.config.load import Configuration
from gateway.config.notices import environment_of, store_place
from gateway.config.settings import Settings
from gateway.config.values import duration_text, size_text
from policies.model import TrafficClass

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def describe(configuration: Configuration, now: datetime) -> str:
    """Return the meaning of a configuration as text in paragraphs, lines of about 100 characters.

    Args:
        configuration: what `load` returned.
        now: an aware instant, for the state of the windows.
    """
    sections = (
        ("Windows", _windows(configuration, now)),
        ("Pools", _pools(configuration)),
        ("Routes", _routes(configuration)),
        ("Classes", _classes(configuration.settings)),
        ("Times", _times(configuration.settings)),
        ("Runs", _runs(configuration.settings)),
        ("Catalogue", _catalogue(configuration)),
        ("Warnings", configuration.warnings or ("none",)),
    )
    title = f"{configuration.path}: mode {configuration.settings.mode}"
    return "\n".join([title, *("\n".join(["", name, *(f"  {line}" for line in lines)]) for name, lines in sections)])


def _windows(configuration: Configuration, now: datetime) -> Iterator[str]:
    calendar, bulk = configuration.calendar, configuration.settings.bulk
    local = now.astimezone(calendar.zone)
    for hours in calendar.closed:
        days = ", ".join(_DAYS[day] for day in sorted(hours.weekdays))
        yield f"Bulk does not start {days}, {hours.start:%H:%M} to {hours.end:%H:%M} ({calendar.zone})."
    windows = configuration.settings.windows
    yield f"Public holidays on these days are {windows.holidays} to bulk."
    for what, days_named in (("Open all day", windows.open_dates), ("Closed all day", windows.closed_dates)):
        if days_named:
            yield f"{what}: {', '.join(map(str, sorted(days_named)))}."
    is_open, change = calendar.is_open(local), calendar.next_change(local)
    until = f"{'closes' if is_open else 'opens'} {_instant(change)}" if change else "no change within 400 days"
    yield f"Now, {_instant(local)}: {'open' if is_open else 'closed'}; {until}."
    if bulk.closed == "park":
        yield (
            f"Bulk in closed hours waits for an opening that is at most {duration_text(bulk.park_time)} away "
            f"({bulk.park_length:,} calls at most); otherwise it is refused with the time of the next opening."
        )
    elif bulk.closed == "queue":
        yield "Bulk in closed hours is stored, answered with 202, and sent when the window opens; its answer is kept."
    else:
        yield "Bulk in closed hours is refused, with the time of the next opening."
    least, most = duration_text(bulk.margin_min), duration_text(bulk.margin_max)
    yield f"Before closing, nothing starts that is not expected to end in time (margin {least} to {most})."


def _instant(at: datetime) -> str:
    return f"{_DAYS[at.weekday()]} {at:%Y-%m-%d %H:%M} {at.tzname()}"


def _pools(configuration: Configuration) -> Iterator[str]:
    layout, bulk = configuration.layout, configuration.settings.bulk
    yield f"Reading {bulk.reading}: bulk calls in progress at a time, by pool. Confirm it with your PPKB contact."
    rows = [("pool", "slots", "sources")]
    for pool in layout.pools.values():
        rate = f"; {pool.rate_per_s:g} starts a second" if pool.rate_per_s is not None else ""
        above = f" (recommended {pool.recommended})" if pool.slots != pool.recommended else ""
        rows.append((pool.name, f"{pool.slots}{above}", f"{', '.join(sorted(pool.sources))}{rate}"))
    yield from _table(rows)
    if layout.total is not None:
        yield f"All pools together: at most {layout.total}."
    if bulk.share is not None:
        yield "These are this gateway's shares; others have the rest."
    yield (
        f"A call waits at most {duration_text(bulk.queue_time)} for a slot, in a queue of {bulk.queue_length:,}; "
        f"a refusal goes out {duration_text(bulk.refusal_delay)} after the call's arrival at the earliest."
    )
    yield f"A bulk request has at most {size_text(bulk.body_limit)}."


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([" ", *cells, row[-1]]).rstrip()


def _routes(configuration: Configuration) -> Iterator[str]:
    settings = configuration.settings
    everything = tuple(configuration.catalogue.sources)
    for route in sorted(settings.routes, key=lambda route: (-len(route.prefix), route.prefix)):
        upstream = settings.upstreams[route.upstream]
        target = f"{upstream.url}{route.replace if route.replace is not None else route.prefix}"
        environment = environment_of(upstream) or "environment not known"
        reach = configuration.layout.unclassified(route.sources if route.sources is not None else everything)
        yield f"{route.prefix} -> {target} ({route.upstream}, {environment})"
        what = f"its sources: {', '.join(route.sources)}" if route.sources is not None else "all sources"
        yield f"  Reaches {what}; bulk that is not recognised takes a slot in each of {len(reach)} pools."
    yield "Anything else is answered with 404."


def _classes(settings: Settings) -> Iterator[str]:
    yield from map(_listener, settings.listeners)
    yield "Bulk whatever the listener: paths under /bulk/ (taken off), X-Traffic-Class: bulk, X-Bulk-Run."
    yield from map(_client, settings.clients)


def _listener(listener: Listener) -> str:
    host = f"[{listener.address}]" if ":" in listener.address else listener.address
    how = "plain HTTP" if listener.tls is None else f"TLS, client certificate {listener.tls.client_certificate}"
    return f"Listener {host}:{listener.port} ({how}): {listener.traffic_class} unless a call says otherwise."


def _client(client: Client) -> str:
    criteria = {
        "address in": tuple(map(str, client.networks)),
        "certificate of": client.tls_subjects,
        "user": client.basic_users,
        "User-Agent": client.user_agents,
    }
    told = " and ".join(f"{kind} {' or '.join(values)}" for kind, values in criteria.items() if values)
    becomes = {
        TrafficClass.BULK: "bulk",
        TrafficClass.REALTIME: "real-time unless another signal says bulk",
        None: "as the listener says",
    }[client.traffic_class]
    declares = "; may declare X-Traffic-Class: realtime" if client.may_declare_realtime else ""
    return f"Client {client.name}: {told}: {becomes}{declares}."


def _times(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        yield f"{name}: {_upstream_times(upstream)}"
    total = duration_text(settings.hold_total)
    yield f"T = {total}: a source may be busy with a call for so long and holds its slot;"
    yield "a start after a crash waits T at least."
    yield f"On stop, calls in flight have {duration_text(settings.drain_time)} to end."


def _runs(settings: Settings) -> Iterator[str]:
    yield from _kept(settings)
    yield from _steered(settings)
    runs = settings.runs
    yield (
        f"An item is called {runs.max_attempts} times at the most, with pauses of {duration_text(runs.retry_first)} to "
        f"{duration_text(runs.retry_longest)};"
    )
    yield "what may have been done, and is not declared to read, is never repeated."
    yield (
        f"A source is interrupted by {runs.burst_faults} faults in {duration_text(runs.burst_time)} that are half of "
        f"its last {runs.burst_calls} calls;"
    )
    cool_down, step = duration_text(runs.cool_down), duration_text(runs.ramp_step)
    yield f"it cools down for {cool_down}, then gets one slot, and one more each {step}."
    yield (
        f"A run is paused for a person when over {100 * runs.reject_ratio:.3g} % of at least {runs.reject_minimum:,} "
        "settled items were rejected or failed."
    )
    yield "No announcement is checked yet: tell the BCSS of a run a week before, yourself."


def _kept(settings: Settings) -> Iterator[str]:
    store, directory = settings.store, settings.data_dir
    retention = f"ended runs are purged after {duration_text(settings.runs.retention)}"
    if store.url is None:
        yield f"Kept in {directory}/store.sqlite, for this gateway alone; {retention}."
    else:
        place = store_place(store.url.get_secret_value())
        yield f"Kept in PostgreSQL, {place.host}/{place.database}, for all gateways on it; {retention}."
        yield "Slots are kept there too: while it does not answer, no bulk starts; real-time does not need it."
    if store.key is None:
        yield (
            f"Their key is {directory}/store.key, made at the first start. It lies beside what it protects: "
            "move it, and name it as `store: {key: {file: ...}}`."
        )
    else:
        yield "Their key is the one that the configuration names."
    yield "Keep a copy of the key: without it no stored item can be read."


def _steered(settings: Settings) -> Iterator[str]:
    own = settings.administration
    yield f"Steered through {settings.data_dir}/admin.sock, by whoever may be the gateway's user on this host."
    host = f"[{own.address}]" if ":" in own.address else own.address
    if own.tokens:
        names = ", ".join(f"{token.name} ({token.role})" for token in own.tokens)
        yield f"And over http://{host}:{own.port}/api/v1, by who has a token: {names}."
    else:
        yield f"Over http://{host}:{own.port}/api/v1 by nobody: there are no tokens (`bcss-gateway token` makes one)."


def _upstream_times(upstream: UpstreamSettings) -> str:
    connect, first = duration_text(upstream.connect_timeout), duration_text(upstream.first_byte_timeout)
    call, hold = duration_text(upstream.call_timeout), duration_text(upstream.hold)
    whole = duration_text(upstream.total_timeout)
    return f"connect {connect}; real-time: first byte {first}, whole {whole}; bulk: call {call}, then held {hold} more."


def _catalogue(configuration: Configuration) -> Iterator[str]:
    catalogue = configuration.catalogue
    sure = Counter(service.confidence for service in catalogue.services)
    told = ", ".join(f"{number} {confidence}" for confidence, number in sorted(sure.items(), key=lambda x: -x[1]))
    yield f"{len(catalogue.services)} services of {len(catalogue.sources)} sources; sources of a service: {told}."
    for path in configuration.settings.catalogue:
        yield f"Own services from {path}."
    yield "`bcss-gateway explain MESSAGE` says how a message is taken."


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration's YAML, with the text forms of durations and sizes."""
    described = Settings.model_json_schema(by_alias=True, mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **described,
        "title": "Configuration of the BCSS gateway",
        "required": ["upstreams", "routes"],
    }
