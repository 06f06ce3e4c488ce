"""The part of JSON Schema that the API's own description uses, as a check: what is described is what is enforced.

Known: type (one, or several), enum, pattern, minLength, maxLength, minimum, maximum, items, maxItems, properties,
required, additionalProperties (false), format (date-time). A keyword that is not known is a defect of the description,
and raises.

Rules that always hold: what is wrong names the place and the rule, never the value; a text that no store can keep (a
lone surrogate) is wrong everywhere.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Schema = Mapping[str, Any]

_SAID = frozenset({"description", "default", "title", "example"})
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def faults(value: object, schema: Schema, place: str = "the body") -> Iterator[str]:
    """Yield what is wrong with a value, in whole sentences."""
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place} must be {' or '.join(kinds)}."
        return
    for keyword, rule in schema.items():
        if keyword != "type" and keyword not in _SAID:
            yield from _RULES[keyword](value, rule, place, schema)


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _enum(value: object, rule: Any, place: str, _schema: Schema) -> Iterator[str]:
    if value not in rule:
        yield f"{place} must be one of: {', '.join(map(str, rule))}."


def _pattern(value: object, rule: str, place: str, schema: Schema) -> Iterator[str]:
    # All patterns here are anchored. Python's `$` would let a line end pass, which ECMA's does not.
    if isinstance(value, str) and not re.fullmatch(rule.removeprefix("^").removesuffix("$"), value):
        yield f"{place} must be {schema.get('title', f'a text that matches {rule}')}."


def _shortest(value: object, rule: int, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, str) and len(value) < rule:
        yield f"{place} must have {rule} characters at least."


def _longest(value: object, rule: int, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, str) and len(value) > rule:
        yield f"{place} must have {rule} characters at most."


def _least(value: object, rule: float, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, int | float) and value < rule:
        yield f"{place} must be {rule} at least."


def _most(value: object, rule: float, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, int | float) and value > rule:
        yield f"{place} must be {rule} at most."


def _items(value: object, rule: Schema, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from faults(one, rule, f"{place}[{number}]")


def _most_items(value: object, rule: int, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, list) and len(value) > rule:
        yield f"{place} must have {rule} members at most."


def _properties(value: object, rule: Mapping[str, Schema], place: str, schema: Schema) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    for name, one in value.items():
        if name in rule:
            yield from faults(one, rule[name], name)
        elif schema.get("additionalProperties") is False:
            yield f"{place} holds a member that is not known. Known: {', '.join(rule)}."


def _required(value: object, rule: Any, place: str, _schema: Schema) -> Iterator[str]:
    if isinstance(value, dict):
        for name in rule:
            if name not in value:
                yield f"{place} lacks `{name}`."


def _format(value: object, rule: str, place: str, _schema: Schema) -> Iterator[str]:
    if rule == "date-time" and isinstance(value, str) and instant(value) is None:
        yield f"{place} must be an instant with its offset, such as 2026-11-24T17:00:00+01:00."


def _nothing(_value: object, _rule: object, _place: str, _schema: Schema) -> Iterator[str]:
    return iter(())


_RULES: Mapping[str, Any] = {
    "enum": _enum,
    "pattern": _pattern,
    "minLength": _shortest,
    "maxLength": _longest,
    "minimum": _least,
    "maximum": _most,
    "items": _items,
    "maxItems": _most_items,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _nothing,  # told with the properties
    "format": _format,
}


def instant(text: str) -> datetime | None:
    """Return an aware instant of RFC 3339; None: it is none."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", text, re.ASCII):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def keepable(value: object) -> bool:
    """Say whether every text in a value can be written as UTF-8."""
    match value:
        case str():
            return not any("\ud800" <= letter <= "\udfff" for letter in value)
        case dict():
            return all(keepable(key) and keepable(one) for key, one in value.items())
        case list():
            return all(keepable(one) for one in value)
        case _:
            return True


def from_text(text: str, schema: Schema) -> object:
    """Return a query's value as its schema's type, or the text itself where it is no such thing."""
    match schema.get("type"):
        case "integer" if re.fullmatch(r"-?(0|[1-9]\d{0,18})", text, re.ASCII):
            return int(text)
        case "boolean" if text in ("true", "false"):
            return text == "true"
        case "array":
            return text.split(",") if text else []
        case _:
            return text
