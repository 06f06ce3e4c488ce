"""What must agree between keys: each rule that a single value cannot keep by itself.

Every check takes what was found and returns all the faults that it sees. References are looked up in what was
*written*, so that a faulty upstream does not make its routes faulty too.

Rules that always hold, once these checks have passed:
- Every route leads to an upstream, at a prefix of its own that the gateway does not need for itself.
- Nothing unverified (Basic user, User-Agent) can make a call real-time.
- A cap above the recommendation has a written reason; a leave to run in closed hours has an end.
- A certificate fits its key, and TLS settings stand where TLS is spoken.
- Caps are shared in one way, and who changes something by a token has a name of their own.

Never changes a setting, and never connects to anything.
"""

from collections.abc import Callable, Iterator
from datetime import date, timedelta

from gateway.config.endpoints import Client, Listener, Route
from gateway.config.faults import Fault, nearest
from gateway.config.validation import Found
from policies.model import TrafficClass

LONGEST_OBSERVATION = timedelta(days=92)
"""A quarter: long enough to learn what a site's jobs do, short enough to be asked about."""
RESERVED = ("/bulk", "/.gateway")
"""Paths of the gateway itself: the tag for bulk, and where stored answers will be fetched."""
_EVERY_ADDRESS = frozenset(("0.0.0.0", "::"))  # noqa: S104  # compared with, not bound to


def check(found: Found, today: date) -> Iterator[Fault]:
    """Yield every fault between keys. `today` is the date in the zone of the windows."""
    yield from _observe(found, today)
    for one in _CHECKS:
        yield from one(found)


def _observe(found: Found, today: date) -> Iterator[Fault]:
    settings = found.settings
    if settings.mode == "observe" and not found.has("observe"):
        remedy = "Add `observe: {owner: ..., until: ...}`: somebody answers for it, and it ends."
        yield found.fault(("mode",), "needs to say who observes and until when", remedy)
    if settings.observe is None or settings.mode != "observe":
        return
    until, last = settings.observe.until, today + LONGEST_OBSERVATION
    if until < today:
        remedy = "Set `mode: enforce`, or a new date that somebody agreed to."
        yield found.fault(("observe", "until"), f"{until} is past", remedy)
    elif until > last:
        yield found.fault(("observe", "until"), f"{until} is too far away", f"Write a date up to {last} (92 days).")


def _upstreams(found: Found) -> Iterator[Fault]:
    if _is_left_out(found, "upstreams"):
        remedy = "Add at least one: `upstreams: {bcss: {url: https://host:port}}`."
        yield found.fault(("upstreams",), "names no upstream", remedy)
    for name, upstream in found.settings.upstreams.items():
        path = ("upstreams", name)
        if not upstream.uses_tls:
            for key in ("certificate", "key", "key_password", "ca", "server_name"):
                if found.has(*path, key):
                    what = "has no use: the URL begins with http://"
                    yield found.fault((*path, key), what, "Write https:// in `url`, or take this out.")
        for key, needed in (("key", "certificate"), ("key_password", "certificate")):
            if found.has(*path, key) and not found.has(*path, needed):
                yield found.fault((*path, key), f"has no use without `{needed}`", f"Add `{needed}`, or take this out.")
        if upstream.first_byte_timeout > upstream.total_timeout:
            what = "is longer than `total_timeout`, of which it is a part"
            yield found.fault((*path, "first_byte_timeout"), what, "Shorten it, or lengthen `total_timeout`.")


def _routes(found: Found) -> Iterator[Fault]:
    if _is_left_out(found, "routes"):
        remedy = "Add at least one: `routes: [{prefix: /, upstream: bcss}]`."
        yield found.fault(("routes",), "says nowhere where calls go", remedy)
    known, taken = found.names("upstreams"), set[str]()
    for index, route in enumerate(found.settings.routes):
        path = ("routes", index)
        if route.upstream not in known:
            what = f'there is no upstream "{route.upstream}"'
            yield found.fault((*path, "upstream"), what, nearest(route.upstream, known))
        if route.prefix in taken:
            yield found.fault((*path, "prefix"), f"{route.prefix} has a route already", "Keep one of them.")
        taken.add(route.prefix)
        for key, what, remedy in _route_paths(route):
            yield found.fault((*path, key), what, remedy)


def _route_paths(route: Route) -> Iterator[tuple[str, str, str]]:
    if any(route.prefix == own or route.prefix.startswith(f"{own}/") for own in RESERVED):
        remedy = "Leave /bulk/ out: it is taken off before routes are looked at."
        yield "prefix", f"{route.prefix} belongs to the gateway itself", remedy
    for key, text in (("prefix", route.prefix), ("replace", route.replace or "")):
        if "?" in text or "#" in text:
            yield key, "has a query or a fragment", "Write the path alone; the query is passed on as it came."
    if route.replace is not None and route.replace.endswith("/") != route.prefix.endswith("/"):
        remedy = "End both with / or neither, or words run together: `prefix: /a/` with `replace: /`."
        yield "replace", "and `prefix` end differently", remedy


def _listeners(found: Found) -> Iterator[Fault]:
    if found.written("listeners") == []:
        yield found.fault(("listeners",), "is empty: nothing would listen", "Take it out for the default, port 8080.")
    taken: list[tuple[str, int]] = []
    telemetry = found.settings.telemetry
    for index, listener in enumerate(found.settings.listeners):
        place = (listener.address, listener.port)
        if any(_collide(place, other) for other in taken):
            what = f"port {listener.port} of {listener.address} is taken by a listener above"
            yield found.fault(("listeners", index), what, "Give each its own port.")
        taken.append(place)
        yield from _listener_tls(found, index, listener)
    if any(_collide((telemetry.address, telemetry.port), other) for other in taken):
        yield found.fault(("telemetry",), f"port {telemetry.port} is taken by a listener", "Give each its own port.")
    own = found.settings.administration
    if any(_collide((own.address, own.port), other) for other in (*taken, (telemetry.address, telemetry.port))):
        what = f"port {own.port} is taken by a listener, or by telemetry"
        yield found.fault(("administration",), what, "Give each its own port: `administration: {port: ...}`.")


def _collide(one: tuple[str, int], other: tuple[str, int]) -> bool:
    if one[1] != other[1] or one[1] == 0:
        return False
    same_family = (":" in one[0]) == (":" in other[0])
    return one[0] == other[0] or (same_family and bool(_EVERY_ADDRESS & {one[0], other[0]}))


def _listener_tls(found: Found, index: int, listener: Listener) -> Iterator[Fault]:
    if listener.tls is None:
        return
    path = ("listeners", index, "tls")
    asks = listener.tls.client_certificate != "none"
    if asks and not found.has(*path, "client_ca"):
        what = "needs `client_ca`: without it no certificate can be verified"
        yield found.fault((*path, "client_certificate"), what, "Name the CAs that issue your clients' certificates.")
    if found.has(*path, "client_ca") and found.written(*path, "client_certificate") in (None, "none"):
        what = "has no use: `client_certificate` is none"
        yield found.fault((*path, "client_ca"), what, "Set `client_certificate: required` (or optional).")


def _clients(found: Found) -> Iterator[Fault]:
    asked = _asks_for_certificates(found)
    for index, client in enumerate(found.settings.clients):
        path = ("clients", index)
        written = [key for key in _CRITERIA if found.has(*path, key)]
        if not written:
            remedy = f"Add one of {', '.join(_CRITERIA)}; what holds for all is the listener's `class`."
            yield found.fault(path, "would match everybody", remedy)
        for key in written:
            if found.written(*path, key) == []:
                yield found.fault((*path, key), "is empty: it would match everybody", "Fill it, or take it out.")
        verified = found.has(*path, "networks") or found.has(*path, "tls_subjects")
        for key, what in _claims(client):
            if not verified:
                remedy = "Add `networks` or `tls_subjects`: users and programs' names are only claimed, not verified."
                yield found.fault((*path, key), what, remedy)
        if client.tls_subjects and not asked:
            what = "cannot match: no listener asks for client certificates"
            yield found.fault((*path, "tls_subjects"), what, "Set `tls: {client_certificate: optional}` on a listener.")


_CRITERIA = ("networks", "tls_subjects", "basic_users", "user_agents")


def _claims(client: Client) -> Iterator[tuple[str, str]]:
    if client.may_declare_realtime:
        yield "may_declare_realtime", "needs a verified criterion"
    if client.traffic_class is TrafficClass.REALTIME:
        yield "class", "realtime needs a verified criterion"


def _bulk(found: Found) -> Iterator[Fault]:
    bulk = found.settings.bulk
    if bulk.margin_min > bulk.margin_max:
        key = "margin_min" if found.has("bulk", "margin_min") else "margin_max"
        yield found.fault(("bulk", key), "`margin_min` is above `margin_max`", "Exchange or change them.")


def _store(found: Found) -> Iterator[Fault]:
    if found.has("store", "url") and found.has("bulk", "share"):
        remedy = "Take `share` out: gateways on one `store.url` share each cap by themselves, slot by slot."
        yield found.fault(("bulk", "share"), "does not go with `store.url`", remedy)
    if found.has("store", "url") and found.has("bulk", "total_bulk"):
        remedy = "Take `total_bulk` out, or lower the pools: over several gateways there is no count of them all."
        yield found.fault(("bulk", "total_bulk"), "does not go with `store.url`", remedy)


def _administration(found: Found) -> Iterator[Fault]:
    taken = set[str]()
    for index, token in enumerate(found.settings.administration.tokens):
        if token.name in taken:
            what = f'there is a token of "{token.name}" already'
            yield found.fault(("administration", "tokens", index, "name"), what, "Name each by who has it.")
        taken.add(token.name)


def _windows(found: Found) -> Iterator[Fault]:
    windows = found.settings.windows
    for day in sorted(set(windows.open_dates) & set(windows.closed_dates)):
        index = windows.closed_dates.index(day)
        yield found.fault(("windows", "closed_dates", index), f"{day} is in `open_dates` too", "Keep one of them.")


def _data_dir(found: Found) -> Iterator[Fault]:
    directory = found.settings.data_dir
    if directory.exists() and not directory.is_dir():
        yield found.fault(("data_dir",), f"{directory} is not a directory", "Name one; it is made when missing.")


def _is_left_out(found: Found, key: str) -> bool:
    """Say whether a top-level key is not there or empty; a wrong type was told already."""
    return not found.has(key) or found.written(key) in ([], {})


def _asks_for_certificates(found: Found) -> bool:
    """Say whether some listener means to ask for client certificates, be the rest of it faulty or not."""
    listeners = found.written("listeners")
    if not isinstance(listeners, list):
        return listeners is not None
    asked = [found.document.written("listeners", at, "tls", "client_certificate") for at in range(len(listeners))]
    return any(one not in (None, "none") for one in asked)


_CHECKS: tuple[Callable[[Found], Iterator[Fault]], ...] = (
    _upstreams,
    _routes,
    _listeners,
    _clients,
    _bulk,
    _store,
    _administration,
    _windows,
    _data_dir,
)
