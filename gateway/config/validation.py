"""From a document to settings, with all faults of single values, and what can be saved of the rest.

So that one look tells everything, faults of values must not hide what does not agree between keys. Therefore what is
faulty is taken out and the rest is read again: `Found.settings` is then good enough for the checks between keys, and
`Found` still tells what was written, right or wrong, and where.

Rules that always hold:
- A fault of a value is told once. What is missing only because it was taken out is no fault.
- Settings of a document with faults are never handed to the gateway: `gateway.config.load` sees to that.

Never guesses what a faulty value was meant to be.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.document import Document
from gateway.config.faults import Fault, KeyPath, is_about_key, path_of, words
from gateway.config.settings import Settings
from gateway.config.values import Place

_ROUNDS = 12  #: each takes something out and settings are 5 levels deep; more would be an error in here


@dataclass(frozen=True)
class Found:
    """Settings, and the document that they come from."""

    settings: Settings
    document: Document
    kept: Mapping[KeyPath, tuple[int, ...]]  #: for lists: which of the items written are in `settings`

    def fault(self, path: KeyPath, what: str, remedy: str = "", *, at_key: bool = False) -> Fault:
        """Make a fault; indexes in `path` count the items of `settings`."""
        return self.document.fault(self._written(path), what, remedy, at_key=at_key)

    def has(self, *path: str | int) -> bool:
        """Say whether something was written there, right or wrong; indexes count the items of `settings`."""
        return self.document.has(*self._written(path))

    def written(self, *path: str | int) -> Any:
        """Return what was written there, right or wrong."""
        return self.document.written(*self._written(path))

    def names(self, *path: str | int) -> frozenset[str]:
        """Return the keys written there, right or wrong."""
        return self.document.names(*path)

    def _written(self, path: KeyPath) -> KeyPath:
        written: KeyPath = ()
        for part in path:
            kept = self.kept.get(written)
            written = (*written, kept[part] if isinstance(part, int) and kept is not None else part)
        return written


def validate(document: Document, place: Place) -> tuple[Found | None, list[Fault]]:
    """Return what was found, None when nothing can be saved, and the faults of single values."""
    content = {} if document.content is None else copy.deepcopy(document.content)
    numbers: dict[KeyPath, list[int]] = {}
    _number(content, (), numbers)
    faults: list[Fault] = []
    for attempt in range(_ROUNDS):
        try:
            settings = Settings.model_validate(content, by_name=False, by_alias=True, context=place)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if attempt == 0:
                faults = [_fault(one, document) for one in errors]
            if not _take_out(content, errors, numbers):
                return None, faults
        else:
            return Found(settings, document, {path: tuple(kept) for path, kept in numbers.items()}), faults
    return None, faults


def _fault(error: ErrorDetails, document: Document) -> Fault:
    what, remedy = words(error, Settings)
    return document.fault(path_of(error), what, remedy, at_key=is_about_key(error))


def _number(content: Any, path: KeyPath, numbers: dict[KeyPath, list[int]]) -> None:
    if isinstance(content, list):
        numbers[path] = list(range(len(content)))
    inner: Iterable[tuple[str | int, Any]] = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for part, value in inner:
        _number(value, (*path, part), numbers)


def _take_out(content: Any, errors: Iterable[ErrorDetails], numbers: dict[KeyPath, list[int]]) -> bool:
    """Take out what is faulty; a group that lacks something goes as a whole. Return False when that is everything."""
    # From the back, so that indexes before a deleted item stay what they are; a path sorts after its beginnings.
    paths = {path_of(error)[:-1] if error["type"] == "missing" else path_of(error) for error in errors}
    for path in sorted(paths, key=lambda path: [(isinstance(part, str), part) for part in path], reverse=True):
        if not path:
            return False
        holder: Any = content
        written: KeyPath = ()
        for part in path[:-1]:
            written = (*written, numbers[written][part] if isinstance(part, int) else part)
            holder = holder[part]
        last = path[-1]
        del holder[last]
        if isinstance(last, int):
            del numbers[written][last]
    return True
