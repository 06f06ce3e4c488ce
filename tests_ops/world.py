"""Real programs on loopback: the stand-in, gateways, and a Prometheus with the rules of deploy/, made quick.

Everything that is started here is ended here, by its process; every wait has an end.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from zoneinfo import ZoneInfo

import trustme
import yaml

from tests.gateway.store.postgres_server import EmbeddedServer

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy/prometheus/rules.yaml"
BIN = Path(sys.executable).parent
GATEWAY = [str(BIN / "bcss-gateway")]
DEFECTIVE = [sys.executable, "-m", "tests_ops.defective_gateway"]
NOW = datetime.now(ZoneInfo("Europe/Brussels"))
CALL = (ROOT / "tests/messages/test-connection.xml").read_bytes()
PATH = "/TestConnectionServiceService/sendTestMessage"
OPEN = {
    "exceptions": [
        {
            "from": (NOW - timedelta(hours=1)).isoformat(timespec="seconds"),
            "to": (NOW + timedelta(hours=3)).isoformat(timespec="seconds"),
            "owner": "tests",
            "reason": "the tests run at any hour, against a stand-in",
        }
    ]
}
SOON = {
    # Closed until the day after tomorrow, but for 40 minutes: a long run does not end in them.
    "closed_dates": [NOW.date() + timedelta(days=day) for day in (0, 1)],
    "exceptions": [{**OPEN["exceptions"][0], "to": (NOW + timedelta(minutes=40)).isoformat(timespec="seconds")}],
}
OBSERVE = {"owner": "tests", "until": NOW.date() + timedelta(days=30)}


def free_port() -> int:
    """Return a port that nobody listens on, and that nobody was given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


_GIVEN: set[int] = set()


@contextmanager
def nobody_there() -> Iterator[str]:
    """Keep an address at which connections are refused: the port is taken, so no gateway gets it, and not listened
    on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def get(url: str) -> bytes:
    """Ask for a page."""
    with urlopen(url, timeout=5) as answer:
        body: bytes = answer.read()
        return body


def eventually(what: str, seen: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what `seen` returns as soon as it is true; fail when it is not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := seen():
            return found
        time.sleep(0.25)
    raise AssertionError(f"not within {seconds} s: {what}")


@contextmanager
def started(arguments: list[str], port: int, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; wait until it listens."""
    with out.open("wb") as sink:
        process = subprocess.Popen(arguments, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        for _ in range(300):
            assert process.poll() is None, f"{arguments} ended: {out.read_text()[-2000:]}"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"{arguments} does not listen: {out.read_text()[-2000:]}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Gateway:
    """One gateway that runs."""

    process: subprocess.Popen[bytes]
    config: Path
    port: int
    telemetry: int
    program: list[str] = field(default_factory=lambda: GATEWAY)

    @property
    def instance(self) -> str:
        """Return the label that Prometheus gives it."""
        return f"127.0.0.1:{self.telemetry}"

    def shows(self, line: str) -> bool:
        """Say whether its metrics have this line."""
        return line in get(f"http://{self.instance}/metrics").decode().splitlines()

    def post(self, body: bytes = CALL, *, path: str = PATH, bulk: bool = False) -> int:
        """Make a call and return its status."""
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
        address = f"http://127.0.0.1:{self.port}{'/bulk' if bulk else ''}{path}"
        try:
            with urlopen(Request(address, body, headers), timeout=15) as answer:
                answer.read()
                status: int = answer.status
        except HTTPError as refused:
            with refused:
                refused.read()
            status = refused.code
        return status

    def runs(self, *arguments: str) -> str:
        """Run a command on this gateway's runs (`runs ...`, `hold ...`); return what it says."""
        done = subprocess.run(
            [*self.program, *arguments, "--config", str(self.config)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, service: str, operation: str, items: int) -> str:
        """Submit a run of equal items that ask a service; return its id."""
        name = service.partition("/")[0]
        body = (
            '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<q:{operation} xmlns:q="http://kszbcss.fgov.be/intf/{service}"/></s:Body></s:Envelope>'
        )
        file = self.config.parent / f"{name}.ndjson"
        file.write_text(f"{json.dumps({'body': body})}\n" * items)
        return self.runs("runs", "submit", str(file), "--path", f"/{service}", "--name", name)

    def post_together(self, calls: int, *, bulk: bool) -> list[int]:
        """Make calls at the same time and return their statuses."""
        with ThreadPoolExecutor(calls) as threads:
            return [made.result() for made in [threads.submit(self.post, bulk=bulk) for _ in range(calls)]]


@dataclass
class World:
    """All that runs, and how to ask Prometheus about it."""

    folder: Path
    stack: ExitStack
    stand_in: int = 0
    prometheus: int = 0
    gone: str = ""  #: a target that does not answer
    stuck: str = ""  #: a target whose window does not follow its calendar
    database: EmbeddedServer = field(init=False)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)

    def start_stand_in(self, latency: str = "300ms", *faults: str) -> int:
        """Start a stand-in, slow enough that calls made together are in progress together; return its port."""
        port = free_port()
        arguments = [*GATEWAY, "simulate", "--port", str(port), "--latency", latency]
        for fault in faults:
            arguments += ["--fault", fault]
        self.stack.enter_context(started(arguments, port, self.folder / f"stand-in-{port}.log"))
        self.stand_in = self.stand_in or port
        return port

    def gateway(self, name: str, program: list[str] = GATEWAY, **more: Any) -> Gateway:
        """Start a gateway in front of the stand-in, with `more` in its configuration."""
        folder = self.folder / name
        folder.mkdir()
        port, telemetry = free_port(), free_port()
        settings: dict[str, Any] = {
            "listeners": [{"address": "127.0.0.1", "port": port}, *more.pop("listeners", [])],
            "telemetry": {"address": "127.0.0.1", "port": telemetry},
            "administration": {"port": 0},
            "upstreams": {
                "b2b": {"url": f"http://127.0.0.1:{self.stand_in}", "call_timeout": "2s", "hold": "1s"},
                **more.pop("upstreams", {}),
            },
            "routes": [{"prefix": "/", "upstream": "b2b"}, *more.pop("routes", [])],
            **more,
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        arguments = [*program, "serve", "--config", str(config)]
        process = self.stack.enter_context(started(arguments, telemetry, folder / "log"))
        self.gateways[name] = Gateway(process, config, port, telemetry, program)
        self.targets.append(f"127.0.0.1:{telemetry}")
        return self.gateways[name]

    def secret(self, name: str, text: str) -> dict[str, str]:
        """Put a secret into a file; return what stands in a configuration for it."""
        file = self.folder / name
        file.touch(0o600)
        file.write_text(text)
        return {"file": str(file)}

    def page(self, text: str) -> str:
        """Serve a page of metrics; return its label."""

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = self.stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Page))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.stack.callback(thread.join, 5)
        self.stack.callback(server.shutdown)
        self.targets.append(f"127.0.0.1:{server.server_port}")
        return self.targets[-1]

    def watch(self) -> None:
        """Start Prometheus on all targets, with the rules of deploy/: their thresholds, but no patience."""
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        settings = yaml.safe_load((RULES.parent / "prometheus.yaml").read_text())
        settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        settings["scrape_configs"] = [job for job in settings["scrape_configs"] if job["job_name"] == "bcss-gateway"]
        del settings["scrape_configs"][0]["static_configs"]
        found = {"files": [str(self.folder / "targets.json")], "refresh_interval": "1s"}
        settings["scrape_configs"][0]["file_sd_configs"] = [found]
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        self.prometheus = free_port()
        arguments = [
            "prometheus",
            f"--config.file={self.folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
        ]
        self.stack.enter_context(started(arguments, self.prometheus, self.folder / "prometheus.log"))
        eventually("Prometheus is ready", self.is_ready)
        self.follow()

    def is_ready(self) -> bool:
        """Say whether Prometheus has read its rules and answers questions: it listens before that."""
        try:
            return bool(get(f"http://127.0.0.1:{self.prometheus}/-/ready"))
        except HTTPError as not_yet:
            not_yet.close()
            return False

    def follow(self) -> None:
        """Have Prometheus ask all targets; wait until it has asked each gateway three times."""
        moved = self.folder / "targets.new"
        moved.write_text(json.dumps([{"targets": self.targets}]))
        moved.replace(self.folder / "targets.json")
        asked = "count_over_time(bcss_gateway_build_info[1m]) >= 3"
        eventually("gateways are scraped", lambda: len(self.query(asked)) == len(self.gateways))

    def ask(self, path: str, **query: str) -> Any:
        """Ask Prometheus' API."""
        answer = json.loads(get(f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urlencode(query)}"))
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """Evaluate an expression now; return its samples."""
        data = self.ask("query", query=expression)
        assert data["resultType"] == "vector"
        samples: list[Mapping[str, Any]] = data["result"]
        return samples

    def firing(self, **labels: str) -> list[Mapping[str, Any]]:
        """Return the alerts that fire now and have these labels."""
        alerts: list[Mapping[str, Any]] = self.ask("alerts")["alerts"]
        return [a for a in alerts if a["state"] == "firing" and labels.items() <= a["labels"].items()]

    def fires(self, alert: str, **labels: str) -> None:
        """Wait until an alert fires, and see that its texts can be read and its page is there."""
        for found in eventually(f"{alert} fires, {labels}", lambda: self.firing(alertname=alert, **labels)):
            texts = found["annotations"]
            assert "<" not in texts["summary"] + texts["description"], "a template could not be filled in"
            assert (ROOT / texts["runbook"]).is_file()


def certificate(folder: Path, days: int) -> dict[str, str]:
    """Write a certificate that expires in so many days; return where."""
    issued = trustme.CA().issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=days, minutes=5))
    path = folder / f"in-{days}-days.pem"
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return {"certificate": str(path)}
