"""The whole way, with real processes: a file is submitted to a running gateway, sent to the stand-in, and fetched."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.occupancy import boot_id
from tests.conftest import envelope
from tests.gateway.cli.test_commands import ROOT, free_port

TEMPLATE = envelope().decode().replace("00000000097", "{{ssin}}").replace("hello", "hello {{name}}")


class Site:
    """A gateway's folder, and the commands of whoever stands there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments],
            env={**os.environ, "BCSS_GATEWAY_CONFIG": str(self.folder / "config.yaml")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A gateway that runs, its window open all week, over a stand-in."""
    stand_in, traffic, telemetry = free_port(), free_port(), free_port()
    (tmp_path / "config.yaml").write_text(
        f"data_dir: {tmp_path}/var\nlisteners: [{{address: 127.0.0.1, port: {traffic}}}]\n"
        f"telemetry: {{address: 127.0.0.1, port: {telemetry}}}\nadministration: {{port: 0}}\n"
        f"upstreams: {{a: {{url: 'http://127.0.0.1:{stand_in}', call_timeout: 2s, hold: 1s}}}}\n"
        "routes: [{prefix: /, upstream: a}]\n"
        "windows: {exceptions: [{from: '%s', to: '%s', owner: test, reason: a test}]}\n" % span()
    )
    (tmp_path / "var").mkdir()
    left = {"boot": boot_id(), "hold_s": 1.0, "clean": True, "busy": []}
    (tmp_path / "var" / "busy_until.json").write_text(json.dumps(left))
    log = (tmp_path / "log.jsonl").open("w")
    processes = [
        subprocess.Popen([sys.executable, "-m", "gateway.cli", *arguments], stdout=log, stderr=log, cwd=ROOT)
        for arguments in (
            ("simulate", "--port", str(stand_in), "--latency", "5ms"),
            ("serve", "--config", str(tmp_path / "config.yaml")),
        )
    ]
    try:
        for _ in range(300):
            if '"store open"' in (text := (tmp_path / "log.jsonl").read_text()) and '"administration"' in text:
                break
            time.sleep(0.05)
        yield Site(tmp_path)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
        log.close()


def span() -> tuple[str, str]:
    """Return a day around now, so that bulk may start whenever the test runs."""
    now = datetime.now(UTC)  # an hour or two from Brussels, which a day allows for
    begin, end = (now + timedelta(hours=hours) for hours in (-6, 12))
    return f"{begin:%Y-%m-%dT%H:%M}", f"{end:%Y-%m-%dT%H:%M}"


def test_a_csv_is_submitted_executed_and_fetched(site: Site) -> None:
    (site.folder / "persons.csv").write_text(
        "key,name,ssin\n" + "".join(f"k{number},Anna {number} & <co>,00000000097\n" for number in range(40))
    )
    (site.folder / "template.xml").write_text(TEMPLATE)
    csv = str(site.folder / "persons.csv")
    arguments = ("--path", "/x", "--template", str(site.folder / "template.xml"), "--key-column", "key")
    done = site.run("runs", "submit", csv, *arguments, "--ssin-column", "ssin", "--name", "round trip")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    watched = site.run("runs", "watch", run_id, "--every", "0.2")
    assert watched.returncode == 0, watched.stdout + watched.stderr + (site.folder / "log.jsonl").read_text()[-3000:]
    assert watched.stdout.splitlines()[-1].startswith("completed: 40 done of 40, 100.0 %")
    fetched = site.run("runs", "results", run_id)
    lines = [json.loads(line) for line in fetched.stdout.splitlines()]
    assert [line["key"] for line in lines] == [f"k{number}" for number in range(40)]
    assert b"Envelope" in base64.b64decode(lines[0]["body"])
    text = (site.folder / "log.jsonl").read_text()
    assert "00000000097" not in text
    assert '"level":"error"' not in text, text
    refused = site.run("store", "migrate")
    assert refused.returncode == 1
    assert "another gateway runs with this data_dir" in refused.stderr


def test_a_faulty_file_stores_nothing_and_makes_no_run(site: Site) -> None:
    (site.folder / "persons.csv").write_text("key,name,ssin\nk1,Anna,00000000097\nk2,Bert,00000000098\n")
    (site.folder / "template.xml").write_text(TEMPLATE)
    arguments = ("--path", "/x", "--template", str(site.folder / "template.xml"), "--ssin-column", "ssin")
    done = site.run("runs", "submit", str(site.folder / "persons.csv"), *arguments)
    assert done.returncode == 1
    assert "line 3: " in done.stderr
    assert "00000000098" not in done.stderr
    assert site.run("runs", "list").stdout == "There are no runs.\n"
