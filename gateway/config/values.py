"""The kinds of value that a configuration holds: how each is written in YAML, and what it becomes.

A duration is written `8s`, `500ms`, `10min`, `1h` or as a number of seconds, and becomes seconds. A size is written
`1MiB`, `64KiB` or as a number of bytes, and becomes bytes. A rate is written `10/s`, `600/min` or as a number a second,
and becomes starts a second. A file's path is relative to the directory of the configuration file. A secret stands in a
file or in the environment, never in the configuration.

Rules that always hold:
- What a value cannot be is said in plain words, with what to write instead.
- A secret, and whatever stands where one is expected, is in no message and in no representation.

Each kind is an annotation: `Annotated[float, Duration(0.1, 60)]`. It reads what YAML gives and, so that programs can
build settings without YAML, the value itself. Never reads the process's environment or directory: both come in as
`Place`; without one, paths stay as they are and files are not looked for.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2, "GiB": 1024**3}
_A_SECOND = {"s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?/ ?([a-z]+)")
_LARGEST_SECRET = 64 * 1024  #: bytes; a password file is a line, anything larger is the wrong file


@dataclass(frozen=True)
class Place:
    """Where a configuration is read: what its paths are relative to, and the environment that it may name."""

    directory: Path
    environ: Mapping[str, str]
    files: set[Path] = field(default_factory=set)  #: every file that was named, noted as it is looked for


def unfit(what: str, remedy: str = "") -> PydanticCustomError:
    """Make the error for a value that cannot be, in words that a person can act on."""
    return PydanticCustomError("unfit", "{what}", {"what": what, "remedy": remedy})


def shown(value: object) -> str:
    """Return a value as a message may quote it."""
    match value:
        case None:
            text = "nothing"
        case bool():
            text = str(value).lower()
        case str():
            text = f'"{value}"'
        case dict():
            text = "a group of keys"
        case list() | tuple():
            text = "a list"
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Described(ABC):
    """What an editor is told by JSON Schema."""

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.json_schema()

    @abstractmethod
    def json_schema(self) -> JsonSchemaValue:
        """Return what YAML may hold here."""


class _Kind(_Described):
    """A kind that is read the same everywhere."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Return what the value becomes. Raises PydanticCustomError."""


class _PlacedKind(_Described):
    """A kind whose reading depends on where the configuration is."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, info: ValidationInfo) -> Any:
            return self.read_at(value, info.context if isinstance(info.context, Place) else None)

        return core_schema.with_info_plain_validator_function(read)

    @abstractmethod
    def read_at(self, value: Any, place: Place | None) -> Any:
        """Return what the value becomes; without a place nothing is looked for. Raises PydanticCustomError."""


def _quantity(value: Any, units: Mapping[str, float], kind: str, example: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] and match[2] not in units):
        raise unfit(f"{shown(value)} is not a {kind}", f"Write it as {example}; units are {', '.join(units)}.")
    return float(match[1]) * units[match[2]] if match[2] else float(match[1])


@dataclass(frozen=True)
class Duration(_Kind):
    """Seconds, as float, between two bounds (both included)."""

    lowest: float
    highest: float

    def read(self, value: Any) -> float:
        """Return the seconds."""
        seconds = _quantity(value, _SECONDS, "duration", "8s, 500ms or 10min")
        if not self.lowest <= seconds <= self.highest:
            raise unfit(
                f"{shown(value)} is outside what is allowed here",
                f"Write a duration from {duration_text(self.lowest)} to {duration_text(self.highest)}.",
            )
        return float(seconds)

    def json_schema(self) -> JsonSchemaValue:
        """Return: a number of seconds, or text with a unit."""
        number = {"type": "number", "minimum": self.lowest, "maximum": self.highest}
        return {"anyOf": [number, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|min|h|d)?$"}]}


@dataclass(frozen=True)
class Size(_Kind):
    """Bytes, as int, between two bounds (both included)."""

    lowest: int
    highest: int
    a_second: bool = False  #: a pace: `/s` may follow

    def read(self, value: Any) -> int:
        """Return the bytes."""
        bare = value.removesuffix("/s").rstrip() if self.a_second and isinstance(value, str) else value
        kind, example = ("pace", "1KiB/s") if self.a_second else ("size", "64KiB or 1MiB")
        size = _quantity(bare, _BYTES, kind, example)
        if not self.lowest <= size <= self.highest or size != int(size):
            raise unfit(
                f"{shown(value)} is outside what is allowed here",
                f"Write whole bytes from {size_text(self.lowest)} to {size_text(self.highest)}.",
            )
        return int(size)

    def json_schema(self) -> JsonSchemaValue:
        """Return: a number of bytes, or text with a unit."""
        number = {"type": "integer", "minimum": self.lowest, "maximum": self.highest}
        tail = "(/s)?" if self.a_second else ""
        text = {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)? ?(B|kB|KiB|MB|MiB|GiB)?{tail}$"}
        return {"anyOf": [number, text]}


class Rate(_Kind):
    """Starts a second, as float, more than 0 and at most 10,000."""

    def read(self, value: Any) -> float:
        """Return the starts a second."""
        match = _RATE.fullmatch(value) if isinstance(value, str) else None
        if match is not None and match[2] in _A_SECOND:
            rate = float(match[1]) / _A_SECOND[match[2]]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            rate = float(value)
        else:
            raise unfit(f"{shown(value)} is not a rate", "Write it as 10/s, 600/min or 36000/h.")
        if not 0 < rate <= 10_000:
            raise unfit(f"{shown(value)} is outside what is allowed here", "Write a rate above 0 and up to 10000/s.")
        return rate

    def json_schema(self) -> JsonSchemaValue:
        """Return: a number a second, or text with a unit."""
        number = {"type": "number", "exclusiveMinimum": 0, "maximum": 10_000}
        return {"anyOf": [number, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?/ ?(s|min|h)$"}]}


@dataclass(frozen=True)
class Text(_Kind):
    """One line of text of a given form."""

    pattern: str = r"[^\x00-\x1f\x7f]+"
    form: str = "text in one line"  #: completes "is not ..."
    longest: int = 500

    def read(self, value: Any) -> str:
        """Return the text."""
        if isinstance(value, bool | int | float):
            raise unfit(f"{shown(value)} is read as a {_yaml_kind(value)} and text is expected", "Put it in quotes.")
        if not isinstance(value, str) or len(value) > self.longest or not re.fullmatch(self.pattern, value):
            raise unfit(f"{shown(value)} is not {self.form}")
        return value

    def json_schema(self) -> JsonSchemaValue:
        """Return the text's form."""
        return {"type": "string", "pattern": f"^(?:{self.pattern})$", "maxLength": self.longest}


class BaseUrl(_Kind):
    """Scheme, host and port of an upstream: nothing else, since the path is the caller's."""

    def read(self, value: Any) -> str:
        """Return the URL without a trailing slash. The value is quoted in no message: it may hold a password."""
        if not isinstance(value, str):
            raise unfit("is not a URL", "Write it as https://host:port.")
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise unfit("is not a URL", "Write it as https://host:port, the port from 1 to 65535.") from None
        if "@" in parts.netloc:
            raise unfit("holds a user or a password", "Take them out; `credentials` says where they stand.")
        if parts.scheme not in ("http", "https"):
            raise unfit("does not begin with https:// or http://", "Write it as https://host:port.")
        if not parts.hostname or not re.fullmatch(r"[a-z0-9._:-]+", parts.hostname) or port == 0:
            raise unfit("names no host that can be called", "Write it as https://host:port, in ASCII.")
        if parts.path not in ("", "/") or "?" in value or "#" in value:
            raise unfit("has a path or a query", "Leave scheme, host and port; a route's `replace` changes the path.")
        return value.rstrip("/")

    def json_schema(self) -> JsonSchemaValue:
        """Return what the URL looks like."""
        return {"type": "string", "pattern": r"^https?://[^/?#@\s]+/?$"}


class Day(_Kind):
    """A date, `YYYY-MM-DD`."""

    def read(self, value: Any) -> date:
        """Return the date."""
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        try:
            return datetime.strptime(value, "%Y-%m-%d").date()  # noqa: DTZ007  # a day has no zone
        except (TypeError, ValueError):
            raise unfit(f"{shown(value)} is not a date", "Write it as 2026-12-24.") from None

    def json_schema(self) -> JsonSchemaValue:
        """Return: text with a date."""
        return {"type": "string", "format": "date"}


class Moment(_Kind):
    """An instant. Without an offset it is in the zone of the windows, which whoever uses it must add."""

    def read(self, value: Any) -> datetime:
        """Return the instant, naive when no offset was written."""
        if isinstance(value, datetime):
            return value
        try:
            # Python also reads a date alone, as midnight: for the end of a span that would be a day too early.
            return datetime.fromisoformat(value if re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", value) else "")
        except (TypeError, ValueError):
            raise unfit(f"{shown(value)} is not a date with a time", 'Write it as "2026-12-24T12:00".') from None

    def json_schema(self) -> JsonSchemaValue:
        """Return: text with date and time."""
        return {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d"}


@dataclass(frozen=True)
class At(_PlacedKind):
    """A path, made absolute from the configuration's directory; a file that must be there unless said otherwise."""

    must_be_readable: bool = True

    def read_at(self, value: Any, place: Place | None) -> Path:
        """Return the path."""
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise unfit(f"{shown(value)} is not a path", "Write a path, in quotes if it looks like a number.")
        if place is None:
            return Path(value)
        path = place.directory / Path(value).expanduser()
        if self.must_be_readable:
            place.files.add(path)
            if not path.exists():
                raise unfit(f"there is no file {path}", "Paths are relative to the configuration file's directory.")
            if not path.is_file():
                raise unfit(f"{path} is not a file")
            if not os.access(path, os.R_OK):
                raise unfit(f"{path} cannot be read", "Give this user the right to read it.")
        return path

    def json_schema(self) -> JsonSchemaValue:
        """Return: text with a path."""
        return {"type": "string", "minLength": 1}


class Secret(_PlacedKind):
    """Text that stands elsewhere: `{file: path}` or `{env: NAME}`."""

    def read_at(self, value: Any, place: Place | None) -> SecretStr:
        """Return the secret. No message quotes what stands here, whatever it is."""
        if isinstance(value, SecretStr):
            return value
        ways = "Write {file: path} or {env: NAME}."
        if isinstance(value, str | int | float):
            raise unfit("a secret may not stand in the configuration", f"{ways} Change the secret: it was readable.")
        if not isinstance(value, dict) or len(value) != 1 or not set(value) <= {"file", "env"}:
            raise unfit("does not say where the secret stands", ways)
        [(kind, name)] = value.items()
        if not isinstance(name, str) or not name:
            raise unfit(f"`{kind}` names nothing", ways)
        if place is None:
            raise unfit("a secret can only be looked up when a configuration file is read")
        text = _file_text(name, place) if kind == "file" else place.environ.get(name)
        if text is None:
            raise unfit(f"the environment has no variable {name}", "Set it for the process that reads this.")
        if not text:
            raise unfit("the secret is empty", f"Fill the {'file' if kind == 'file' else 'variable'} that is named.")
        return SecretStr(text)

    def json_schema(self) -> JsonSchemaValue:
        """Return: an object with one of two keys."""
        name = {"type": "string", "minLength": 1}
        ways = [{"properties": {key: name}, "required": [key]} for key in ("file", "env")]
        return {"oneOf": [{"type": "object", "additionalProperties": False, **way} for way in ways]}


def _file_text(name: str, place: Place) -> str:
    path: Path = At().read_at(name, place)
    try:
        content = path.read_bytes()
        if len(content) > _LARGEST_SECRET:
            raise unfit(f"{path} is too large for a secret", "Name the file that holds only the secret.")
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError):
        raise unfit(f"{path} cannot be read as text") from None


def _yaml_kind(value: object) -> str:
    return "truth value" if isinstance(value, bool) else "number"


def _text(amount: float, units: Mapping[str, float]) -> str:
    """Return an amount in the largest unit of which it is a whole number, else in the smallest."""
    by_size = sorted(units, key=lambda unit: -units[unit])
    whole = (unit for unit in by_size if amount >= units[unit] and (amount / units[unit]).is_integer())
    unit = next(whole, by_size[-1])
    return f"{amount / units[unit]:.6f}".rstrip("0").rstrip(".") + unit


def duration_text(seconds: float) -> str:
    """Return a duration as the configuration would write it."""
    return _text(float(seconds), _SECONDS) if seconds else "0s"


def size_text(size: int) -> str:
    """Return a size as the configuration would write it."""
    return _text(float(size), {unit: n for unit, n in _BYTES.items() if "i" in unit or unit == "B"})
