"""The shipped policies, the site's own catalogue, and what settings make of them: catalogue, calendar, pools.

The files `policies/bcss.yaml` (the five recommendations) and `policies/catalogue.yaml` (services and their sources) are
data beside the decisions; they are read here since decisions read no files.

Rules that always hold:
- The zone of the windows comes from the tzdata package, never from the host's zone files.
- A local time that a change of season skips is a fault, not a guess.
- A pool's cap goes above the recommendation only with a written reason.

Never decides when bulk is open or which pool a call needs: `policies.windows` and `policies.pools` do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

from gateway.config.document import Document, read
from gateway.config.faults import Fault, nearest
from gateway.config.settings import Windows
from gateway.config.validation import Found
from policies.classify import Catalogue, CatalogueError
from policies.model import Source
from policies.pools import Layout, Pool, layout
from policies.statuses import Statuses, StatusesError
from policies.windows import Calendar, ClosedHours, OpenException

LONGEST_EXCEPTION = timedelta(days=31)
"""A leave for closed hours that lasts longer is no exception: the BCSS would rather talk about it."""
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Preset:
    """The BCSS's recommendation on hours."""

    zone: ZoneInfo
    closed: tuple[ClosedHours, ...]


def preset() -> Preset:
    """Read the shipped recommendations."""
    content = read(_shipped("bcss.yaml")).content
    closed = (
        ClosedHours(
            weekdays=frozenset(_DAYS.index(day) for day in hours["days"]),
            start=time.fromisoformat(hours["from"]),
            end=time.fromisoformat(hours["to"]),
        )
        for hours in content["closed_hours"]
    )
    return Preset(_zone(content["zone"]), tuple(closed))


def _shipped(name: str) -> Path:
    return Path(str(files("policies") / name))


def _zone(name: str) -> ZoneInfo:
    with (files("tzdata") / "zoneinfo" / name).open("rb") as octets:
        return ZoneInfo.from_file(octets, key=name)


def _documents(name: str, overlays: Sequence[Path], holds: str) -> tuple[list[Document], list[Fault]]:
    documents = [read(path) for path in (_shipped(name), *overlays)]
    faults = [fault for document in documents for fault in document.faults]
    faults += [
        document.fault((), f"holds no {holds}", f"See policies/{name} for the form.")
        for document in documents
        if not document.faults and not isinstance(document.content, dict)
    ]
    return documents, faults


def statuses(overlays: Sequence[Path]) -> tuple[Statuses | None, list[Fault]]:
    """Return what codes mean, with a site's own files laid over it in their order, or what is wrong with them."""
    documents, faults = _documents("statuses.yaml", overlays, "statuses")
    if faults:
        return None, faults
    try:
        return Statuses.from_data([document.content for document in documents]), []
    except StatusesError as error:
        remedy = "See policies/statuses.yaml for the form."
        return None, [documents[int(path[0])].fault(path[1:], what, remedy) for path, what in error.faults]


def catalogue(overlays: Sequence[Path]) -> tuple[Catalogue | None, list[Fault]]:
    """Return the catalogue with a site's own files laid over it in their order, or what is wrong with them."""
    documents, faults = _documents("catalogue.yaml", overlays, "services")
    if faults:
        return None, faults
    try:
        return Catalogue.from_data([document.content for document in documents]), []
    except CatalogueError as error:
        return None, [_catalogue_fault(documents, path, what) for path, what in error.faults]


def _catalogue_fault(documents: Sequence[Document], path: tuple[str | int, ...], what: str) -> Fault:
    """Place a fault of the catalogue; its path begins with the number of the document."""
    number, *rest = path
    return documents[int(number)].fault(tuple(rest), what)


def sources_known(found: Found, sources: Mapping[str, Source]) -> Iterator[Fault]:
    """Yield a fault for each source of a route that the catalogue does not know."""
    for index, route in enumerate(found.settings.routes):
        for position, name in enumerate(route.sources or ()):
            if name not in sources:
                what = f'there is no source "{name}"'
                yield found.fault(("routes", index, "sources", position), what, nearest(name, sources))
        if found.written("routes", index, "sources") == []:
            remedy = "Take it out for all sources, or name those that this route can reach."
            yield found.fault(("routes", index, "sources"), "is empty", remedy)


def calendar(windows: Windows, rules: Preset, today: date) -> Calendar:
    """Return when bulk is open. Public holidays are known from last year to the year after next."""
    opened = frozenset(windows.open_dates)
    if windows.holidays == "open":
        opened |= _public_holidays(range(today.year - 1, today.year + 3)) - frozenset(windows.closed_dates)
    exceptions = (
        OpenException(_instant(one.start, rules.zone), _instant(one.end, rules.zone), one.owner, one.reason)
        for one in windows.exceptions
    )
    return Calendar(rules.zone, rules.closed, opened, frozenset(windows.closed_dates), tuple(exceptions))


def _public_holidays(years: Iterable[int]) -> frozenset[date]:
    from holidays import country_holidays  # late: it takes longer to import than all the rest of a start

    return frozenset(country_holidays("BE", years=years))


def _instant(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)


def spans_sound(found: Found, rules: Preset) -> Iterator[Fault]:
    """Yield the faults of the exceptions: skipped local times, no duration, too long."""
    for index, span in enumerate(found.settings.windows.exceptions):
        path = ("windows", "exceptions", index)
        start, end = _instant(span.start, rules.zone), _instant(span.end, rules.zone)
        for key, instant in (("from", start), ("to", end)):
            if instant.astimezone(UTC).astimezone(instant.tzinfo).replace(tzinfo=None) != instant.replace(tzinfo=None):
                what = f"{instant:%Y-%m-%d %H:%M} does not exist: clocks are put forward that night"
                yield found.fault((*path, key), what, "Write a time an hour later.")
        lasts = end.astimezone(UTC) - start.astimezone(UTC)
        if lasts <= timedelta():
            yield found.fault((*path, "to"), "is not after `from`", "Write the end, which is excluded.")
        elif lasts > LONGEST_EXCEPTION:
            remedy = "Split it, or agree on other hours with the BCSS."
            yield found.fault((*path, "to"), "is more than 31 days after `from`", remedy)


def pools(found: Found, sources: Iterable[Source]) -> tuple[Layout | None, list[Fault]]:
    """Return the pools that settings make of the sources, or what is wrong with what they say about pools."""
    bulk = found.settings.bulk
    known = tuple(sources)
    recommended = layout(known, bulk.reading).pools
    faults = [*_unknown_pools(found, recommended), *_caps(found, recommended)]
    if faults:
        return None, faults
    slots = {name: one.slots for name, one in bulk.pools.items() if one.slots is not None}
    rates = {name: one.rate for name, one in bulk.pools.items() if one.rate is not None}
    return layout(known, bulk.reading, slots=slots, rates=rates, total=bulk.total_bulk, share=bulk.share), []


def _unknown_pools(found: Found, recommended: Mapping[str, Pool]) -> Iterator[Fault]:
    bulk = found.settings.bulk
    for key, names in (("pools", bulk.pools), ("share", bulk.share or {})):
        for name in names:
            if name not in recommended:
                what = f'there is no pool "{name}" in the reading "{bulk.reading}"'
                yield found.fault(("bulk", key, name), what, nearest(name, recommended), at_key=True)


def _caps(found: Found, recommended: Mapping[str, Pool]) -> Iterator[Fault]:
    bulk = found.settings.bulk
    for name, pool in bulk.pools.items():
        if name not in recommended:
            continue
        path, most = ("bulk", "pools", name), recommended[name].slots
        if pool.slots is not None and pool.slots > most and not found.has(*path, "exceeds_recommendation"):
            remedy = 'Lower it, or add `exceeds_recommendation: "why, and who at the BCSS agreed"`.'
            yield found.fault((*path, "slots"), f"{pool.slots} is above the recommended {most}", remedy)
    for name, part in (bulk.share or {}).items():
        own = bulk.pools.get(name)
        cap = own.slots if own is not None and own.slots is not None else None
        cap = recommended[name].slots if cap is None and name in recommended else cap
        if cap is not None and part > cap:
            yield found.fault(("bulk", "share", name), f"{part} is above the pool's cap of {cap}", f"Write 0 to {cap}.")
