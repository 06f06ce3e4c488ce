"""What the codes in an answer mean for its request: a table, as data that is checked and looked up.

Codes are of three kinds, and looked up in this order: reason codes (KSZ `status/code`, `reasonCode` of a fault or of an
SSDN detail, `SOA-...` of the ONSS platform), values (`status/value`), return codes of SSDN. Of several in one answer
the gravest that is known decides.

Rules that always hold: a code that is not known decides nothing, and is shown; later documents are laid over earlier
ones, code by code; all faults of the data are found at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Path = tuple[str | int, ...]


class Kind(StrEnum):
    """What an answer means for its request. In the order of gravity, lightest first."""

    OK = "ok"
    NOTHING_FOUND = "nothing_found"  #: a success: there is nothing to be found
    PARTIAL = "partial"  #: some of the sources asked did not answer
    REJECT = "reject"  #: the request cannot succeed as it is
    TECHNICAL = "technical"  #: it may succeed later
    STOP = "stop"  #: every next request of this kind would fail alike: a person has to look
    UNKNOWN = "unknown"  #: an answer that says nothing that is known


GRAVITY = tuple(Kind)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means."""

    kind: Kind
    text: str  #: for people, in English
    not_done: bool = False  #: technical: it is sure that the request was not carried out, so a write may be repeated


class StatusesError(Exception):
    """The data is no table of statuses. `faults`: (path, what is wrong); a path begins with its document's number."""

    def __init__(self, faults: Sequence[tuple[Path, str]]) -> None:
        super().__init__("; ".join(what for _, what in faults))
        self.faults = tuple(faults)


SECTIONS = ("codes", "values", "return_codes")


class Statuses:
    """The tables of one site."""

    def __init__(self, tables: Mapping[str, Mapping[str, Meaning]]) -> None:
        self._tables = tables

    @classmethod
    def from_data(cls, documents: Sequence[Mapping[str, Any]]) -> "Statuses":
        """Lay documents over each other, in order. Raises StatusesError with all that is wrong."""
        faults: list[tuple[Path, str]] = []
        tables: dict[str, dict[str, Meaning]] = {section: {} for section in SECTIONS}
        for number, document in enumerate(documents):
            for section, given in document.items():
                if section not in tables:
                    faults.append(((number, section), f'unknown key "{section}"; known: {", ".join(SECTIONS)}'))
                elif not isinstance(given, Mapping):
                    faults.append(((number, section), "must be a mapping"))
                else:
                    for code, meant in given.items():
                        tables[section][str(code)] = _meaning(meant, (number, section, code), faults)
        if faults:
            raise StatusesError(faults)
        return cls(tables)

    def gravest(
        self, codes: Iterable[str], values: Iterable[str], return_codes: Iterable[str]
    ) -> tuple[str, Meaning] | None:
        """Return the gravest of the codes that are known, with what it means; None: none is known.

        A reason code says more than the value or return code beside it: those count only where no reason code is known.
        """
        for section, given in zip(SECTIONS, (codes, values, return_codes), strict=True):
            table = self._tables[section]
            known = [(code, table[code]) for code in given if code in table]
            if known:
                return max(known, key=lambda one: (GRAVITY.index(one[1].kind), not one[1].not_done))
        return None


def _meaning(given: Any, where: Path, faults: list[tuple[Path, str]]) -> Meaning:
    kinds = [str(kind) for kind in Kind if kind is not Kind.UNKNOWN]
    if not isinstance(given, Mapping) or given.get("kind") not in kinds:
        faults.append((where, f"needs kind, one of {', '.join(kinds)}, and means, a text"))
        return Meaning(Kind.UNKNOWN, "")
    faults += [((*where, key), f'unknown key "{key}"') for key in given.keys() - {"kind", "means", "not_done"}]
    text, not_done = given.get("means", ""), given.get("not_done", False)
    if not isinstance(text, str) or not isinstance(not_done, bool):
        faults.append((where, "means must be text, not_done true or false"))
        return Meaning(Kind.UNKNOWN, "")
    return Meaning(Kind(given["kind"]), text, not_done)
