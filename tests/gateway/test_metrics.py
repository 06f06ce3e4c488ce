"""Every combination exists from the start, under the names that others rely on."""

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import OUTCOMES, Metrics, Reading
from policies.model import Reason, TrafficClass


def made() -> Metrics:
    return Metrics(CollectorRegistry(), labels=["onss", "several"], pools=["base", "onss"], version="1.2.3")


def of(*labels: str) -> frozenset[str]:
    return frozenset(labels)


def values(metrics: Metrics, name: str) -> dict[frozenset[str], float]:
    metrics.take()
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        frozenset(sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_every_known_combination_starts_at_zero() -> None:
    metrics = made()
    requests = values(metrics, "bcss_gateway_requests_total")
    assert len(requests) == 4 * len(TrafficClass) * len(OUTCOMES)
    assert set(requests.values()) == {0.0}
    refusals = values(metrics, "bcss_gateway_refusals_total")
    assert len(refusals) == 4 * len(TrafficClass) * len(Reason)


def test_a_call_and_a_refusal_are_counted_where_they_belong() -> None:
    metrics = made()
    metrics.call("onss", TrafficClass.BULK).outcomes["forwarded"].inc()
    metrics.refused("onss", TrafficClass.BULK, Reason.OFFICE_HOURS, as_fault=True)
    metrics.upstream_fault("several")
    assert values(metrics, "bcss_gateway_requests_total")[of("onss", "bulk", "forwarded")] == 1
    assert values(metrics, "bcss_gateway_refusals_total")[of("onss", "bulk", "office_hours")] == 1
    faults = values(metrics, "bcss_gateway_soap_faults_total")
    assert (faults[of("onss", "gateway")], faults[of("several", "upstream")]) == (1, 1)


def test_what_others_know_is_read_at_the_scrape() -> None:
    metrics = made()
    in_use = {"base": 0.0}
    metrics.watch(lambda: [Reading("slots_in_use", "In use.", ("pool",), {(p,): v for p, v in in_use.items()})])
    metrics.watch(lambda: [Reading("cap_violations", "Violations.", (), {(): 0.0}, counter=True)])
    in_use["base"] = 3.0
    assert values(metrics, "bcss_gateway_slots_in_use") == {of("base"): 3.0}
    assert values(metrics, "bcss_gateway_cap_violations_total") == {of(): 0.0}


def test_the_version_is_shown() -> None:
    assert values(made(), "bcss_gateway_build_info") == {of("1.2.3"): 1.0}


def test_durations_are_counted_up_to_and_with_the_bounds_of_their_buckets() -> None:
    metrics = made()
    spread = metrics.call("onss", TrafficClass.BULK).upstream_seconds
    for seconds in (0.001, 0.005, 0.0051, 7000.0):
        spread.observe(seconds)
    name = "bcss_gateway_upstream_seconds"
    labels = of("onss", "bulk")
    buckets = {key - labels: value for key, value in values(metrics, f"{name}_bucket").items() if labels <= key}
    assert (buckets[of("0.005")], buckets[of("0.01")], buckets[of("120.0")], buckets[of("+Inf")]) == (2, 3, 3, 4)
    assert values(metrics, f"{name}_count")[labels] == 4
    assert abs(values(metrics, f"{name}_sum")[labels] - 7000.0111) < 1e-6


def test_a_child_is_one_and_the_same() -> None:
    metrics = made()
    metrics.would_refuse.labels(Reason.HELD).inc()
    metrics.would_refuse.labels("held").inc()
    assert values(metrics, "bcss_gateway_would_refuse_total")[of("held")] == 2
