"""Prometheus' own tool reads, checks and tests what deploy/ gives it."""

import subprocess

import pytest
import yaml

from tests_ops.world import ROOT, RULES

FOLDER = ROOT / "deploy/prometheus"


@pytest.mark.parametrize(
    "arguments", ["check rules rules.yaml", "check config prometheus.yaml", "test rules rules.test.yaml"]
)
def test_promtool_finds_nothing_wrong(arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments.split()], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
    assert "FAILED" not in done.stdout + done.stderr


def test_every_rule_has_a_unit_test() -> None:
    text = (FOLDER / "rules.test.yaml").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                asked = f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing"'
                assert f"expr: {asked}" in text, f"{rule['alert']} is never asked about"
                assert f"labels: >-\n              {asked}" in text, f"{rule['alert']} is never seen firing"
            else:
                assert f"expr: {rule['record']}\n" in text
