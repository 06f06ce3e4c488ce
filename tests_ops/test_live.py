"""Each alert is provoked in running gateways and seen to fire in a real Prometheus; each panel has data.

The rules are those of deploy/, with their thresholds; only their patience (`for`, intervals) is shortened.
"""

import json
import math
import signal
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import yaml

from tests.gateway.store.postgres_server import embedded_server
from tests_ops.world import (
    DEFECTIVE,
    NOW,
    OBSERVE,
    OPEN,
    PATH,
    ROOT,
    RULES,
    SOON,
    World,
    certificate,
    eventually,
    free_port,
    nobody_there,
)

KEY = b64encode(bytes(32)).decode()
"""For tests: no secret."""
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
QUESTIONS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
}
ALERTS = sorted(
    {rule["alert"] for g in yaml.safe_load(RULES.read_text())["groups"] for rule in g["rules"] if "alert" in rule}
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two stand-ins, gateways, a page with a window that stands still, one target that is gone, and Prometheus."""
    with ExitStack() as stack:
        world = World(tmp_path_factory.mktemp("world"), stack)
        world.start_stand_in()
        closed_today = {"closed_dates": [NOW.date()]}
        soon = [
            {"address": "127.0.0.1", "port": free_port(), "tls": certificate(world.folder, days)}
            for days in (3, 20, 60)
        ]
        world.gateway("observing", mode="observe", observe=OBSERVE, windows=closed_today, listeners=soon)
        world.gateway(
            "enforcing",
            windows=OPEN,
            bulk={"queue_length": 0, "refusal_delay": "0s"},
            upstreams={
                "gone": {"url": f"http://{stack.enter_context(nobody_there())}", "call_timeout": "2s", "hold": "1s"}
            },
            routes=[{"prefix": "/gone", "upstream": "gone"}],
        )
        world.gateway("defective", DEFECTIVE, windows=OPEN)
        world.gateway("reloading")
        # Whose stand-in has trouble of a kind for each of some services.
        faulty = world.start_stand_in(
            "20ms",
            "service=Dolsis2011Service business=MSG00013",
            "service=ECarmedService reset",
            "service=UnemploymentDataService status=503",
            "service=SelfEmployedService latency=1s",
        )
        trouble = {"b2b": {"url": f"http://127.0.0.1:{faulty}", "call_timeout": "2s", "hold": "1s"}}
        world.gateway("running", windows=SOON, upstreams=trouble, runs={"cool_down": "1s", "ramp_step": "10ms"})
        # Two gateways on one database that do not agree.
        world.database = stack.enter_context(embedded_server())
        store = {"url": world.secret("store-url", world.database.url), "key": world.secret("key", KEY)}
        for name, bulk in (("first", {}), ("second", {"pools": {"base": {"slots": 3}}})):
            shared = world.gateway(name, windows=OPEN, bulk=bulk, store=store)
            eventually(f"{name} has opened its store", lambda one=shared: one.shows("bcss_gateway_store_up 1.0"))
        world.gone = stack.enter_context(nobody_there())
        world.targets.append(world.gone)
        world.stuck = world.page(f"bcss_gateway_window_next_change_timestamp_seconds {time.time() - 3600}\n")
        world.watch()
        yield world


# How to provoke each alert: what is done, and the labels of the alert that must follow.


def cap_violated(world: World) -> None:
    gateway = world.gateways["defective"]
    # Admission lets all six in, which is counted; the guard before the first octet still lets only four start.
    assert sorted(gateway.post_together(6, bulk=True)) == [200] * 4 + [500] * 2
    world.fires("BcssGatewayCapViolated", instance=gateway.instance, severity="critical")


def bulk_in_office_hours(world: World) -> None:
    gateway = world.gateways["observing"]
    assert gateway.post_together(6, bulk=True) == [200] * 6
    world.fires("BcssGatewayBulkInOfficeHours", instance=gateway.instance, severity="critical")


def window_state(world: World) -> None:
    world.fires("BcssGatewayWindowState", instance=world.stuck, severity="critical")


def queue_refused(world: World) -> None:
    gateway = world.gateways["enforcing"]
    asked = f'bcss_gateway_cooling_down_seconds{{instance="{gateway.instance}"}} == 0'
    eventually("the gateway has cooled down", lambda: world.query(asked))
    statuses = gateway.post_together(8, bulk=True)
    assert (statuses.count(200), statuses.count(500)) == (4, 4)
    world.fires("BcssGatewayQueueRefused", instance=gateway.instance, source="bcss")


def unclassified(world: World) -> None:
    gateway = world.gateways["observing"]
    gateway.post(b"<x/>", bulk=True)
    world.fires("BcssGatewayUnclassified", instance=gateway.instance)


def suspected_bulk(world: World) -> None:
    gateway = world.gateway("suspicious", suspicion={"minimum_calls": 20})
    world.follow()
    end = time.monotonic() + 75
    while time.monotonic() < end and not world.firing(alertname="BcssGatewaySuspectedBulk"):
        assert gateway.post() == 200
        time.sleep(0.2)  # with the stand-in's 0.3 s: two a second
    world.fires("BcssGatewaySuspectedBulk", instance=gateway.instance, source="bcss")


def down(world: World) -> None:
    world.fires("BcssGatewayDown", instance=world.gone, severity="critical")


def upstream_down(world: World) -> None:
    gateway = world.gateways["enforcing"]
    for _ in range(3):
        assert gateway.post(path="/gone" + PATH) == 500
    world.fires("BcssGatewayUpstreamDown", instance=gateway.instance, upstream="gone")
    assert not world.firing(alertname="BcssGatewayUpstreamDown", upstream="b2b")


def reload_failed(world: World) -> None:
    gateway = world.gateways["reloading"]
    sound = gateway.config.read_text()
    gateway.config.write_text("mode: [")
    gateway.process.send_signal(signal.SIGHUP)
    world.fires("BcssGatewayReloadFailed", instance=gateway.instance)
    gateway.config.write_text(sound)
    gateway.process.send_signal(signal.SIGHUP)
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayReloadFailed"))
    assert gateway.process.poll() is None


def certificate_expires(world: World) -> None:
    world.fires("BcssGatewayCertificateExpires", certificate="listeners.1", severity="critical")
    world.fires("BcssGatewayCertificateExpires", certificate="listeners.2", severity="warning")
    assert not world.firing(alertname="BcssGatewayCertificateExpires", certificate="listeners.3")


def event_loop_lag(world: World) -> None:
    gateway = world.gateways["observing"]
    gateway.process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    gateway.process.send_signal(signal.SIGCONT)
    world.fires("BcssGatewayEventLoopLag", instance=gateway.instance)


def store_down(world: World) -> None:
    assert not world.firing(alertname="BcssGatewayStoreDown")
    world.database.kill()
    for name in ("first", "second"):
        world.fires("BcssGatewayStoreDown", instance=world.gateways[name].instance)
    assert world.gateways["first"].post() == 200
    world.database.start()
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayStoreDown"), 60)


def layout_conflict(world: World) -> None:
    world.fires("BcssGatewayLayoutConflict", instance=world.gateways["second"].instance)
    assert not world.firing(alertname="BcssGatewayLayoutConflict", instance=world.gateways["first"].instance)


def run_paused(world: World) -> None:
    gateway = world.gateways["running"]
    run = gateway.submit("Dolsis2011Service/v1", "findEmployersByWorkerRequest", 50)
    world.fires("BcssGatewayRunPaused")
    assert "MSG00013" in gateway.runs("runs", "show", run)
    gateway.runs("runs", "cancel", run, "--reason", "seen")
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayRunPaused"))


def items_in_doubt(world: World) -> None:
    gateway = world.gateways["running"]
    run = gateway.submit("ECarmedService/v1", "openCarmedRequest", 2)
    world.fires("BcssGatewayItemsInDoubt")
    eventually("both are in doubt", lambda: "2 in doubt" in gateway.runs("runs", "show", run))
    assert not world.firing(alertname="BcssGatewayRunPaused")
    gateway.runs("runs", "decide", run, "0", "accept", "--reason", "the source has it")
    gateway.runs("runs", "decide", run, "1", "fail", "--reason", "the source has it not")
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayItemsInDoubt"))
    eventually("the run has ended", lambda: "completed" in gateway.runs("runs", "show", run))


def interrupted(world: World) -> None:
    gateway = world.gateways["running"]
    run = gateway.submit("UnemploymentDataService/v3", "consultRightsRequest", 50)
    world.fires("BcssGatewayInterrupted", source="onem")
    assert not world.firing(alertname="BcssGatewayInterrupted", source="inasti")
    gateway.runs("runs", "cancel", run, "--reason", "seen")
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayInterrupted"))


def run_stalled(world: World) -> None:
    gateway = world.gateways["running"]
    gateway.runs("hold", "add", "cin", "--reason", "to see")
    run = gateway.submit("HealthCareInsuranceService/v1", "consultMAFRequest", 5)
    world.fires("BcssGatewayRunStalled", run=run)
    gateway.runs("hold", "remove", "cin")
    eventually("the run has ended", lambda: "completed" in gateway.runs("runs", "show", run))
    eventually("it is over", lambda: not world.firing(alertname="BcssGatewayRunStalled", run=run))


def run_late(world: World) -> None:
    gateway = world.gateways["running"]
    run = gateway.submit("SelfEmployedService/v2", "consultCareerRequest", 20_000)
    world.fires("BcssGatewayRunLate", run=run)


PROVOKED: dict[str, Callable[[World], None]] = {
    "BcssGatewayCapViolated": cap_violated,
    "BcssGatewayBulkInOfficeHours": bulk_in_office_hours,
    "BcssGatewayWindowState": window_state,
    "BcssGatewayQueueRefused": queue_refused,
    "BcssGatewayUnclassified": unclassified,
    "BcssGatewaySuspectedBulk": suspected_bulk,
    "BcssGatewayDown": down,
    "BcssGatewayUpstreamDown": upstream_down,
    "BcssGatewayReloadFailed": reload_failed,
    "BcssGatewayCertificateExpires": certificate_expires,
    "BcssGatewayEventLoopLag": event_loop_lag,
    "BcssGatewayStoreDown": store_down,
    "BcssGatewayLayoutConflict": layout_conflict,
    "BcssGatewayRunPaused": run_paused,
    "BcssGatewayItemsInDoubt": items_in_doubt,
    "BcssGatewayInterrupted": interrupted,
    "BcssGatewayRunStalled": run_stalled,
    "BcssGatewayRunLate": run_late,
}


def test_nothing_fires_before_it_is_provoked(world: World) -> None:
    time.sleep(3)  # some evaluations
    fired = {(found["labels"]["alertname"], found["labels"]["instance"]) for found in world.firing()}
    assert fired == {
        ("BcssGatewayDown", world.gone),
        ("BcssGatewayWindowState", world.stuck),
        ("BcssGatewayCertificateExpires", world.gateways["observing"].instance),
        ("BcssGatewayLayoutConflict", world.gateways["second"].instance),
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_when_it_is_provoked(world: World, alert: str) -> None:
    PROVOKED[alert](world)


@pytest.fixture(scope="module")
def traffic(world: World) -> World:
    """Calls of both classes and a run, so that every panel has something to show."""
    for gateway in (world.gateways["observing"], world.gateways["enforcing"]):
        for _ in range(3):
            gateway.post()
            gateway.post(bulk=True)
    world.gateways["running"].submit("SelfEmployedService/v2", "consultCareerRequest", 1000)
    return world


@pytest.mark.parametrize("panel", sorted(QUESTIONS))
def test_panel_has_data(traffic: World, panel: str) -> None:
    expression = QUESTIONS[panel].replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in expression

    def numbers() -> list[float]:
        values = [float(sample["value"][1]) for sample in traffic.query(expression)]
        return [value for value in values if math.isfinite(value)]

    eventually(f"numbers for {expression}", numbers, 10)
