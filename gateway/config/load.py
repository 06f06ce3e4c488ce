"""A configuration file, read whole: settings, and the catalogue, pools, calendar and rules that follow from them.

Rules that always hold:
- Every fault is told at once: syntax, single values, what does not agree, the site's catalogue, TLS files.
- A `Configuration` exists only without faults. Nothing in it changes afterwards.

Costs some 0.2 s from a cold start, half of it imports. Never starts anything and never writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gateway.config.checks import check
from gateway.config.document import read
from gateway.config.faults import ConfigError, Fault
from gateway.config.notices import warnings
from gateway.config.policy import calendar, catalogue, pools, preset, sources_known, spans_sound, statuses
from gateway.config.settings import Settings
from gateway.config.tlsfiles import loadable
from gateway.config.validation import Found, validate
from gateway.config.values import Place
from policies.classify import Catalogue, ClientRule
from policies.pools import Layout
from policies.statuses import Statuses
from policies.windows import Calendar


@dataclass(frozen=True)
class Configuration:
    """All that a gateway is told."""

    settings: Settings
    catalogue: Catalogue
    statuses: Statuses  #: what the codes in answers mean
    layout: Layout
    calendar: Calendar
    rules: tuple[ClientRule, ...]
    warnings: tuple[str, ...]  #: whole sentences, each beginning with its key
    path: Path
    files: frozenset[Path] = frozenset()  #: all that was read: when one of them changes, this is out of date


def load(path: Path, environ: Mapping[str, str], *, now: datetime | None = None) -> Configuration:
    """Read a configuration file.

    Args:
        path: the file; relative paths in it start from its directory.
        environ: where `{env: NAME}` is looked up.
        now: an aware instant, for what depends on the day (the end of observing, holidays); None: the host's clock.

    Raises:
        ConfigError: with all faults.
    """
    rules = preset()
    # No clock exists before a configuration does; it only tells the day here, and no decision hangs on it.
    now = datetime.now(rules.zone) if now is None else now.astimezone(rules.zone)  # noqa: TID251  # as said above
    document = read(path)
    faults: list[Fault] = list(document.faults)
    if document.content is not None or not faults:
        place = Place(path.absolute().parent, environ)
        found, wrong = validate(document, place)
        faults += wrong
        if found is not None:
            faults += [*check(found, now.date()), *loadable(found), *spans_sound(found, rules)]
            known, wrong = catalogue(found.settings.catalogue)
            faults += wrong
            meanings, wrong = statuses(found.settings.statuses)
            faults += wrong
            if known is not None:
                faults += sources_known(found, known.sources)
                layout, wrong = pools(found, known.sources.values())
                faults += wrong
                if not faults and layout is not None and meanings is not None:
                    dates = calendar(found.settings.windows, rules, now.date())
                    files = frozenset({path.absolute(), *place.files})
                    return _whole(found, known, meanings, layout, dates, now, path, files)
    raise ConfigError(faults)


def _whole(
    found: Found,
    known: Catalogue,
    meanings: Statuses,
    layout: Layout,
    dates: Calendar,
    now: datetime,
    path: Path,
    files: frozenset[Path],
) -> Configuration:
    settings = found.settings
    return Configuration(
        settings=settings,
        catalogue=known,
        statuses=meanings,
        layout=layout,
        calendar=dates,
        rules=_client_rules(settings),
        warnings=warnings(settings, layout, dates, now),
        path=path,
        files=files,
    )


def _client_rules(settings: Settings) -> tuple[ClientRule, ...]:
    return tuple(
        ClientRule(
            name=client.name,
            networks=client.networks,
            tls_subjects=client.tls_subjects,
            basic_users=client.basic_users,
            user_agents=client.user_agents,
            traffic=client.traffic_class,
            may_declare_realtime=client.may_declare_realtime,
        )
        for client in settings.clients
    )
