"""A YAML file as plain values, with the line and column of each.

Scalars are read by YAML 1.2's core schema and not by PyYAML's YAML 1.1: `no`, `on` and `08:00` are text, `true` is a
truth value, `010` is text and no octal eight. Dates stay text. Keys are always text. Anchors, aliases and merge keys
(`<<`) work; tags (`!!python/...`) are faults.

Rules that always hold:
- Every fault of a file is told, with its position: duplicate keys, keys that are no text, tags, a second document.
  After a fault of syntax nothing more can be known of that file.
- Reading is bounded: size, depth, and number of values with aliases written out (the "billion laughs").

Never interprets a value beyond its type, and never builds objects.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.config.faults import Fault, KeyPath, key_text

_LARGEST = 4 * 1024 * 1024  #: bytes; the shipped catalogue has some 50 kB
_DEEPEST = 40  #: levels; settings need 6
_MOST = 200_000  #: values, aliases written out
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")) | {"!"}
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# At most 18 digits: more is no quantity of ours, and Python refuses to read very long numbers.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?")
# libyaml's parser where PyYAML was built with it: six times as fast. Both give nodes with positions.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True)
class Position:
    """Line and column, counted from 1."""

    line: int
    column: int


class Document:
    """What a file holds: `content`, where each value and key stands, and what is wrong so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: Any = None
        self.faults: list[Fault] = []
        self._values: dict[KeyPath, Position] = {}
        self._keys: dict[KeyPath, Position] = {}

    def has(self, *path: str | int) -> bool:
        """Say whether something was written at this path, right or wrong."""
        return path in self._values

    def written(self, *path: str | int) -> Any:
        """Return what was written at this path, right or wrong; None if nothing was."""
        held = self.content
        for part in path:
            if not self.has(*path) or not isinstance(held, dict | list):
                return None
            held = held[part]  # type: ignore[index]  # a position was noted for it, so it fits
        return held

    def names(self, *path: str | int) -> frozenset[str]:
        """Return the keys written in the group at this path."""
        depth = len(path)
        return frozenset(str(key[depth]) for key in self._keys if len(key) == depth + 1 and key[:depth] == path)

    def fault(self, path: KeyPath, what: str, remedy: str = "", *, at_key: bool = False) -> Fault:
        """Make a fault about what stands at `path`; if nothing does, it points at the nearest group around it."""
        position = self._keys.get(path) if at_key else self._values.get(path)
        around = path
        while position is None and around:
            around = around[:-1]
            # A group that lacks something is shown by its key: its value begins a line below.
            position = self._keys.get(around) or self._values.get(around)
        position = position or Position(1, 1)
        return Fault(self.file, position.line, position.column, key_text(path), what, remedy)

    def _note(self, mark: Any, key: str, what: str, remedy: str) -> None:
        self.faults.append(Fault(self.file, mark.line + 1, mark.column + 1, key, what, remedy))


def read(file: Path) -> Document:
    """Read a file. What is wrong is in `faults`; never raises for what a file holds or lacks."""
    document = Document(file)
    try:
        if file.stat().st_size > _LARGEST:
            document.faults.append(Fault(file, 0, 0, "", "is larger than 4 MiB", "Name the right file."))
            return document
        text = _decoded(document, file.read_bytes())
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        remedy = "Name the configuration with --config; config.minimal.yaml is one to begin with."
        document.faults.append(Fault(file, 0, 0, "", reason, remedy))
        return document
    if text is not None and (root := _composed(document, text)) is not None:
        document.content = _Builder(document).value(root, ())
    return document


def _decoded(document: Document, octets: bytes) -> str | None:
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = octets[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        remedy = "Save the file as UTF-8."
        document.faults.append(Fault(document.file, line, column, "", "is not UTF-8", remedy))
        return None


def _composed(document: Document, text: str) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        document._note(mark, "", f"is not YAML: {said}", _syntax_remedy(said, text, mark))
        return None
    except yaml.YAMLError as error:
        said = str(getattr(error, "reason", error))
        document.faults.append(Fault(document.file, 1, 1, "", f"is not YAML: {said}", "Take out control characters."))
        return None
    except RecursionError:
        document.faults.append(Fault(document.file, 1, 1, "", "is nested too deeply", "Settings need 6 levels."))
        return None
    return root


def _syntax_remedy(said: str, text: str, mark: Any) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line:
        return "Indent with spaces: YAML allows no tabs."
    if "single document" in said:
        return "Leave one document in the file: take out `---` and what follows."
    if "undefined alias" in said:
        return "Define the anchor (&name) above, or put the text in quotes if it only begins with *."
    if "cannot start any token" in said:
        return "Put text that begins with @, ` or % in quotes."
    if "mapping values are not allowed" in said:
        return "Put text that holds a colon and a space in quotes, and check the indentation."
    return "Check indentation, quotes and brackets here and on the line above."


class _Builder:
    """Turns nodes into values, once for each place where they stand."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._left = _MOST
        self._inside: set[int] = set()  #: nodes that are being built: an alias to one of them has no end
        self._given_up = False

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return what a node holds."""
        mark = node.start_mark
        self._document._values[path] = Position(mark.line + 1, mark.column + 1)
        self._left -= 1
        if self._given_up:
            return None
        if self._left < 0 or len(path) > _DEEPEST or id(node) in self._inside:
            self._given_up = True  # told once: what follows is the same thing again
            self._tell(node, path, "is too large, too deep, or holds itself", "Take out the alias (*name).")
            return None
        if node.tag not in _TAGS:
            self._tell(node, path, "has a tag (!)", "Take it out; put text that begins with ! in quotes.")
            return None
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node.value) if not node.style else node.value
        self._inside.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._inside.discard(id(node))

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        built: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                self._tell(key_node, path, "has a list or a group as a key", "Write a plain word before the colon.")
                continue
            key = key_node.value
            if key == "<<" and not key_node.style:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key in built:
                remedy = f"Keep one; the first is on line {lines[key]}."
                self._tell(key_node, (*path, key), "stands twice", remedy)
                continue
            lines[key] = mark.line + 1
            self._document._keys[*path, key] = Position(mark.line + 1, mark.column + 1)
            built[key] = self.value(value_node, (*path, key))
        for other in merged:
            self._merge(other, path, built)
        return built

    def _merge(self, node: yaml.Node, path: KeyPath, built: dict[str, Any]) -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in self._inside:
            self._tell(node, path, "merges (<<) something that is no group of keys", "Name a group: `<<: *name`.")
            return
        own = {path: self._document._values[path]}
        keys = {(*path, key): self._document._keys[*path, key] for key in built}
        values = {at: place for at, place in self._document._values.items() if at[: len(path) + 1] in keys}
        inner = self.value(node, path)
        # What stands here by itself wins over what is merged in, with its position.
        self._document._values.update(values | own)
        self._document._keys.update(keys)
        if isinstance(inner, dict):
            for key, held in inner.items():
                built.setdefault(key, held)

    def _tell(self, node: yaml.Node, path: KeyPath, what: str, remedy: str) -> None:
        self._document._note(node.start_mark, key_text(path), what, remedy)


def _scalar(text: str) -> str | int | float | bool | None:
    """Read a plain scalar by the core schema of YAML 1.2 (chapter 10.3), decimal numbers only."""
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
