"""What an answer says of its request is read in codes, wherever they stand; nothing else is, and nothing is raised."""

import gzip
from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.soap.outcome import LARGEST, MOST, read_answer
from policies.recovery import AnswerFacts
from policies.statuses import Status

S11 = "http://schemas.xmlsoap.org/soap/envelope/"
S12 = "http://www.w3.org/2003/05/soap-envelope"
XML = "text/xml; charset=utf-8"


def envelope(inner: str, soap: str = S11) -> bytes:
    return f'<s:Envelope xmlns:s="{soap}"><s:Header/><s:Body>{inner}</s:Body></s:Envelope>'.encode()


def consult(inner: str) -> bytes:
    return envelope(f'<r:consultResponse xmlns:r="http://kszbcss.fgov.be/intf/XService/v1">{inner}</r:consultResponse>')


def read(body: bytes, status: int = 200, kind: str = XML, coding: str = "") -> AnswerFacts:
    return read_answer(status, kind, coding, body)


STATUS = "<status><value>NO_RESULT</value><code>MSG00005</code><description>no such person</description></status>"


def test_a_status_is_found_by_name_wherever_it_stands() -> None:
    ticket = "<informationCBSS><ticketCBSS>0a1b-2c</ticketCBSS></informationCBSS>"
    for inner in (f"{ticket}{STATUS}<x/>", f"<x/>{STATUS}{ticket}"):
        facts = read(consult(inner))
        assert facts == AnswerFacts(200, whole=Status(("MSG00005",), "NO_RESULT"), ticket="0a1b-2c")


def test_the_status_of_each_source_is_found_with_its_name() -> None:
    inner = (
        "<status><value>INCOMPLETE_DATA</value><code>CHB00001</code></status>"
        '<results><resultByAuthenticSource authenticSource="FLANDERS"><status><value>TECHNICAL_ERROR</value></status>'
        "</resultByAuthenticSource><vsbResult><status><value>DATA_FOUND</value></status></vsbResult></results>"
    )
    facts = read(consult(inner))
    assert facts.whole == Status(("CHB00001",), "INCOMPLETE_DATA")
    assert facts.parts == (Status(value="TECHNICAL_ERROR", of="FLANDERS"), Status(value="DATA_FOUND", of="vsb"))


def test_what_lies_deep_in_the_data_is_no_status_of_the_answer() -> None:
    deep = f"<a><b><c><d><status><value>NOK</value></status></d></c></b></a>{STATUS}"
    assert read(consult(deep)) == read(consult(STATUS))


def test_a_status_that_says_nothing_is_none() -> None:
    assert read(consult("<status><description>x</description></status><a><status/></a>")) == AnswerFacts(200)


@pytest.mark.parametrize("escaped", [True, False])
def test_replies_of_the_classic_style_are_read_inside_their_string(escaped: bool) -> None:
    reply = (
        "<?xml version='1.0' encoding='ISO-8859-1' standalone='yes'?>"
        '<ssdn:SSDNReply xmlns:ssdn="http://www.ksz-bcss.fgov.be/XSD/SSDN/Service" '
        'xmlns:c="http://www.ksz-bcss.fgov.be/XSD/SSDN/Common"><ssdn:ReplyContext><c:ResultSummary ok="YES">'
        "<c:ReturnCode>0</c:ReturnCode></c:ResultSummary><ssdn:Message><ssdn:Ticket>T-1</ssdn:Ticket></ssdn:Message>"
        '</ssdn:ReplyContext><ssdn:ServiceReply><c:ResultSummary ok="NO"><c:ReturnCode>10000</c:ReturnCode><c:Detail>'
        "<c:Severity>FATAL</c:Severity><c:ReasonCode>300020</c:ReasonCode></c:Detail></c:ResultSummary>"
        "<ssdn:ServiceId>IdentifyPerson</ssdn:ServiceId></ssdn:ServiceReply></ssdn:SSDNReply>"
    )
    text = escape(reply) if escaped else f"<![CDATA[\n{reply}]]>"
    facts = read(
        envelope(f'<w:xmlString xmlns:w="http://ksz-bcss.fgov.be/connectors/WebServiceConnector">{text}</w:xmlString>')
    )
    assert facts.whole == Status(value="YES", return_code="0")
    assert facts.parts == (Status(("300020",), "NO", "10000", of="IdentifyPerson"),)
    assert facts.ticket == "T-1"


@pytest.mark.parametrize("text", ["no xml", "", "&lt;SSDNReply/>", "&lt;!DOCTYPE a>&lt;a/>"])
def test_a_string_that_holds_no_reply_is_not_readable(text: str) -> None:
    assert not read(envelope(f'<w:xmlString xmlns:w="x">{text}</w:xmlString>')).readable


def test_a_fault_is_read_with_the_codes_in_its_detail() -> None:
    fault = (
        "<s:Fault><faultcode>s:Server</faultcode><faultstring>x</faultstring><detail><f:retrieveFault xmlns:f='x'>"
        "<detail><severity>FATAL</severity><reasonCode>MSG00020</reasonCode></detail></f:retrieveFault></detail></s:Fault>"
    )
    facts = read(envelope(fault), 500)
    assert (facts.http, facts.fault, facts.codes) == (500, "Server", ("MSG00020",))


def test_a_fault_of_the_onss_platform_and_of_soap_12_is_read() -> None:
    fault = (
        "<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>w:Busy</s:Value></s:Subcode></s:Code><s:Reason><s:Text>x</s:Text></s:Reason><s:Detail>"
        '<e:SystemError xmlns:e="https://socialsecurity.be/errors/v1"><e:Code>SOA-02002</e:Code></e:SystemError>'
        "</s:Detail></s:Fault>"
    )
    facts = read(envelope(fault, S12), 500, "application/soap+xml")
    assert (facts.fault, facts.codes) == ("Receiver", ("Busy", "SOA-02002"))


def test_a_fault_without_a_code_is_a_fault() -> None:
    assert read(envelope("<s:Fault/>"), 500).fault == "fault"


def test_compressed_answers_and_root_parts_are_read() -> None:
    assert read(gzip.compress(consult(STATUS)), coding="gzip") == read(consult(STATUS))
    parts = b"--b\r\nContent-Type: text/xml\r\n\r\n" + consult(STATUS) + b"\r\n--b--\r\n"
    assert read(parts, kind='multipart/related; boundary="b"') == read(consult(STATUS))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502</body></html>",
        b"not xml",
        envelope("<a>")[:40],
        b'<!DOCTYPE s [<!ENTITY e "MSG00000">]>' + consult("<status><code>&e;</code></status>"),
        b"<s:Envelope xmlns:s='other'><s:Body/></s:Envelope>",
        b"x" * (LARGEST + 1),
    ],
)
def test_what_is_no_envelope_is_not_readable(body: bytes) -> None:
    assert read(body) == AnswerFacts(200, readable=False)


def test_an_empty_body_element_says_nothing() -> None:
    assert read(envelope("")) == AnswerFacts(200)


def test_what_may_be_a_national_number_or_is_no_code_is_not_returned() -> None:
    for text in ("00000000097", "00.00.00-000.97", "T-00000000097", "two words", "", "x" * 60):
        facts = read(consult(f"<status><code>{text}</code></status><i><ticketCBSS>{text}</ticketCBSS></i>"))
        assert facts == AnswerFacts(200)


def test_the_bcss_tickets_are_kept_though_they_are_full_of_digits() -> None:
    ticket = "00000000-0000-4000-8000-000000000000"
    assert read(consult(f"<i><ticketCBSS>{ticket}</ticketCBSS></i>")).ticket == ticket


def test_answers_in_other_encodings_are_read() -> None:
    accented = consult(STATUS.replace("no such person", "\u00e9")).decode()
    whole = Status(("MSG00005",), "NO_RESULT")
    for octets, charset in (
        (accented.encode("utf-16"), "utf-8"),
        (accented.encode("utf-16-le"), "utf-16le"),
        (accented.encode("latin-1"), "iso-8859-1"),
        (f"<?xml version='1.0' encoding='ISO-8859-1'?>{accented}".encode("latin-1"), "utf-8"),
    ):
        assert read(octets, kind=f"text/xml; charset={charset}").whole == whole
    assert not read(accented.encode(), kind="text/xml; charset=koi8-r").readable


def test_comments_change_nothing() -> None:
    commented = STATUS.replace("MSG00005", "MSG<!-- x -->00005").replace("<status>", "<!-- y --><status>")
    assert read(consult(commented)) == read(consult(STATUS))


def test_a_bomb_of_entities_is_not_read() -> None:
    bomb = "<!DOCTYPE s [<!ENTITY a '0123456789'>" + "".join(
        f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    body = bomb.encode() + b"]>" + consult("<status><code>&i;</code></status>")
    assert read(body) == AnswerFacts(200, readable=False)


def test_the_number_of_statuses_is_bounded() -> None:
    many = "".join(f"<r><status><value>V{n}</value></status></r>" for n in range(2000))
    assert len(read(consult(many)).parts) == MOST


@given(
    st.binary(max_size=400), st.sampled_from(["", "gzip", "deflate", "br"]), st.sampled_from([XML, "multipart/related"])
)
def test_nothing_is_ever_raised(body: bytes, coding: str, kind: str) -> None:
    assert read(body, kind=kind, coding=coding).http == 200
