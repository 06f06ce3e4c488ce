"""What `check` says of a configuration, and the JSON Schema of what may be written."""

import json
from datetime import UTC, datetime
from typing import Any

from gateway.config import describe, schema
from tests.gateway.config.sites import LEAST, NOW, Site

RICH = """
upstreams:
  bcss: {url: 'https://b2b-test.ksz-bcss.fgov.be:4520', credentials: {user: u, password: {env: PW}}}
routes:
  - {prefix: /, upstream: bcss}
  - {prefix: /a, upstream: bcss, replace: /b, sources: [onss]}
listeners: [{port: 1}, {port: 2, class: bulk, address: '::1'}]
clients:
  - {name: payroll, networks: [10.0.0.0/8, 10.0.0.1], user_agents: [Batch/], class: bulk}
  - {name: desk, networks: [10.1.0.0/16], class: realtime, may_declare_realtime: true}
  - {name: other, basic_users: [x]}
bulk:
  closed: park
  total_bulk: 8
  share: {base: 2, onss: 2}
  pools: {onss: {slots: 3, rate: 10/s, exceeds_recommendation: agreed}}
windows: {open_dates: [2026-12-24], closed_dates: [2026-12-25]}
catalogue: [own.yaml]
"""


def test_the_least_configuration_is_told_in_eight_paragraphs(site: Site) -> None:
    text = describe(site.load(LEAST), NOW)
    paragraphs = [line for line in text.splitlines()[1:] if line and not line.startswith(" ")]
    assert paragraphs == ["Windows", "Pools", "Routes", "Classes", "Times", "Runs", "Catalogue", "Warnings"]
    assert text.splitlines()[0] == f"{site.directory}/config.yaml: mode enforce"
    assert "Tuesday 2026-11-24 06:00 CET: open; closes Tuesday 2026-11-24 08:00 CET." in text
    assert "/ -> http://127.0.0.1:1/ (bcss, environment not known)" in text
    assert "T = 1min" in text
    assert f"Kept in {site.directory}/var/store.sqlite, for this gateway alone; ended runs are purged after" in text
    assert f"Their key is {site.directory}/var/store.key, made at the first start." in text
    assert "move it, and name it" in text
    assert "Over http://127.0.0.1:8081/api/v1 by nobody: there are no tokens" in text
    assert "No announcement is checked yet" in text
    assert text.endswith("Warnings\n  none")


def test_a_rich_configuration_is_told_with_what_follows_from_it(site: Site) -> None:
    site.environ["PW"] = "hidden"
    site.write("sources: {}\n", "own.yaml")
    text = describe(site.load(RICH), datetime(2026, 11, 24, 12, tzinfo=UTC))
    for said in (
        "closed; opens Tuesday 2026-11-24 17:00 CET.",
        "waits for an opening that is at most 10min away (10,000 calls at most)",
        "Open all day: 2026-12-24.",
        "Closed all day: 2026-12-25.",
        "onss; 10 starts a second",
        "All pools together: at most 8.",
        "These are this gateway's shares",
        "/a -> https://b2b-test.ksz-bcss.fgov.be:4520/b (bcss, test)",
        "Reaches its sources: onss; bulk that is not recognised takes a slot in each of 2 pools.",
        "Listener [::1]:2 (plain HTTP): bulk unless a call says otherwise.",
        "Client payroll: address in 10.0.0.0/8 or 10.0.0.1/32 and User-Agent Batch/: bulk.",
        "Client desk: address in 10.1.0.0/16: real-time unless another signal says bulk; may declare",
        "Client other: user x: as the listener says.",
        f"Own services from {site.directory}/own.yaml.",
        "bulk.share: this gateway has no slot in",
    ):
        assert said in text, said
    assert "hidden" not in text


def test_a_calendar_that_never_changes_is_told_so(site: Site) -> None:
    configuration = site.load(LEAST)
    object.__setattr__(configuration.calendar, "closed", ())
    assert "open; no change within 400 days." in describe(configuration, NOW)


def described_groups(part: Any, path: str = "") -> list[str]:
    """Return the properties of a schema that say nothing about what they mean."""
    if isinstance(part, list):
        return [silent for item in part for silent in described_groups(item, path)]
    if not isinstance(part, dict):
        return []
    silent = [
        f"{path}.{name}" for name, held in part.get("properties", {}).items() if not {"description", "$ref"} & set(held)
    ]
    inner = [(name, held) for name, held in part.items() if name != "oneOf"]
    return silent + [one for name, held in inner for one in described_groups(held, f"{path}.{name}")]


def test_the_schema_describes_every_key_and_is_json() -> None:
    described = schema()
    assert json.loads(json.dumps(described)) == described
    assert described["required"] == ["upstreams", "routes"]
    assert described_groups(described) == []
    assert set(described["$defs"]["Listener"]["properties"]) == {"address", "port", "class", "tls"}
    assert {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|min|h|d)?$"} in described["properties"][
        "drain_time"
    ]["anyOf"]
    assert described["$defs"]["Bulk"]["properties"]["closed"]["enum"] == ["refuse", "park", "queue"]


def test_shared_runs_are_told_with_who_may_steer_them_and_without_a_secret(site: Site) -> None:
    site.environ |= {"URL": "postgresql://user:hidden@db.example:5433/runs?sslmode=verify-full", "KEY": "hidden too"}
    text = describe(
        site.more(
            "store: {url: {env: URL}, key: {env: KEY}}\nbulk: {closed: queue}\n"
            f"administration: {{tokens: [{{name: anna, role: operator, sha256: {'0' * 64}}}]}}\n"
        ),
        NOW,
    )
    for said in (
        "Kept in PostgreSQL, db.example/runs, for all gateways on it;",
        "while it does not answer, no bulk starts",
        "Their key is the one that the configuration names.",
        "over http://127.0.0.1:8081/api/v1, by who has a token: anna (operator).",
        "Bulk in closed hours is stored, answered with 202",
    ):
        assert said in text, said
    assert "hidden" not in text
    assert "0000" not in text
