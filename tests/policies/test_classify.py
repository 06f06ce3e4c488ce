"""Any signal may raise a call to bulk, and bulk wins; only who is verified may be lowered."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from policies.classify import CallFacts, ClientRule, class_of, identity_of
from policies.model import TrafficClass

REALTIME, BULK = TrafficClass.REALTIME, TrafficClass.BULK
PLAIN = CallFacts(REALTIME, "/x", bulk_prefix=False, peer="10.0.0.7")
ON_BULK = replace(PLAIN, listener_class=BULK)
BY_NETWORK = ClientRule("payroll", networks=(ip_network("10.0.0.0/8"),), may_declare_realtime=True)


def test_a_call_without_any_sign_is_what_its_listener_says() -> None:
    assert class_of(PLAIN, []).traffic is REALTIME
    assert class_of(ON_BULK, []).traffic is BULK


@pytest.mark.parametrize(
    ("signs", "rule"),
    [
        ({"bulk_prefix": True}, "path prefix /bulk/"),
        ({"traffic_class": ("bulk",)}, "header X-Traffic-Class"),
        ({"traffic_class": ("BATCH",)}, "header X-Traffic-Class"),
        ({"traffic_class": ("realtime", "bulk")}, "header X-Traffic-Class"),
        ({"bulk_run": ("42",)}, "header X-Bulk-Run"),
    ],
)
def test_any_sign_raises_a_call_whoever_sends_it(signs: dict[str, object], rule: str) -> None:
    decision = class_of(replace(PLAIN, **signs), [BY_NETWORK])
    assert (decision.traffic, decision.rule) == (BULK, rule)


def test_fetching_a_wsdl_is_real_time_whatever_raises_it() -> None:
    decision = class_of(replace(PLAIN, bulk_prefix=True, describes=True), [])
    assert (decision.traffic, decision.rule) == (TrafficClass.REALTIME, "wsdl")


def test_a_run_that_is_named_is_returned() -> None:
    assert class_of(replace(PLAIN, bulk_run=("42", "43")), []).run_id == "42"
    assert class_of(PLAIN, []).run_id is None


@pytest.mark.parametrize(
    "criteria",
    [
        {"networks": (ip_network("10.0.0.0/8"),)},
        {"tls_subjects": ("CN=batch",)},
        {"basic_users": ("batch",)},
        {"user_agents": ("batch/",)},
    ],
)
def test_every_criterion_may_raise(criteria: dict[str, object]) -> None:
    facts = replace(PLAIN, tls_subject="CN=batch", basic_user="batch", user_agent="batch/1.0")
    rule = ClientRule("batch", traffic=BULK, **criteria)
    assert class_of(facts, [rule]).rule == "client rule batch"
    other = replace(PLAIN, peer="192.0.2.1", user_agent="person")
    assert class_of(other, [rule]).traffic is REALTIME


def test_all_kinds_of_criteria_must_match_and_none_matches_nobody() -> None:
    rule = ClientRule("batch", networks=(ip_network("10.0.0.0/8"),), user_agents=("batch",), traffic=BULK)
    assert class_of(PLAIN, [rule]).traffic is REALTIME
    assert class_of(PLAIN, [ClientRule("nobody", traffic=BULK)]).traffic is REALTIME


def test_only_a_verified_rule_lets_a_client_declare_itself_real_time() -> None:
    declared = replace(ON_BULK, traffic_class=("Realtime",), user_agent="trust-me")
    assert class_of(declared, [BY_NETWORK]).traffic is REALTIME
    assert class_of(ON_BULK, [BY_NETWORK]).traffic is BULK
    assert class_of(declared, []).traffic is BULK
    unverified = ClientRule("agent", user_agents=("trust",), may_declare_realtime=True, traffic=REALTIME)
    assert class_of(declared, [unverified]).traffic is BULK


def test_a_verified_rule_may_make_its_client_real_time_on_a_bulk_listener() -> None:
    rule = ClientRule("desk", tls_subjects=("CN=desk",), traffic=REALTIME)
    facts = replace(ON_BULK, tls_subject="CN=desk")
    assert class_of(facts, [BY_NETWORK, rule]).rule == "client rule desk"
    assert class_of(replace(facts, bulk_prefix=True), [rule]).traffic is BULK


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_a_mapped_address_is_the_one_it_maps(peer: str) -> None:
    assert class_of(replace(PLAIN, peer=peer), [BY_NETWORK]).flow == "payroll"


@pytest.mark.parametrize("peer", ["", "not-an-address", "fe80::1%eth0"])
def test_an_address_that_is_none_matches_no_network(peer: str) -> None:
    assert class_of(replace(PLAIN, peer=peer), [BY_NETWORK]).flow == peer


def test_the_flow_is_the_rule_the_certificate_or_the_address() -> None:
    assert class_of(PLAIN, [BY_NETWORK]).flow == "payroll"
    assert class_of(replace(PLAIN, tls_subject="CN=a"), []).flow == "CN=a"
    assert class_of(PLAIN, []).flow == "10.0.0.7"


def test_an_identity_rests_on_what_is_verified_alone() -> None:
    by_user = replace(BY_NETWORK, name="by user", basic_users=("batch",))
    by_agent = ClientRule("by agent", user_agents=("batch",))
    rules = [by_agent, by_user, BY_NETWORK]
    assert identity_of("10.0.0.7", "CN=a", rules) == identity_of("10.9.9.9", "", rules) == "rule payroll"
    assert identity_of("192.0.2.1", "CN=a", rules) == "subject CN=a"
    assert identity_of("192.0.2.1", "", rules) == "address 192.0.2.1"
    assert identity_of("10.0.0.7", "", [by_agent, by_user]) == "address 10.0.0.7"
