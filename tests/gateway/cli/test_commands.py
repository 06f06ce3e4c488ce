"""The commands as a person runs them: what they print, how they end; `serve` as a process with signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app

ROOT = Path(__file__).parents[3]
MESSAGE = str(ROOT / "tests" / "messages" / "test-connection.xml")
MINIMAL = str(ROOT / "config.minimal.yaml")
runner = CliRunner()


def run(*arguments: str) -> tuple[int, str, str]:
    result = runner.invoke(app, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def explained(*arguments: str) -> dict[str, object]:
    status, out, err = run("explain", MESSAGE, "--config", MINIMAL, "--json", *arguments)
    assert (status, err) == (0, "")
    shown: dict[str, object] = json.loads(out)
    return shown


def test_explain_says_what_would_happen_to_a_bulk_call_in_office_hours() -> None:
    shown = explained("--path", "/bulk/TestConnectionServiceService/sendTestMessage", "--at", "2026-11-24T09:30")
    assert shown["style"] == "soa"
    assert shown["service"] == "TestConnectionServiceService/v1"
    assert shown["sources"] == ["bcss"]
    assert shown["pools"] == ["base"]
    assert (shown["traffic"], shown["class_rule"]) == ("bulk", "path prefix /bulk/")
    assert shown["outcome"] == "refused: office_hours, until Tuesday 2026-11-24 17:00 (CET)"
    assert shown["mismatch"] == ""


def test_explain_knows_headers_and_the_evening() -> None:
    arguments = ("--path", "/x", "--at", "2026-11-24T20:00", "-H", "X-Traffic-Class: bulk")
    assert "forwarded; waits at most 8 s" in str(explained(*arguments)["outcome"])
    assert explained("--path", "/x")["outcome"] == "forwarded at once"
    assert "unknown_run" in str(explained("--path", "/x", "-H", "X-Bulk-Run: 1")["outcome"])
    assert "malformed" in str(explained("--path", "/x", "-H", "Content-Encoding: br")["outcome"])


def test_explain_prints_a_table_for_people_and_reads_standard_input() -> None:
    result = runner.invoke(app, ["explain", "-", "--config", MINIMAL, "--path", "/x"], input=Path(MESSAGE).read_text())
    assert result.exit_code == 0
    assert "TestConnectionServiceService/v1" in result.stdout
    assert "forwarded at once" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--at", "noon"), "is not a time"),
        (("--listener", "9"), "there are 1, counted from 0"),
        (("-H", "no colon"), "is not a field"),
    ],
)
def test_wrong_use_of_explain_is_told_and_ends_with_2(arguments: tuple[str, ...], says: str) -> None:
    status, _, err = run("explain", MESSAGE, "--config", MINIMAL, *arguments)
    assert status == 2
    assert says in err


def test_check_says_what_a_configuration_means() -> None:
    status, out, _ = run("check", "--config", str(ROOT / "config.example.yaml"))
    assert status == 0
    assert "08:00 to 17:00 (Europe/Brussels)" in out
    assert "Confirm it with your PPKB contact" in out


def test_check_says_all_that_is_wrong_and_where(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("upstrems: {}\nroutes: [{prefix: x, upstream: y}]\n")
    status, _, err = run("check", "--config", str(config))
    assert status == 2
    assert f"{config}:1:1: " in err
    assert f"{config}:2:" in err
    assert "upstreams" in err


def test_check_prints_its_schema() -> None:
    status, out, _ = run("check", "--schema")
    assert status == 0
    assert "upstreams" in json.loads(out)["properties"]


def test_check_refuses_shares_that_add_up_to_more_than_a_cap(tmp_path: Path) -> None:
    base = (
        "upstreams: {a: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /, upstream: a}]\nbulk: {share: {base: %d}}\n"
    )
    configs = []
    for name, share in (("a", 3), ("b", 2)):
        configs.append(tmp_path / f"{name}.yaml")
        configs[-1].write_text(base % share)
    status, _, err = run("check", *map(str, configs))
    assert status == 2
    assert "add up to 5, above its cap of 4" in err
    configs[1].write_text(base % 1)
    assert run("check", *map(str, configs))[0] == 0
    configs[1].write_text(base.partition("bulk")[0])
    assert "has no `share:`" in run("check", *map(str, configs))[2]


def test_simulate_tells_what_it_does_not_understand() -> None:
    status, _, err = run("simulate", "--fault", "sometimes")
    assert status == 2
    assert "is not understood" in err


def test_the_version_is_printed() -> None:
    assert run("version")[1].strip() == "0.1.0"


def test_the_demo_shows_what_it_promises() -> None:
    """In a process of its own, as `make demo` runs it."""
    command = [sys.executable, "-m", "gateway.cli", "demo", "--config", str(ROOT / "config.example.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "office hours: real-time passes, bulk is refused",
        "Retry-After",
        "60 of 60 passed",
        "240 persons are submitted as a mass run",
        "17:01:00, if a call takes a second",
        "HTTP 202, Location: /.gateway/async/",
        "interrupted: an unclean restart; cools down for 5.0 min",
        "1 at a time at first",
        "rejected, 0 failed, 0 in doubt",
        "the person is not integrated for your institution",
        "All as it should be",
    ):
        assert said in done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(folder: Path, traffic: int = 0, upstream: int = 9) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `serve` as a process, ready when its telemetry answers."""
    port = free_port()
    (folder / "config.yaml").write_text(
        f"listeners: [{{address: 127.0.0.1, port: {traffic}}}]\ntelemetry: {{address: 127.0.0.1, port: {port}}}\n"
        f"upstreams: {{a: {{url: 'http://127.0.0.1:{upstream}'}}}}\nroutes: [{{prefix: /, upstream: a}}]\n"
    )
    environment = {**os.environ, "BCSS_GATEWAY_CONFIG": str(folder / "config.yaml")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        for _ in range(200):
            try:
                with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    break
            except OSError:
                time.sleep(0.05)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_ends_in_order_and_a_second_process_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        second = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "serve", "--config", str(tmp_path / "config.yaml")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=ROOT,
        )
        assert second.returncode == 1
        assert "another gateway runs with this data_dir" in second.stderr
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in out.splitlines()][-2:] == ["stopping", "stopped"]
    assert json.loads((tmp_path / "var" / "busy_until.json").read_text())["clean"] is True


def test_kill_leaves_the_file_unclean(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        process.kill()
    assert json.loads((tmp_path / "var" / "busy_until.json").read_text())["clean"] is False


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """A call hangs at an upstream that accepts and is silent, so that an orderly stop would take its time."""
    traffic = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = silent.getsockname()[1]
        with serving(tmp_path, traffic, upstream) as (process, _):  # noqa: SIM117  # the client ends before the process
            with socket.create_connection(("127.0.0.1", traffic)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                taken, _ = silent.accept()
                process.send_signal(signal.SIGTERM)
                assert process.stdout is not None
                while "stopping" not in process.stdout.readline():
                    assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=15)
                taken.close()
    assert process.returncode == 1
    assert json.loads((tmp_path / "var" / "busy_until.json").read_text())["clean"] is False
