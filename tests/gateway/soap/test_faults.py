"""A refusal is understood by SOAP stacks and people, and cannot be taken for the BCSS's answer."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from lxml import etree

from gateway.soap import FaultForm, answer, caller_soap_version
from policies.model import Digest, Reason, Refusal, SoapVersion, Style

S11 = "{http://schemas.xmlsoap.org/soap/envelope/}"
S12 = "{http://www.w3.org/2003/05/soap-envelope}"
OURS = "{urn:bcss-gateway:fault:1}"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
OPENS = datetime(2026, 11, 24, 17, 0, tzinfo=timezone(timedelta(hours=1)))
CALLERS = {Reason.TOO_LARGE, Reason.MALFORMED, Reason.UNKNOWN_RUN, Reason.NOT_STORABLE}
HOSTILE = "<&]]>\"'"


def refusal(reason: Reason, **facts: object) -> Refusal:
    return Refusal(reason, HOSTILE, source="onss", pool="onss", **facts)


@pytest.mark.parametrize("reason", Reason)
def test_a_soap_11_caller_gets_a_fault_in_three_languages_on_500(reason: Reason) -> None:
    written = answer(refusal(reason), soap=SoapVersion.SOAP_11, form=FaultForm())
    assert written.status == 500
    assert dict(written.headers)[b"Content-Type"] == b"text/xml; charset=utf-8"
    assert dict(written.headers)[b"Content-Length"] == str(len(written.body)).encode()
    fault = etree.fromstring(written.body).find(f"{S11}Body/{S11}Fault")
    assert fault is not None
    assert fault.findtext("faultcode") == ("soapenv:Client" if reason in CALLERS else "soapenv:Server")
    assert len((fault.findtext("faultstring") or "").split(" / ")) == 3
    detail = fault.find(f"detail/{OURS}refusal")
    assert detail is not None
    assert detail.findtext(f"{OURS}origin") == "gateway"
    assert detail.findtext(f"{OURS}reason") == reason
    assert detail.findtext(f"{OURS}requestId") == HOSTILE
    assert [one.get(XML_LANG) for one in detail.findall(f"{OURS}message")] == ["fr", "nl", "en"]


@pytest.mark.parametrize("reason", Reason)
def test_a_soap_12_caller_gets_one_text_for_each_language(reason: Reason) -> None:
    written = answer(refusal(reason), soap=SoapVersion.SOAP_12, form=FaultForm())
    assert written.status == (400 if reason in CALLERS else 500)
    assert dict(written.headers)[b"Content-Type"] == b"application/soap+xml; charset=utf-8"
    fault = etree.fromstring(written.body).find(f"{S12}Body/{S12}Fault")
    assert fault is not None
    assert fault.findtext(f"{S12}Code/{S12}Value") == ("env:Sender" if reason in CALLERS else "env:Receiver")
    assert [one.get(XML_LANG) for one in fault.findall(f"{S12}Reason/{S12}Text")] == ["fr", "nl", "en"]
    assert fault.findtext(f"{S12}Detail/{OURS}refusal/{OURS}reason") == reason


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.OFFICE_HOURS, 503),
        (Reason.TOO_LARGE, 413),
        (Reason.MALFORMED, 400),
        (Reason.UPSTREAM_BROKEN, 502),
        (Reason.UPSTREAM_TIMEOUT, 504),
    ],
)
def test_who_does_not_speak_soap_gets_a_problem(reason: Reason, status: int) -> None:
    written = answer(refusal(reason), soap=None, form=FaultForm())
    assert written.status == status
    problem = json.loads(written.body)
    assert (problem["status"], problem["reason"], problem["origin"]) == (status, reason, "gateway")
    assert set(problem["messages"]) == {"fr", "nl", "en"}


def test_when_to_come_back_is_said_exactly_and_in_seconds() -> None:
    when = refusal(Reason.OFFICE_HOURS, opens_at=OPENS, retry_at=OPENS + timedelta(seconds=90), retry_after_s=27090)
    written = answer(when, soap=SoapVersion.SOAP_11, form=FaultForm())
    assert dict(written.headers)[b"Retry-After"] == b"27090"
    root = etree.fromstring(written.body)
    assert root.findtext(f".//{OURS}opensAt") == "2026-11-24T17:00:00+01:00"
    assert root.findtext(f".//{OURS}retryAt") == "2026-11-24T17:01:30+01:00"
    assert root.findtext(".//faultstring").count("2026-11-24 17:00") == 3


def test_a_site_may_choose_its_statuses() -> None:
    form = FaultForm(soap11_status=503, soap12_status=599, other_status=429)
    assert answer(refusal(Reason.QUEUE_FULL), soap=SoapVersion.SOAP_11, form=form).status == 503
    assert answer(refusal(Reason.QUEUE_FULL), soap=None, form=form).status == 429
    odd = answer(refusal(Reason.QUEUE_FULL), soap=SoapVersion.SOAP_12, form=form)
    assert (odd.status, odd.reason_phrase) == (599, b"")


@pytest.mark.parametrize(
    ("content_type", "action", "digest", "expected"),
    [
        ("text/xml", False, None, SoapVersion.SOAP_11),
        ("application/soap+xml; action=x", False, None, SoapVersion.SOAP_12),
        ("application/octet-stream", True, None, SoapVersion.SOAP_11),
        ("", False, None, None),
        ("text/xml", True, Digest(Style.SOA, SoapVersion.SOAP_12), SoapVersion.SOAP_12),
        ("text/xml", True, Digest(Style.UNKNOWN), SoapVersion.SOAP_11),
    ],
)
def test_the_callers_version_is_told_by_its_message_first(
    content_type: str, action: bool, digest: Digest | None, expected: SoapVersion | None
) -> None:
    assert caller_soap_version(content_type, action, digest) is expected


def test_times_are_of_any_zone() -> None:
    when = refusal(Reason.COOLING_DOWN, retry_at=datetime(2026, 1, 1, tzinfo=UTC), retry_after_s=3)
    assert b"2026-01-01T00:00:00+00:00" in answer(when, soap=SoapVersion.SOAP_11, form=FaultForm()).body
