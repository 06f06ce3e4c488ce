"""Which authentic sources a digest asks: services and their sources, as data that is checked and looked up.

Rules that always hold:
- The message decides: namespace and local name of the operation, or the ServiceId (and, for XMLite, the element
  inside). Path and SOAPAction are cross-checks only: clients may send what they like there, and one of each serves
  several services.
- A message that asks several services asks the union of their sources; one unknown service makes all of it
  unclassified.
- A message that names its sources asks those; if it names none, or one that is not known, it asks all of its service.
- Labels come from a set that is known beforehand (`labels`), so that they can be metric labels.

`Catalogue.from_data` takes documents as YAML gives them (policies/catalogue.yaml says the form) and finds all faults
at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.model import UNCLASSIFIED, Digest, Operation, Source, Style

SEVERAL = "several"
"""The label of calls whose sources are no fixed set of one service."""
KINDS = ("read", "write", "unknown")
CONFIDENCES = ("sure", "probable", "guess")
_SOURCE_KEYS = {"sector", "title", "base"}
_SERVICE_KEYS = {
    "name",
    "sources",
    "confidence",
    "namespace",
    "operations",
    "paths",
    "choices",
    "service_id",
    "version",
    "inner",
    "kind",
}
Path = tuple[str | int, ...]


class CatalogueError(Exception):
    """The data is not a catalogue. `faults`: (path, what is wrong); a path begins with the number of its document."""

    def __init__(self, faults: Sequence[tuple[Path, str]]) -> None:
        super().__init__("; ".join(what for _, what in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as the catalogue knows it."""

    name: str
    sources: tuple[str, ...]
    confidence: str
    kinds: Mapping[str, str]  #: by operation (SOA: local name; SSDN: the ServiceId)
    namespace: str = ""
    actions: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    service_id: str = ""
    version: str = ""
    inner: str = ""
    choices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  #: path -> text -> source, "" for none

    @property
    def keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield what a digest's operation is looked up by."""
        if self.namespace:
            yield from ((self.namespace, name, "") for name in self.kinds)
        else:
            yield "", self.service_id, self.inner

    def asked(self, digest: Digest) -> frozenset[str]:
        """Return the sources that a message to this service asks."""
        named: set[str] = set()
        for path, text in digest.choices:
            if path in self.choices:
                if text not in self.choices[path]:
                    return frozenset(self.sources)
                named.add(self.choices[path][text])
        return frozenset(named - {""}) or frozenset(self.sources)


@dataclass(frozen=True, slots=True)
class SourceDecision:
    """Which sources a message asks, and why we think so. No sources: unclassified."""

    service: str
    sources: frozenset[str]
    label: str
    kind: str
    confidence: str
    rule: str
    mismatch: str = ""  #: what contradicts the message: its path, SOAPAction or version


class Catalogue:
    """The services of one site."""

    def __init__(self, sources: Mapping[str, Source], services: Sequence[Service]) -> None:
        self.sources = sources
        self.services = services
        #: By namespace: the paths of local names below an operation whose text names sources.
        self.selectors = {
            service.namespace: frozenset(tuple(path.split("/")) for path in service.choices)
            for service in services
            if service.choices
        }
        self._by_key = {key: service for service in services for key in service.keys}

    @classmethod
    def from_data(cls, documents: Sequence[Mapping[str, Any]]) -> "Catalogue":
        """Lay documents over each other, in order.

        Raises:
            CatalogueError: with all that is wrong.
        """
        faults: list[tuple[Path, str]] = []
        sources: dict[str, Source] = {}
        services: dict[str, tuple[Path, Service]] = {}
        for number, document in enumerate(documents):
            unknown = document.keys() - {"sources", "services"}
            faults += [((number, key), f'unknown key "{key}"; known: sources, services') for key in unknown]
            for name, given in _mapping(document.get("sources"), (number, "sources"), faults).items():
                sources[name] = _source(name, given, (number, "sources", name), faults)
            for index, given in enumerate(_sequence(document.get("services"), (number, "services"), faults)):
                where: Path = (number, "services", index)
                if (service := _service(given, where, faults)) is not None:
                    services[service.name] = (where, service)
        known: dict[tuple[str, str, str], str] = {}
        for where, service in services.values():
            faults += [
                ((*where, "sources"), f'there is no source "{name}"')
                for name in {*service.sources, *(s for texts in service.choices.values() for s in texts.values() if s)}
                if name not in sources
            ]
            for one in service.keys:
                if one in known:
                    faults.append((where, f"asks the same as {known[one]}: {' '.join(filter(None, one))}"))
                known[one] = service.name
        if faults:
            raise CatalogueError(faults)
        return cls(sources, [service for _, service in services.values()])

    def find(self, digest: Digest, *, path: str = "", soap_action: str = "") -> SourceDecision:
        """Say which sources a message asks."""
        if digest.style is Style.UNKNOWN or not digest.operations:
            return _unclassified(digest.unsound or "no operation was found")
        looked_up = [(operation, self._service(operation)) for operation in digest.operations]
        found = [(operation, service) for operation, service in looked_up if service is not None]
        if len(found) < len(looked_up):
            missing = ", ".join(str(operation) for operation, service in looked_up if service is None)
            return _unclassified(f"not in the catalogue: {missing}")
        services = [service for _, service in found]
        sources = frozenset[str]().union(*(service.asked(digest) for service in services))
        kinds = {service.kinds[operation.name] for operation, service in found}
        return SourceDecision(
            service=" + ".join(dict.fromkeys(service.name for service in services)),
            sources=sources,
            label=_label(services, sources),
            kind=next(kind for kind in ("write", "unknown", "read") if kind in kinds),
            confidence=max((service.confidence for service in services), key=CONFIDENCES.index),
            rule="operation" if digest.style is Style.SOA else "ServiceId",
            mismatch="; ".join(_mismatches(found, path, soap_action)),
        )

    def labels(self) -> frozenset[str]:
        """Return every label that `find` can give."""
        fixed = {"+".join(sorted(service.sources)) for service in self.services}
        return frozenset({*self.sources, *fixed, SEVERAL, UNCLASSIFIED})

    def _service(self, operation: Operation) -> Service | None:
        return self._by_key.get((operation.namespace, operation.name, operation.inner))


def _unclassified(rule: str) -> SourceDecision:
    return SourceDecision("", frozenset(), UNCLASSIFIED, "unknown", "", rule)


def _label(services: Sequence[Service], sources: frozenset[str]) -> str:
    if len(sources) == 1:
        return next(iter(sources))
    whole = len(set(map(id, services))) == 1 and sources == frozenset(services[0].sources)
    return "+".join(sorted(sources)) if whole else SEVERAL


def _mismatches(found: Sequence[tuple[Operation, Service]], path: str, soap_action: str) -> Iterator[str]:
    for operation, service in found:
        if service.version and operation.version and operation.version != service.version:
            yield f"version of {service.name}"
        action = service.actions.get(operation.name, "")
        if soap_action and action and soap_action != action:
            yield f"SOAPAction of {service.name}"
        if path and service.paths and not any(path.endswith(known) for known in service.paths):
            yield f"path of {service.name}"


# Reading the data. Every fault is noted, and reading goes on.

Faults = list[tuple[Path, str]]


def _mapping(given: Any, where: Path, faults: Faults) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        faults.append((where, "must be a mapping"))
        return {}
    return given


def _sequence(given: Any, where: Path, faults: Faults) -> Sequence[Any]:
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Sequence):
        faults.append((where, "must be a list"))
        return ()
    return given


def _text(given: Any, where: Path, faults: Faults) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        faults.append((where, "must be text; put it in quotes"))
        return ""
    return given


def _one_of(given: Any, allowed: Sequence[str], default: str, where: Path, faults: Faults) -> str:
    if given is None:
        return default
    if given not in allowed:
        faults.append((where, f"must be one of {', '.join(allowed)}"))
        return default
    return str(given)


def _source(name: str, given: Any, where: Path, faults: Faults) -> Source:
    fields = _mapping(given, where, faults)
    faults += [((*where, key), f'unknown key "{key}"') for key in fields.keys() - _SOURCE_KEYS]
    base = fields.get("base", False)
    if not isinstance(base, bool):
        faults.append(((*where, "base"), "must be true or false"))
    sector = _text(fields.get("sector"), (*where, "sector"), faults)
    return Source(name, sector, _text(fields.get("title"), (*where, "title"), faults), base is True)


def _service(given: Any, where: Path, faults: Faults) -> Service | None:
    fields = _mapping(given, where, faults)
    faults += [((*where, key), f'unknown key "{key}"') for key in fields.keys() - _SERVICE_KEYS]
    name = _text(fields.get("name"), (*where, "name"), faults)
    namespace = _text(fields.get("namespace"), (*where, "namespace"), faults)
    service_id = _text(fields.get("service_id"), (*where, "service_id"), faults)
    operations = _mapping(fields.get("operations"), (*where, "operations"), faults)
    sources = tuple(
        _text(one, (*where, "sources", i), faults)
        for i, one in enumerate(_sequence(fields.get("sources"), (*where, "sources"), faults))
    )
    if not name:
        faults.append((where, "needs a name"))
    if not sources:
        faults.append((where, "needs sources"))
    if bool(namespace) == bool(service_id) or bool(namespace) != bool(operations):
        faults.append((where, "needs either namespace and operations (new style) or service_id (classic style)"))
        return None
    kinds, actions = _operations(operations, fields, service_id, where, faults)
    return Service(
        name=name,
        sources=sources,
        confidence=_one_of(fields.get("confidence"), CONFIDENCES, "guess", (*where, "confidence"), faults),
        kinds=kinds,
        namespace=namespace,
        actions=actions,
        paths=tuple(map(str, _sequence(fields.get("paths"), (*where, "paths"), faults))),
        service_id=service_id,
        version=_text(fields.get("version"), (*where, "version"), faults),
        inner=_text(fields.get("inner"), (*where, "inner"), faults),
        choices=_choices(fields.get("choices"), (*where, "choices"), faults),
    )


def _operations(
    operations: Mapping[str, Any], fields: Mapping[str, Any], service_id: str, where: Path, faults: Faults
) -> tuple[dict[str, str], dict[str, str]]:
    if service_id:
        return {service_id: _one_of(fields.get("kind"), KINDS, "unknown", (*where, "kind"), faults)}, {}
    kinds: dict[str, str] = {}
    actions: dict[str, str] = {}
    for name, given in operations.items():
        here = (*where, "operations", name)
        one = _mapping(given, here, faults)
        faults += [((*here, key), f'unknown key "{key}"') for key in one.keys() - {"kind", "action"}]
        kinds[name] = _one_of(one.get("kind"), KINDS, "unknown", (*here, "kind"), faults)
        actions[name] = _text(one.get("action"), (*here, "action"), faults)
    return kinds, actions


def _choices(given: Any, where: Path, faults: Faults) -> dict[str, dict[str, str]]:
    choices: dict[str, dict[str, str]] = {}
    for index, one in enumerate(_sequence(given, where, faults)):
        here = (*where, index)
        fields = _mapping(one, here, faults)
        faults += [((*here, key), f'unknown key "{key}"') for key in fields.keys() - {"path", "texts"}]
        path = _text(fields.get("path"), (*here, "path"), faults)
        texts = _mapping(fields.get("texts"), (*here, "texts"), faults)
        if not path or not texts:
            faults.append((here, "needs path and texts"))
        choices[path] = {str(text): _text(source, (*here, "texts", text), faults) for text, source in texts.items()}
    return choices
