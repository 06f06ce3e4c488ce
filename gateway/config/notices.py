"""What a configuration may say and yet deserves a word: the warnings of `check` and of every start.

A warning names the key, what it leads to, and what to do. Nothing here stops a gateway.

Rules that always hold: the same configuration gives the same warnings, except for exceptions, which depend on the day;
a warning quotes names, addresses and dates, never a secret.

Never looks at the network: a host's environment is told by its name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from gateway.config.endpoints import UpstreamSettings
from gateway.config.settings import Settings
from policies.pools import Layout
from policies.windows import Calendar

_MARKS = {"test": "test", "tst": "test", "acpt": "acceptance", "acc": "acceptance", "acceptance": "acceptance"}
_PRODUCTION = ("ksz-bcss.fgov.be", "smals.be")  #: their hosts without a mark are production (bcss landscape, hosts)
_USUAL_HOLD_S = 30.0


def warnings(settings: Settings, layout: Layout, calendar: Calendar, now: datetime) -> tuple[str, ...]:
    """Return what deserves a word, the weightiest first."""
    return (
        *_observing(settings),
        *_exceptions(calendar, now),
        *_caps(settings, layout),
        *_never_granted(settings, layout),
        *_environments(settings),
        *_clear_text(settings),
        *_runs(settings),
        *_times(settings),
    )


def environment_of(upstream: UpstreamSettings) -> str | None:
    """Return the BCSS environment of an upstream: as declared, else by its host's name; None: cannot be told."""
    if upstream.environment is not None:
        return upstream.environment
    for word in re.split(r"[^a-z]+", upstream.host):
        if word in _MARKS:
            return _MARKS[word]
    words = re.split(r"[^a-z]+", upstream.host)
    known = any(upstream.host == domain or upstream.host.endswith(f".{domain}") for domain in _PRODUCTION)
    return "production" if known or "prod" in words or "production" in words else None


def is_loopback(host: str) -> bool:
    """Say whether a host or address is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _observing(settings: Settings) -> Iterator[str]:
    if settings.mode == "observe" and settings.observe is not None:
        owner, until = settings.observe.owner, settings.observe.until
        yield f"mode: observe: nothing is refused and no cap holds, until {until} ({owner} answers for it)."
    elif settings.observe is not None:
        yield "observe: has no effect while `mode` is enforce."


def _exceptions(calendar: Calendar, now: datetime) -> Iterator[str]:
    for one in calendar.exceptions:
        span = f"{one.start:%Y-%m-%d %H:%M} to {one.end:%Y-%m-%d %H:%M}"
        if one.end <= now:
            yield f"windows.exceptions: {span} is over; take it out."
        else:
            when = "is in force" if one.covers(now) else "will open closed hours"
            yield f"windows.exceptions: {span} {when} ({one.owner}: {one.reason})."


def _caps(settings: Settings, layout: Layout) -> Iterator[str]:
    for pool in layout.over_recommendation():
        own = settings.bulk.pools.get(pool.name)
        why = own.exceeds_recommendation if own is not None else None
        yield f"bulk.pools.{pool.name}: {pool.slots} slots, above the recommended {pool.recommended} ({why})."
    for name, one in settings.bulk.pools.items():
        if one.exceeds_recommendation is not None and layout.pools[name].slots <= layout.pools[name].recommended:
            yield f"bulk.pools.{name}.exceeds_recommendation: has no effect; the cap is within the recommendation."
    if settings.bulk.share is not None:
        left = sorted(name for name in layout.pools if name not in settings.bulk.share)
        if left:
            yield f"bulk.share: this gateway has no slot in {', '.join(left)}; bulk for it is never let through."
        yield "bulk.share: let `bcss-gateway check a.yaml b.yaml ...` see the configurations of all that share."


def _never_granted(settings: Settings, layout: Layout) -> Iterator[str]:
    if settings.bulk.share is None:
        for pool in layout.pools.values():
            if pool.slots == 0:
                yield f"bulk.pools.{pool.name}.slots: 0 lets no bulk through that needs this pool."


def _environments(settings: Settings) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for name in sorted({route.upstream for route in settings.routes}):
        environment = environment_of(settings.upstreams[name])
        if environment is not None:
            found.setdefault(environment, []).append(name)
    if len(found) > 1:
        told = "; ".join(f"{environment}: {', '.join(names)}" for environment, names in sorted(found.items()))
        yield f"routes: mix BCSS environments ({told}); one configuration is for one environment."
    for name in sorted(set(settings.upstreams) - {route.upstream for route in settings.routes}):
        yield f"upstreams.{name}: no route leads there."


def _clear_text(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        if not upstream.uses_tls and not is_loopback(upstream.host):
            yield f"upstreams.{name}.url: plain HTTP to {upstream.host}; persons' data can be read on the way."
    for index, listener in enumerate(settings.listeners):
        if is_loopback(listener.address):
            continue
        asks = listener.tls is not None and listener.tls.client_certificate == "required"
        if listener.tls is None:
            what = "plain HTTP for other machines: persons' data can be read on the way, and"
        else:
            what = "no client certificate is required, and"
        if not asks:
            yield f"listeners[{index}]: {what} whoever reaches {listener.address} calls in your name."


def _runs(settings: Settings) -> Iterator[str]:
    if settings.store.url is not None:
        place = store_place(settings.store.url.get_secret_value())
        if not place.is_local and not place.is_verified:
            yield (
                f"store.url: TLS to {place.host} is not verified: whoever stands between can read and change the books "
                "(not bodies). Add `?sslmode=verify-full`, and `&sslrootcert=FILE` for a CA of your own."
            )
        if settings.store.key is None:
            yield (
                "store.key: each gateway makes its own in `data_dir`, and cannot open what others stored. "
                "Give all of them the same one."
            )
    own = settings.administration
    if own.tokens and not is_loopback(own.address):
        names = ", ".join(f"{token.name} ({token.role})" for token in own.tokens)
        yield (
            f"administration: plain HTTP on {own.address}: the tokens of {names}, and results, can be read on the way. "
            "Keep it on 127.0.0.1, behind something that speaks TLS."
        )
    if settings.bulk.closed == "queue":
        for name in sorted({route.upstream for route in settings.routes if route.upstream in settings.upstreams}):
            if settings.upstreams[name].credentials is None:
                yield (
                    f"bulk.closed: queue: upstreams.{name} has no `credentials`, so a call that carries its own is "
                    "refused in closed hours (not_storable)."
                )


@dataclass(frozen=True, slots=True)
class StorePlace:
    """Where a PostgreSQL is, as far as may be shown."""

    host: str
    database: str
    is_local: bool  #: this machine, or a Unix socket
    is_verified: bool  #: by TLS


def store_place(url: str) -> StorePlace:
    """Return where an address leads. Nothing secret of it, whatever it holds."""
    try:
        parts = urlsplit(url)
        host, query = parts.hostname or "", dict(parse_qsl(parts.query))
    except ValueError:
        return StorePlace("an address that cannot be read", "", is_local=False, is_verified=False)
    host = host or query.get("host", "")
    is_local = not host or host.startswith("/") or is_loopback(host)
    is_verified = query.get("sslmode") in ("verify-ca", "verify-full")
    return StorePlace(host or "a Unix socket", parts.path.strip("/"), is_local=is_local, is_verified=is_verified)


def _times(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        if upstream.hold < _USUAL_HOLD_S:
            yield (
                f"upstreams.{name}.hold: a source that works on for over {upstream.hold:g} s after the call timeout "
                "may have more calls in progress than its cap."
            )
    bulk = settings.bulk
    for name, pool in bulk.pools.items():
        if pool.rate is not None and pool.rate * bulk.queue_time < 1:
            yield f"bulk.pools.{name}.rate: less than one start in `queue_time` ; callers give up."
    if bulk.closed == "park" and settings.limits.connections <= bulk.park_length:
        yield "limits.connections: parked calls (bulk.park_length) may take them all, and people find none left."
