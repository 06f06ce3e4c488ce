"""The shape of the house, checked: who may import what, how large a room may be, and who makes a slot."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
POLICIES = sorted((ROOT / "policies").glob("*.py"))
SOURCES = sorted([*POLICIES, *(ROOT / "gateway").rglob("*.py")])

# What a decision may lean on. Not here: asyncio, time, random, os, logging, threading, pathlib.
PURE = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "policies",
    "re",
    "typing",
}
# Each third-party library has its homes; elsewhere it would be a second way to do one thing.
HOMES = {
    "aiohttp": {"gateway/simulator", "gateway/admin", "gateway/cli"},
    "aiohappyeyeballs": {"gateway/upstream"},
    "aiolimiter": {"gateway/slots"},
    "asyncpg": {"gateway/store"},
    "backports": {"gateway/sealing.py"},
    "cryptography": {"gateway/certificates.py", "gateway/sealing.py"},
    "holidays": {"gateway/config"},
    "httptools": {"gateway/upstream", "gateway/inbound"},
    "lxml": {"gateway/simulator", "gateway/soap/outcome.py", "gateway/cli/demo/calls.py"},
    "prometheus_client": {"gateway/metrics.py", "gateway/counting.py", "gateway/app.py"},
    "pydantic": {"gateway/config"},
    "pydantic_core": {"gateway/config"},
    "rich": {"gateway/cli"},
    "typer": {"gateway/cli"},
    "uvloop": {"gateway/cli"},
    "yaml": {"gateway/config"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", POLICIES, ids=name_of)
def test_policies_are_pure(path: Path) -> None:
    """A decision takes its facts, the time included, as arguments."""
    assert imported(path) <= PURE, f"{path.name} reaches for {imported(path) - PURE}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_each_library_has_its_home(path: Path) -> None:
    for library in imported(path) & HOMES.keys():
        assert any(name_of(path).startswith(home) for home in HOMES[library]), f"{library} does not belong here"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_rooms_are_no_halls_and_say_what_they_promise(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_room_is_a_lumber_room(path: Path) -> None:
    assert not set(path.with_suffix("").parts) & {"utils", "helpers", "common", "core", "manager"}


def test_only_admission_makes_slots() -> None:
    """The upstream demands a slot for bulk; with one maker, no call can go round its cap."""
    makers = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Slot"
    }
    assert makers == {"gateway/slots/shell.py"}
