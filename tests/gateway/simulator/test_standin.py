"""The stand-in answers every style, spoils answers as scripted, and counts what a source would still be working on."""

import asyncio
import json
from html import escape

import pytest
from lxml import etree

from gateway.simulator import Latency, Rule, Script, ScriptError, StandIn, parse_latency, parse_rule, standing_in
from tests.conftest import closed, envelope, post, whole_answer

S12 = "http://www.w3.org/2003/05/soap-envelope"


async def ask(stand_in: StandIn, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stand_in.url.rpartition(":")[2]))
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await whole_answer(reader)
    finally:
        await closed(writer)


def classic(*services: str) -> bytes:
    requests = "".join(f"<ServiceRequest><ServiceId>{one}</ServiceId></ServiceRequest>" for one in services)
    text = f"<?xml version='1.0'?><SSDNRequest xmlns='http://www.ksz-bcss.fgov.be/XSD/SSDN/Service'>{requests}</SSDNRequest>"
    inside = (
        f'<x:xmlString xmlns:x="http://ksz-bcss.fgov.be/connectors/WebServiceConnector">{escape(text)}</x:xmlString>'
    )
    return f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{inside}</s:Body></s:Envelope>'.encode()


async def test_every_style_is_answered_in_kind() -> None:
    async with standing_in() as stand_in:
        echo = await ask(stand_in, post("/x", envelope()))
        assert b"<echo>hello</echo>" in echo
        consult = await ask(stand_in, post("/x", envelope("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest")))
        assert b"<code>MSG00000</code>" in consult
        both = await ask(stand_in, post("/x", classic("OCMWCPASIdentifyPerson", "OCMWCPASHealthInsurance")))
        inner = etree.fromstring(both.partition(b"\r\n\r\n")[2]).findtext(".//{*}xmlString")
        assert inner.count("<ServiceReply>") == 2
        twelve = envelope().replace(b"http://schemas.xmlsoap.org/soap/envelope/", S12.encode())
        assert b"application/soap+xml" in await ask(stand_in, post("/x", twelve))
        shown = json.loads(
            (await ask(stand_in, b"GET /.stand-in/counts HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")[2]
        )
        assert shown["peak"]["national-register"] == {"unknown": 1}
        assert shown["total"] == 5
        await ask(stand_in, b"POST /.stand-in/reset HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert stand_in.counts.calls.total() == 0


@pytest.mark.parametrize("body", [b"", b"no xml", b"<a/>", b"<!DOCTYPE a><a/>", classic("X").replace(b"&lt;", b"?")])
async def test_what_it_cannot_read_is_a_fault_of_the_client(body: bytes) -> None:
    async with standing_in() as stand_in:
        got = await ask(stand_in, post("/x", body))
    assert got.startswith(b"HTTP/1.1 500 ")
    assert b"Client" in got


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fault", b"MSG00003"),
        ("business=MSG00005", b"<value>NO_RESULT</value><code>MSG00005</code>"),
        ("business=INCOMPLETE_DATA/", b"<value>INCOMPLETE_DATA</value><code></code>"),
        ("status=502", b"HTTP/1.1 502 "),
        ("every=1 service=TestConn latency=1ms slow", b"<echo>hello</echo>"),
        ("garbage", b"this is not HTTP"),
    ],
)
async def test_answers_are_spoiled_as_scripted(rule: str, expected: bytes) -> None:
    service = ("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest") if "business" in rule else ()
    async with standing_in(Script([parse_rule(rule)])) as stand_in:
        assert expected in await ask(stand_in, post("/x", envelope(*service)))


@pytest.mark.parametrize("rule", ["reset", "truncated"])
async def test_answers_break_off_as_scripted(rule: str) -> None:
    async with standing_in(Script([parse_rule(rule)])) as stand_in:
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await ask(stand_in, post("/x", envelope()))


async def test_a_source_goes_on_working_when_its_caller_hangs_up() -> None:
    async with standing_in(Script(latency=Latency(0.1, 0.1))) as stand_in:
        _, writer = await asyncio.open_connection("127.0.0.1", int(stand_in.url.rpartition(":")[2]))
        writer.write(post("/x", envelope(), "X-Test-Class: bulk"))
        while not stand_in.counts.current["bcss", "bulk"]:
            await asyncio.sleep(0.005)
        await closed(writer)
        await asyncio.sleep(0.02)
        assert stand_in.counts.current["bcss", "bulk"] == 1
        await asyncio.sleep(0.15)
        assert stand_in.counts.current["bcss", "bulk"] == 0
        assert stand_in.counts.highest("bcss") == 1


async def test_requests_are_kept_for_those_who_compare_octets() -> None:
    async with standing_in(record=True) as stand_in:
        await ask(stand_in, post("/x?y", envelope(), "X-A: b"))
        (received,) = stand_in.received
    assert (received.method, received.target, received.body) == ("POST", "/x?y", envelope())
    assert (b"X-A", b"b") in received.headers


async def test_what_is_not_there_is_not_found() -> None:
    async with standing_in() as stand_in:
        for path in ("/x?wsdl", "/TestConnectionServiceService/x", "/.stand-in/other"):
            assert (await ask(stand_in, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).startswith(b"HTTP/1.1 404")


def test_rules_match_in_order_and_every_nth_time() -> None:
    script = Script([Rule("fault", every=3, source="onss"), Rule("reset", traffic="bulk")], Latency(0.1, 0.2))
    kinds = [script.decide(["X"], ["onss"], "bulk")[0].kind for _ in range(6)]
    assert kinds == ["reset", "reset", "fault", "reset", "reset", "fault"]
    rule, seconds = script.decide(["X"], ["cin"], "realtime")
    assert rule.kind == ""
    assert 0.1 <= seconds <= 0.2


def test_a_rule_is_read_from_text() -> None:
    rule = parse_rule("every=50 service=Retrieve source=onss class=bulk latency=2s business=MSG1")
    assert rule == Rule("business", "MSG1", 50, "Retrieve", "onss", "bulk", Latency(2.0, 2.0))
    assert parse_latency("20ms-1.5s") == Latency(0.02, 1.5)


@pytest.mark.parametrize(
    "text", ["now", "fault=1", "business", "every=0 fault", "every=x", "status=9", "status=999", "latency=x"]
)
def test_a_rule_that_is_not_understood_says_so(text: str) -> None:
    with pytest.raises(ScriptError):
        parse_rule(text)


@pytest.mark.parametrize("text", ["", "5", "2s-1s", "1s-2s-3s"])
def test_a_latency_that_is_not_understood_says_so(text: str) -> None:
    with pytest.raises(ScriptError):
        parse_latency(text)
