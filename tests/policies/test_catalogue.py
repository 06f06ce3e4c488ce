"""Which sources a message asks: the shipped catalogue, a site's own over it, and everything that can be wrong with
one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.catalogue import SEVERAL, Catalogue, CatalogueError
from policies.model import UNCLASSIFIED, Digest, Operation, SoapVersion, Style

SHIPPED: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "policies" / "catalogue.yaml").read_text())
CATALOGUE = Catalogue.from_data([SHIPPED])
INTF = "http://kszbcss.fgov.be/intf/"
SOURCES = {"a": {"sector": "1"}, "b": {"title": "B", "base": True}, "c": {}}


def soa(service: str, operation: str, *choices: tuple[str, str]) -> Digest:
    return Digest(Style.SOA, SoapVersion.SOAP_11, (Operation(operation, INTF + service),), frozenset(choices))


def ssdn(*operations: Operation) -> Digest:
    return Digest(Style.SSDN, SoapVersion.SOAP_11, operations)


def test_the_shipped_catalogue_holds_its_44_services() -> None:
    assert len(CATALOGUE.services) == 44
    assert {source.name for source in CATALOGUE.sources.values() if source.base} == {"bcss", "national-register"}


def test_namespace_and_element_decide() -> None:
    found = CATALOGUE.find(soa("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest"))
    assert (found.service, found.label, found.kind) == ("RetrieveTIGroupsService/v2", "national-register", "read")
    assert found.sources == {"national-register"}
    assert found.mismatch == ""


def test_path_and_soap_action_only_contradict() -> None:
    digest = soa("SelfEmployedService/v2", "consultCareerRequest")
    action = "http://kszbcss.fgov.be/SelfEmployedService/consultCareer"
    assert CATALOGUE.find(digest, path="/SOA4520/SelfEmployedService/v2/consult", soap_action=action).mismatch == ""
    found = CATALOGUE.find(digest, path="/other", soap_action="urn:other")
    assert found.sources == {"inasti"}
    assert found.mismatch == "SOAPAction of SelfEmployedService/v2; path of SelfEmployedService/v2"


@pytest.mark.parametrize(
    ("digest", "rule"),
    [
        (soa("RetrieveTIGroupsService/v9", "retrieveTIGroupsRequest"), "not in the catalogue"),
        (soa("RetrieveTIGroupsService/v2", "somethingElse"), "not in the catalogue"),
        (Digest(Style.UNKNOWN, unsound="two Bodies"), "two Bodies"),
        (Digest(Style.SOA), "no operation was found"),
        (ssdn(Operation("OCMWCPASIdentifyPerson"), Operation("Unheard-of")), "not in the catalogue"),
        (ssdn(Operation("XMLite", version="20051206", inner="{urn:x}L950")), "not in the catalogue"),
    ],
)
def test_what_is_not_known_is_unclassified(digest: Digest, rule: str) -> None:
    found = CATALOGUE.find(digest)
    assert (found.sources, found.label, found.kind) == (frozenset(), UNCLASSIFIED, "unknown")
    assert rule in found.rule


def test_a_classic_message_asks_the_union_of_its_services() -> None:
    one = Operation("OCMWCPASIdentifyPerson", version="20050930")
    assert CATALOGUE.find(ssdn(one)).label == "bcss+national-register"
    both = CATALOGUE.find(ssdn(one, Operation("OCMWCPASHealthInsurance", version="20070509")))
    assert both.sources == {"bcss", "national-register", "cin"}
    assert both.label == SEVERAL
    assert both.service == "OCMWCPASIdentifyPerson + OCMWCPASHealthInsurance"


def test_a_write_among_reads_makes_a_write_and_the_least_sure_counts() -> None:
    found = CATALOGUE.find(ssdn(Operation("OCMWCPASManageAccess"), Operation("OCMWCPASHeatingAllocation")))
    assert (found.kind, found.confidence) == ("write", "guess")


def test_another_version_still_classifies_and_is_noted() -> None:
    found = CATALOGUE.find(ssdn(Operation("OCMWCPASIdentifyPerson", version="20991231")))
    assert found.sources == {"bcss", "national-register"}
    assert found.mismatch == "version of OCMWCPASIdentifyPerson"


def test_xmlite_is_told_by_the_element_inside() -> None:
    inner = "{http://www.ksz-bcss.fgov.be/XmlSchema}"
    assert CATALOGUE.find(ssdn(Operation("XMLite", version="20051206", inner=f"{inner}L950"))).label == "onss"
    assert CATALOGUE.find(ssdn(Operation("XMLite", version="20051206", inner=f"{inner}L301"))).label == "inasti"


CHILD = "criteria/authenticSources/authenticSource"
ALL_CHILD = {f"child-benefits-{region}" for region in ("federal", "brussels", "flanders", "wallonia", "eastbelgium")}


@pytest.mark.parametrize(
    ("choices", "sources", "label"),
    [
        ((), ALL_CHILD, "+".join(sorted(ALL_CHILD))),
        (((CHILD, "FEDERAL"),), {"child-benefits-federal"}, "child-benefits-federal"),
        (((CHILD, "FEDERAL"), (CHILD, "FLANDERS")), {"child-benefits-federal", "child-benefits-flanders"}, SEVERAL),
        (((CHILD, "FEDERAL"), (CHILD, "ATLANTIS")), ALL_CHILD, "+".join(sorted(ALL_CHILD))),
        ((("another/path", "FEDERAL"),), ALL_CHILD, "+".join(sorted(ALL_CHILD))),
    ],
)
def test_a_message_may_name_its_sources(choices: tuple[tuple[str, str], ...], sources: set[str], label: str) -> None:
    found = CATALOGUE.find(soa("ChildBenefitsService/v1", "consultFilesBySsinRequest", *choices))
    assert (found.sources, found.label) == (sources, label)


@pytest.mark.parametrize(
    ("dgph", "vsb", "sources"),
    [
        ("true", "false", {"dgph"}),
        ("0", "1", {"vsb"}),
        ("false", "false", {"dgph", "vsb"}),
        ("yes", "", {"dgph", "vsb"}),
    ],
)
def test_sources_may_be_named_by_flags(dgph: str, vsb: str, sources: set[str]) -> None:
    path = "criteria/handicapAuthenticSources/"
    found = CATALOGUE.find(soa("HandiService/v2", "consultPaymentsRequest", (f"{path}DGPH", dgph), (f"{path}VSB", vsb)))
    assert found.sources == sources


def test_every_label_is_known_beforehand() -> None:
    labels = CATALOGUE.labels()
    assert {SEVERAL, UNCLASSIFIED, "onss", "bcss+national-register"} <= labels
    for service in CATALOGUE.services:
        for name in service.kinds:
            operation = Operation(name, service.namespace, service.version, service.inner)
            style = Style.SOA if service.namespace else Style.SSDN
            assert CATALOGUE.find(Digest(style, None, (operation,))).label in labels


def test_the_selectors_are_found_by_namespace() -> None:
    assert CATALOGUE.selectors[f"{INTF}ChildBenefitsService/v1"] == {
        ("criteria", "authenticSources", "authenticSource")
    }
    assert set(CATALOGUE.selectors) == {f"{INTF}ChildBenefitsService/v1", f"{INTF}HandiService/v2"}


def test_a_site_lays_its_own_over_the_shipped_one() -> None:
    own = {
        "sources": {"town": {"title": "Our town"}},
        "services": [
            {"name": "Own", "namespace": "urn:own", "operations": {"ask": None}, "sources": ["town", "bcss"]},
            {"name": "OCMWCPASIdentifyPerson", "service_id": "OCMWCPASIdentifyPerson", "sources": ["town"]},
        ],
    }
    catalogue = Catalogue.from_data([SHIPPED, own])
    assert len(catalogue.services) == 45
    assert catalogue.find(ssdn(Operation("OCMWCPASIdentifyPerson"))).label == "town"
    found = catalogue.find(Digest(Style.SOA, None, (Operation("ask", "urn:own"),)))
    assert (found.label, found.kind, found.confidence) == ("bcss+town", "unknown", "guess")


def faults(document: Any) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(CatalogueError) as raised:
        Catalogue.from_data([{"sources": SOURCES}, document])
    return sorted(raised.value.faults, key=str)


@pytest.mark.parametrize(
    ("document", "path", "what"),
    [
        ({"surces": {}}, (1, "surces"), "unknown key"),
        ({"sources": []}, (1, "sources"), "must be a mapping"),
        ({"sources": {"x": {"base": "yes"}}}, (1, "sources", "x", "base"), "true or false"),
        ({"sources": {"x": {"sector": 12}}}, (1, "sources", "x", "sector"), "put it in quotes"),
        ({"sources": {"x": {"colour": "red"}}}, (1, "sources", "x", "colour"), "unknown key"),
        ({"services": {}}, (1, "services"), "must be a list"),
        ({"services": ["text"]}, (1, "services", 0), "must be a mapping"),
        ({"services": [{"name": "X", "service_id": "X", "sources": ["z"]}]}, (1, "services", 0, "sources"), '"z"'),
        ({"services": [{"service_id": "X", "sources": ["a"]}]}, (1, "services", 0), "needs a name"),
        ({"services": [{"name": "X", "service_id": "X"}]}, (1, "services", 0), "needs sources"),
        ({"services": [{"name": "X", "sources": ["a"]}]}, (1, "services", 0), "needs either"),
        (
            {"services": [{"name": "X", "service_id": "X", "sources": ["a"], "kind": "maybe"}]},
            (1, "services", 0, "kind"),
            "must be one of read, write, unknown",
        ),
        (
            {"services": [{"name": "X", "service_id": "X", "sources": ["a"], "choices": [{"path": "p"}]}]},
            (1, "services", 0, "choices", 0),
            "needs path and texts",
        ),
        (
            {"services": [{"name": n, "service_id": "X", "sources": ["a"]} for n in ("X", "Y")]},
            (1, "services", 1),
            "asks the same as X",
        ),
        (
            {"services": [{"name": "X", "namespace": "n", "sources": ["a"], "operations": {"o": {"knd": "read"}}}]},
            (1, "services", 0, "operations", "o", "knd"),
            "unknown key",
        ),
    ],
)
def test_a_fault_is_told_with_its_place(document: Any, path: tuple[str | int, ...], what: str) -> None:
    assert any(where == path and what in said for where, said in faults(document)), faults(document)


def test_all_faults_are_told_at_once() -> None:
    services = [
        {"name": "X", "sources": "a", "service_id": 3},
        {
            "name": "Y",
            "sources": ["a"],
            "service_id": "Y",
            "x": 1,
            "choices": [{"path": "p", "texts": {"t": "z"}, "q": 1}],
        },
    ]
    said = [what for _, what in faults({"sources": {"d": 1}, "services": services})]
    assert len(said) >= 6
