"""What deploy/ promises: one gateway, an orderly stop, state that outlives it, no rights that it does not need."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests_ops.world import BIN, GATEWAY, ROOT, RULES

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/bcss-gateway.service"
SHARED = "gateways-on-postgresql.yaml"
STATE = "/var/lib/bcss-gateway"
ALERTS = [rule for g in yaml.safe_load(RULES.read_text())["groups"] for rule in g["rules"] if "alert" in rule]


def check(config: Path, **environ: str) -> str:
    """Run `bcss-gateway check` and return what it says."""
    command = [*GATEWAY, "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def objects(file: str = "gateway.yaml") -> dict[str, Any]:
    """Return the Kubernetes objects by kind."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text()))
    assert len({item["kind"] for item in found}) == len(found)
    return {item["kind"]: item for item in found}


def keys(unit: str) -> dict[str, list[str]]:
    """Return the keys of a systemd unit, each with all its values."""
    read: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE):
        read.setdefault(key, []).append(value)
    return read


# Compose.


def test_compose_runs_one_hardened_gateway_whose_state_outlives_it() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {"gateway", "stand-in", "prometheus", "grafana"}
    gateway = compose["services"]["gateway"]
    assert "deploy" not in gateway
    assert f"gateway-state:{STATE}" in gateway["volumes"]
    assert gateway["stop_grace_period"] == "30s"
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["ulimits"]["nofile"] == {"soft": 65536, "hard": 65536}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        named = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert all((DEPLOY / name).exists() if name.startswith(".") else name in compose["volumes"] for name in named)


def test_compose_configuration_is_sound_and_fits_what_is_mounted() -> None:
    assert "mode enforce" in check(DEPLOY / "compose.config.yaml")
    config = yaml.safe_load((DEPLOY / "compose.config.yaml").read_text())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert config["data_dir"] == STATE
    published = {int(port.rpartition(":")[2]) for port in compose["gateway"]["ports"]}
    assert {listener["port"] for listener in config["listeners"]} | {9464} == published
    assert all(listener["address"] == "0.0.0.0" for listener in config["listeners"])
    command = compose["stand-in"]["command"]
    port = command[command.index("--port") + 1]
    assert config["upstreams"]["b2b"]["url"] == f"http://stand-in:{port}"


def test_stand_in_takes_the_options_that_compose_gives_it() -> None:
    command = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["stand-in"]["command"]
    said = subprocess.run([*GATEWAY, "simulate", "--help"], capture_output=True, text=True, timeout=60).stdout
    assert command[:2] == ["bcss-gateway", "simulate"]
    assert all(option in said for option in command if option.startswith("--"))


def test_compose_on_postgresql_runs_two_hardened_gateways_on_one_database_and_one_key() -> None:
    one = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]
    variant = yaml.safe_load((DEPLOY / "compose.postgres.yaml").read_text())
    services = variant["services"]
    assert set(services) == {"gateway", "gateway-2", "postgresql"}
    first, second = services["gateway"], services["gateway-2"]
    assert first["environment"] == second["environment"]
    assert set(first["environment"]) == {"BCSS_STORE_URL", "BCSS_STORE_KEY"}
    mounted = "./compose.postgres.config.yaml:/etc/bcss-gateway/config.yaml:ro"
    assert first["volumes"] == [mounted]
    assert second["volumes"] == [f"gateway-2-state:{STATE}", mounted]
    same = ("image", "user", "read_only", "cap_drop", "security_opt", "ulimits", "restart", "stop_grace_period")
    assert {key: second[key] for key in same} == {key: one[key] for key in same}
    ends = [port.rpartition(":")[2] for port in one["ports"]]
    assert [port.rpartition(":")[2] for port in second["ports"]] == ends
    assert not {*one["ports"]} & {*second["ports"]}
    assert "ports" not in services["postgresql"]
    assert set(variant["volumes"]) == {"gateway-2-state", "postgresql-data"}


def test_compose_configuration_on_postgresql_is_sound_and_otherwise_the_same() -> None:
    file = DEPLOY / "compose.postgres.config.yaml"
    url = "postgresql://bcss:hidden@postgresql:5432/bcss"
    said = check(file, BCSS_STORE_URL=url, BCSS_STORE_KEY="A" * 43 + "=")
    assert "Kept in PostgreSQL, postgresql/bcss" in said
    assert "hidden" not in said
    config = yaml.safe_load(file.read_text())
    assert config.pop("store") == {"url": {"env": "BCSS_STORE_URL"}, "key": {"env": "BCSS_STORE_KEY"}}
    assert config == yaml.safe_load((DEPLOY / "compose.config.yaml").read_text())


# Kubernetes.


def test_kubernetes_runs_one_gateway_and_never_two() -> None:
    deployment = objects()["Deployment"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert objects()["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    text = (DEPLOY / "kubernetes/gateway.yaml").read_text()
    assert "HorizontalPodAutoscaler" not in objects()
    for warning in (
        "never one per application pod",
        "ONE gateway for one institution and one BCSS environment",
        "PostgreSQL",
    ):
        assert warning in text


def test_kubernetes_on_postgresql_runs_two_and_changes_them_one_by_one() -> None:
    found = objects(SHARED)
    deployment = found["Deployment"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert "PersistentVolumeClaim" not in found
    alone = objects()
    assert {kind: found[kind] for kind in ("Service", "NetworkPolicy")} == {
        kind: alone[kind] for kind in ("Service", "NetworkPolicy")
    }


def test_kubernetes_on_postgresql_finds_address_and_key_in_one_secret(tmp_path: Path) -> None:
    found = objects(SHARED)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes["state"] == {"name": "state", "emptyDir": {}}
    assert volumes["store"]["secret"]["secretName"] == "bcss-gateway-store"
    text = found["ConfigMap"]["data"]["config.yaml"]
    store = yaml.safe_load(text)["store"]
    assert store == {key: {"file": f"{mounts['store']}/{key}"} for key in ("url", "key")}
    (tmp_path / "url").write_text("postgresql://bcss:hidden@db.example/bcss?sslmode=verify-full")
    (tmp_path / "key").write_text("A" * 43 + "=")
    (tmp_path / "config.yaml").write_text(text.replace(mounts["store"], str(tmp_path)))
    said = check(tmp_path / "config.yaml")
    assert "Kept in PostgreSQL, db.example/bcss" in said
    assert "store.url" not in said


@pytest.mark.parametrize("file", ["gateway.yaml", SHARED])
def test_kubernetes_pod_stops_in_order_and_is_asked_the_right_questions(file: str) -> None:
    pod = objects(file)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 30
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 9464}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9464}


@pytest.mark.parametrize("file", ["gateway.yaml", SHARED])
def test_kubernetes_pod_has_no_rights_it_does_not_need(file: str) -> None:
    pod = objects(file)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert "--uid 10001" in (ROOT / "Dockerfile").read_text()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_kubernetes_configuration_is_a_directory_and_sound(tmp_path: Path) -> None:
    found = objects()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts["state"]["mountPath"] == STATE
    claim = found["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim
    assert mounts["config"] == {"name": "config", "mountPath": "/etc/bcss-gateway", "readOnly": True}
    assert volumes["config"] == {"name": "config", "configMap": {"name": found["ConfigMap"]["metadata"]["name"]}}
    config = tmp_path / "config.yaml"
    config.write_text(found["ConfigMap"]["data"]["config.yaml"])
    assert yaml.safe_load(config.read_text())["data_dir"] == STATE
    check(config)


def test_kubernetes_service_leads_to_the_ports_of_the_configuration() -> None:
    found = objects()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listeners = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])["listeners"]
    assert {listener["port"] for listener in listeners} | {9464} == set(ports.values())
    assert {port["targetPort"]: port["port"] for port in found["Service"]["spec"]["ports"]} == ports
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()


# systemd.


def test_systemd_unit_names_credentials_where_the_configuration_finds_them() -> None:
    text = UNIT.read_text()
    named = re.findall(r"^#LoadCredential=(\S+):/etc/bcss-gateway/(\S+)$", text, re.MULTILINE)
    assert [one for one, _ in named] == ["client.key", "store.key", "store.url"]
    for name, file in named:
        assert name == file
        assert f"/run/credentials/{UNIT.name}/{name}" in text


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/bcss-gateway/bin", str(BIN)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if "bcss-gateway" in line]
    assert (done.returncode, about_it) == (0, []), done.stderr


def test_systemd_unit_keeps_its_promises() -> None:
    unit = keys(UNIT.read_text())
    expected = {
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "StateDirectory": "bcss-gateway",
        "LimitNOFILE": "65536",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillSignal": "SIGTERM",
        "KillMode": "mixed",
        "TimeoutStopSec": "30",
        "DynamicUser": "yes",
        "CapabilityBoundingSet": "",
    }
    assert {key: unit.get(key) for key in expected} == {key: [value] for key, value in expected.items()}


# Alerts and dashboard.


@pytest.mark.parametrize("alert", sorted({rule["alert"] for rule in ALERTS}))
def test_alert_has_a_page_that_says_what_to_do(alert: str) -> None:
    for rule in (rule for rule in ALERTS if rule["alert"] == alert):
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["runbook"] == f"docs/runbook/{alert}.md"
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
    page = (ROOT / "docs/runbook" / f"{alert}.md").read_text()
    assert page.startswith(f"# {alert}\n")
    for title in ("What it means", "What to look at", "What to do", "When it is over"):
        assert f"\n## {title}\n" in page


def test_no_page_is_left_over_from_an_alert_that_is_gone() -> None:
    pages = {path.stem for path in (ROOT / "docs/runbook").glob("*.md")}
    assert pages - {"README"} == {rule["alert"] for rule in ALERTS}


def test_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Are we legal?", "Queues", "Runs", "Real-time", "Refusals", "Health"]
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_grafana_finds_its_dashboard_and_prometheus_where_compose_puts_them() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/bcss-gateway.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    mounted = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboard.json:{provider['options']['path']}/dashboard.json:ro" in mounted
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
