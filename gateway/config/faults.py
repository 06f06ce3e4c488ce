"""What is wrong with a configuration, in the words of the person who wrote it.

A `Fault` is one line: where (file, line, column), which key, what is wrong, and what to write instead. All faults of a
configuration come together in one `ConfigError`.

Rules that always hold:
- No library's own wording: each error of pydantic is told in plain words; an unknown key comes with the nearest known.
- A fault quotes a wrong value only where the value cannot be a secret.

Never decides whether something is a fault: whoever found it does.
"""

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from gateway.config.values import shown

KeyPath = tuple[str | int, ...]
"""Where a value stands in a document: keys and indexes from the root."""


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong. Lines and columns count from 1; 0 where there is no position."""

    file: Path
    line: int
    column: int
    key: str  #: dotted, "" for the document as a whole
    what: str  #: completes the key: "is not a duration"
    remedy: str = ""  #: whole sentences, or ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else f"{self.file}"
        return " ".join(part for part in (f"{where}:", f"{self.key}:" if self.key else "", self._said()) if part)

    def _said(self) -> str:
        return f"{self.what.rstrip('.')}. {self.remedy}".rstrip()


class ConfigError(Exception):
    """A configuration that cannot be used. `faults` holds at least one, in the order of the files."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


def key_text(path: KeyPath) -> str:
    """Return a key path as a person writes it: `routes[0].prefix`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a remedy that names the nearest known word, or all of them when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    if close:
        return f'Did you mean "{close[0]}"?'
    return f"Known here: {', '.join(names)}." if 0 < len(names) <= 40 else ""


def path_of(error: ErrorDetails) -> KeyPath:
    """Return where pydantic's error is; a wrong key of a mapping is told at the key."""
    return tuple(part for part in error["loc"] if part != "[key]")


def is_about_key(error: ErrorDetails) -> bool:
    """Say whether it is the key that is wrong and not what it holds."""
    return error["type"] == "extra_forbidden" or "[key]" in error["loc"]


_NO_NUMBER = ("is not a whole number", "Write digits, without quotes, unit or leading zeros.")
_PLAIN = {
    "bool_type": ("is not true or false", "Write true or false; yes, no, on and off are text in YAML 1.2."),
    "int_type": _NO_NUMBER,
    "int_from_float": _NO_NUMBER,
}
"""Pydantic's errors that need no detail: what completes the value, and the remedy."""


def words(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return what is wrong and the remedy, for one error of validating `model`."""
    value, context, path = error.get("input"), error.get("ctx", {}), path_of(error)
    match error["type"]:
        case "unfit":
            what, remedy = context["what"], context["remedy"]
        case "missing":
            what, remedy = "is missing", f"{_meaning(path, model)}Add it; config.example.yaml shows how."
        case "extra_forbidden":
            what, remedy = "is not a key here", nearest(str(path[-1]), known_keys(path[:-1], model))
        case "literal_error" | "enum":
            choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
            what, remedy = f"{shown(value)} is not one of {', '.join(choices)}", nearest(str(value), choices)
        case "greater_than_equal":
            what, remedy = f"{shown(value)} is too small", f"Write at least {context['ge']}."
        case "less_than_equal":
            what, remedy = f"{shown(value)} is too large", f"Write at most {context['le']}."
        case "model_type" | "dict_type":
            what, remedy = f"needs a group of keys and holds {_held(value)}", _group_remedy(path, model)
        case "tuple_type":
            ways = 'Write [one, two], or one line for each, beginning with "- ".'
            what, remedy = f"needs a list and holds {_held(value)}", ways
        case kind:
            said, remedy = _PLAIN.get(kind, (f"does not fit ({kind})", ""))
            what = f"{shown(value)} {said}"
    return what, remedy


def _held(value: object) -> str:
    kinds = ((type(None), "nothing"), (str, "text"), (list, "a list"), (dict, "a group of keys"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number or truth value")


def _group_remedy(path: KeyPath, model: type[BaseModel]) -> str:
    known = known_keys(path, model)
    return f"Keys that fit: {', '.join(sorted(known))}." if known else "Write `name:` and its keys below, indented."


def _meaning(path: KeyPath, model: type[BaseModel]) -> str:
    section = section_at(path[:-1], model)
    for name, field in section.model_fields.items() if section else ():
        if path[-1] in (name, field.validation_alias):
            return f"{field.description} "
    return ""


def known_keys(path: KeyPath, model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the keys that may stand in the group at `path`, with their types; none where any name may stand."""
    section = section_at(path, model)
    if section is None:
        return {}
    return {str(field.validation_alias or name): field.annotation for name, field in section.model_fields.items()}


def section_at(path: KeyPath, model: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model of the group at `path`, if it is one."""
    kind: Any = model
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys = {str(field.validation_alias or name): field.annotation for name, field in kind.model_fields.items()}
            kind = _bare(keys.get(str(part)))
        elif get_origin(kind) in (dict, tuple):
            kind = _bare(get_args(kind)[1 if get_origin(kind) is dict else 0])
        else:
            return None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _bare(kind: Any) -> Any:
    """Return a type without `Annotated` and `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return _bare(next(one for one in get_args(kind) if one is not type(None)))
    return kind
