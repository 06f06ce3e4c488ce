"""config.example.yaml says everything there is, truly; both examples can be loaded as they stand."""

import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gateway.config import Settings, load
from gateway.config.document import read
from gateway.config.faults import known_keys, section_at
from gateway.config.validation import validate
from gateway.config.values import Place

ROOT = Path(__file__).parents[3]
PEM = re.compile(r"tls/[a-z-]+\.[a-z]+|secrets/[a-z.]+")
# What the comments call "Example": another value than the default.
EXAMPLES = {
    "wsdl_address",
    "environment", "certificate", "key", "key_password", "ca", "server_name", "credentials", "tls", "client_ca",
    "client_certificate", "observe", "replace", "sources", "clients", "networks", "tls_subjects", "basic_users",
    "user_agents", "class", "total_bulk", "pools", "share", "slots", "rate", "exceeds_recommendation", "exceptions",
    "upstreams", "routes", "listeners", "url", "tokens", "sha256", "role", "hosts",
}  # fmt: skip


@pytest.fixture
def everything(tmp_path: Path) -> Settings:
    """The example with all that is commented out put in force, and the files that it names."""
    text = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^( *)#(?=[a-z-])", r"\1", text)
    for name in set(PEM.findall(text)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    document = read(path)
    assert document.faults == []
    found, faults = validate(document, Place(tmp_path, {"BCSS_KEY_PASSWORD": "x", "BCSS_STORE_URL": "x"}))
    assert [str(fault) for fault in faults] == []
    assert found is not None
    return found.settings


def groups(value: Any) -> list[BaseModel]:
    """Return all groups of keys inside a value, itself included."""
    inner: Any = ()
    if isinstance(value, BaseModel):
        inner = (getattr(value, name) for name in type(value).model_fields)
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, tuple):
        inner = value
    own = [value] if isinstance(value, BaseModel) else []
    return own + [group for one in inner for group in groups(one)]


def test_every_key_occurs_in_the_example(everything: Settings) -> None:
    written: dict[str, set[str]] = {}
    for group in groups(everything):
        written.setdefault(type(group).__name__, set()).update(group.model_fields_set)
    for group in groups(everything):
        assert written[type(group).__name__] == set(type(group).model_fields), type(group).__name__
    assert set(written) >= {"Settings", "Observe", "ListenerTls", "Credentials", "OpenSpan", "Client", "PoolSettings"}


def test_the_defaults_that_the_example_shows_are_the_real_ones(everything: Settings) -> None:
    for group in groups(everything):
        for name, field in type(group).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if default is PydanticUndefined or isinstance(default, BaseModel):
                continue
            key = str(field.validation_alias or name)
            value = getattr(group, name)
            if group is everything.listeners[1]:
                continue  # the second listener is one big example
            if name == "data_dir":
                assert value.name == str(default)
            elif key not in EXAMPLES:
                assert value == default, f"{type(group).__name__}.{key}"


def test_each_key_of_the_example_is_explained_above_it() -> None:
    lines = (ROOT / "config.example.yaml").read_text(encoding="utf-8").splitlines()
    for before, line in pairwise(lines):
        if re.match(r" *#?[a-z_]+:", line) and "url: http" not in line and "margin_max" not in line:
            assert re.match(r" *# ", before) or before.endswith((":", "{", "b2b:")), line


@pytest.mark.parametrize("name", ["config.example.yaml", "config.minimal.yaml"])
def test_an_example_loads_as_it_stands_without_a_warning(name: str) -> None:
    configuration = load(ROOT / name, {}, now=datetime(2026, 11, 24, tzinfo=UTC))
    assert configuration.warnings == ()


def test_the_minimal_example_has_fifteen_lines() -> None:
    assert len((ROOT / "config.minimal.yaml").read_text(encoding="utf-8").splitlines()) == 15


def test_no_line_of_the_examples_is_longer_than_120() -> None:
    for name in ("config.example.yaml", "config.minimal.yaml"):
        assert max(map(len, (ROOT / name).read_text(encoding="utf-8").splitlines())) <= 120


def test_groups_are_found_through_lists_mappings_and_what_may_be_left_out() -> None:
    assert "certificate" in known_keys(("listeners", 0, "tls"), Settings)
    assert "url" in known_keys(("upstreams", "any"), Settings)
    assert known_keys(("drain_time", "x"), Settings) == {}
    assert section_at(("gone", "deeper"), Settings) is None
