"""What an answer says of its request: tables of codes as data that is checked and looked up, and what they come to.

An answer holds statuses: one of the whole (KSZ `status`, SSDN's `ReplyContext`), or one of each part (single sources,
`ServiceReply`s of SSDN), or both; or a fault; or nothing but its status of HTTP.

Rules that always hold:
- A status is read as one thing: its reason code, if that is known; else its return code (SSDN), else its value.
- A whole that is well says nothing of its parts; one that is not is right, unless only the parts say why.
- Parts that failed beside parts that answered make a partial answer; else the gravest part decides.
- A code that is not known decides nothing, and is shown.
- Later documents are laid over earlier ones, code by code; all faults of the data are found at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
GOOD = frozenset({Kind.OK, Kind.NOTHING_FOUND})
_SURELY_NOT_DONE = frozenset({Kind.REJECT, Kind.STOP})


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means."""

    kind: Kind
    text: str  #: for people, in English
    not_done: bool = False  #: technical: it is sure that the request was not carried out, so a write may be repeated


@dataclass(frozen=True, slots=True)
class Status:
    """One status as it stands in an answer: codes only."""

    codes: tuple[str, ...] = ()  #: reason codes: KSZ `status/code`; SSDN `ReasonCode`, one for each detail
    value: str = ""  #: KSZ `status/value`
    return_code: str = ""  #: SSDN `ReturnCode`
    of: str = ""  #: of a part: the source or service whose status it is


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer comes to."""

    code: str
    meaning: Meaning
    is_precise: bool = False  #: by a reason code that is known
    may_be_done: bool = True  #: some of the request may have been carried out

    @property
    def kind(self) -> Kind:
        """Return the kind of its meaning."""
        return self.meaning.kind

    @property
    def gravity(self) -> tuple[int, bool]:
        """Return what is compared: of two technical ones, what leaves doubt is graver."""
        return GRAVITY.index(self.kind), not self.meaning.not_done


class StatusesError(Exception):
    """The data is no table of statuses. `faults`: (path, what is wrong); a path begins with its document's number."""

    def __init__(self, faults: Sequence[tuple[Path, str]]) -> None:
        super().__init__("; ".join(what for _, what in faults))
        self.faults = tuple(faults)


SECTIONS = ("codes", "return_codes", "values", "faults", "http")
_HTTP = re.compile(r"[1-5](?:\d\d|xx)")
_SOME_FAULT = Meaning(Kind.TECHNICAL, "a SOAP fault")


class Statuses:
    """The tables of one site."""

    def __init__(self, tables: Mapping[str, Mapping[str, Meaning]]) -> None:
        self._tables = tables

    @classmethod
    def from_data(cls, documents: Sequence[Mapping[str, Any]]) -> "Statuses":
        """Lay documents over each other, in order. Raises StatusesError with all that is wrong."""
        faults: Faults = []
        tables: dict[str, dict[str, Meaning]] = {section: {} for section in SECTIONS}
        for number, document in enumerate(documents):
            for section, given in document.items():
                if section in tables:
                    tables[section].update(_table(section, given, (number, section), faults))
                else:
                    faults.append(((number, section), f'unknown key "{section}"; known: {", ".join(SECTIONS)}'))
        if faults:
            raise StatusesError(faults)
        return cls(tables)

    def of_status(self, status: Status) -> Said | None:
        """Say what one status means; None: nothing in it is known."""
        codes, return_codes, values = (self._tables[section] for section in ("codes", "return_codes", "values"))
        known = [_said(code, codes[code], is_precise=True) for code in status.codes if code in codes]
        if known:
            return max(known, key=lambda said: said.gravity)
        for code, table, is_precise in (
            (status.return_code, return_codes, False),
            (status.return_code, codes, True),
            (status.value, values, False),
        ):
            if code in table:
                return _said((*status.codes, code)[0], table[code], is_precise=is_precise)
        return None

    def of_answer(self, whole: Status | None, parts: Sequence[Status]) -> Said | None:
        """Say what an answer comes to by its statuses; None: nothing in them is known."""
        by_whole = self.of_status(whole) if whole is not None else None
        by_part = [(part.of, said) for part in parts if (said := self.of_status(part)) is not None]
        leaves_doubt = len(by_part) < len(parts)  # a part that says nothing known: who knows what it has done
        if not by_part:
            return by_whole and replace(by_whole, may_be_done=by_whole.may_be_done or leaves_doubt)
        by_parts = _of_parts([said for _, said in by_part])
        said = by_parts if by_whole is None else _decisive(by_whole, by_parts)
        failed = ", ".join(dict.fromkeys(of for of, part in by_part if of and part.kind not in GOOD))
        if said.kind not in GOOD and failed:
            said = replace(said, meaning=replace(said.meaning, text=f"{said.meaning.text} ({failed})"))
        return replace(said, may_be_done=said.may_be_done or leaves_doubt or any(one.may_be_done for _, one in by_part))

    def of_fault(self, fault: str, codes: Sequence[str]) -> Said:
        """Say what a SOAP fault means, by the codes in its detail, by its own code, or by its being one.

        Args:
            fault: local name of its code; what stands behind a dot refines it (SOAP 1.1, section 4.4.1).
            codes: those in its detail, and its subcodes.
        """
        told = self.of_status(Status(tuple(codes)))
        if told is not None and told.kind not in GOOD:
            return told
        table = self._tables["faults"]
        refined = (fault, fault.rpartition(".")[2], *codes)
        known = [_said("", table[code]) for code in (*refined, fault.partition(".")[0]) if code in table]
        meaning = max(known, key=lambda said: said.gravity).meaning if known else _SOME_FAULT
        return _said((*codes, f"fault {fault}")[0], meaning)

    def of_http(self, status: int) -> Said | None:
        """Say what a status of HTTP means by itself, or by its class; None: nothing."""
        table = self._tables["http"]
        meaning = table.get(str(status)) or table.get(f"{status // 100}xx")
        return _said(f"HTTP {status}", meaning) if meaning is not None else None

    def is_telling(self, status: int) -> bool:
        """Say whether a status of HTTP means something by itself, and not only by its class."""
        return str(status) in self._tables["http"]


def _said(code: str, meaning: Meaning, *, is_precise: bool = False) -> Said:
    return Said(code, meaning, is_precise, may_be_done=not (meaning.not_done or meaning.kind in _SURELY_NOT_DONE))


def _of_parts(parts: Sequence[Said]) -> Said:
    gravest = max(parts, key=lambda said: said.gravity)
    if gravest.kind is Kind.TECHNICAL and any(said.kind in GOOD or said.kind is Kind.PARTIAL for said in parts):
        return replace(gravest, meaning=Meaning(Kind.PARTIAL, gravest.meaning.text))
    return gravest


def _decisive(whole: Said, parts: Said) -> Said:
    if parts.kind in GOOD:
        return whole
    only_parts_say_why = parts.is_precise and not whole.is_precise
    return parts if whole.kind in GOOD or only_parts_say_why else whole


# Reading the data. Every fault is noted, and reading goes on.

Faults = list[tuple[Path, str]]


def _table(section: str, given: Any, where: Path, faults: Faults) -> dict[str, Meaning]:
    if not isinstance(given, Mapping):
        faults.append((where, "must be a mapping"))
        return {}
    for code in given:
        if isinstance(code, bool) or not isinstance(code, str | int):
            faults.append(((*where, code), "put it in quotes, or YAML reads it as something else than a code"))
        elif section == "http" and not _HTTP.fullmatch(str(code)):
            faults.append(((*where, code), "is no status of HTTP, nor a class of them such as 5xx"))
    return {str(code): _meaning(meant, (*where, code), faults) for code, meant in given.items()}


def _meaning(given: Any, where: Path, faults: Faults) -> Meaning:
    kinds = [str(kind) for kind in Kind if kind is not Kind.UNKNOWN]
    if not isinstance(given, Mapping) or given.get("kind") not in kinds:
        faults.append((where, f"needs kind, one of {', '.join(kinds)}, and means, a text"))
        return Meaning(Kind.UNKNOWN, "")
    faults += [((*where, key), f'unknown key "{key}"') for key in given.keys() - {"kind", "means", "not_done"}]
    text, not_done = given.get("means", ""), given.get("not_done", False)
    if not isinstance(text, str) or not isinstance(not_done, bool):
        faults.append((where, "means must be text, not_done true or false"))
        return Meaning(Kind.UNKNOWN, "")
    if not_done and given["kind"] != Kind.TECHNICAL:
        faults.append((where, "not_done is for the kind technical only"))
    return Meaning(Kind(given["kind"]), text, not_done)
