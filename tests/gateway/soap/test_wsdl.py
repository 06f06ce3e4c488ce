"""Addresses are exchanged, octets beside them are not: lxml is the judge of what a document means."""

from html import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from gateway.soap.wsdl import MAX_SIZE, UnreadableWsdlError, rewritten

DOCUMENT = """<?xml version="1.0" encoding="{encoding}"?>
<!-- <soap:address location="http://inner.example/not-me"/> -->
<w:definitions xmlns:w="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/"
  xmlns:s12 = 'http://schemas.xmlsoap.org/wsdl/soap12/' xmlns:o="urn:other" targetNamespace="http://inner.example/ns">
 <w:import namespace="http://inner.example/ns" location="http://inner.example/a.wsdl?x=1&amp;y=2"/>
 <w:import namespace="u" location="relative.wsdl"/>
 <w:types><x:schema xmlns:x="http://www.w3.org/2001/XMLSchema">
  <x:import namespace="v" schemaLocation = 'http://inner.example/a.xsd' /><x:include schemaLocation="../b.xsd"/>
  <x:include schemaLocation="http://inner.example/é.xsd"/></x:schema></w:types>
 <w:documentation><![CDATA[<soap:address location="http://inner.example/nor-me"/>]]> é</w:documentation>
 <w:service name="S"><w:port name="a"><soap:address o:location="http://inner.example/no"
    location
    =
    "http://inner.example/a>b"/></w:port>
  <w:port name="b"><s12:address location='http://inner.example/b'></s12:address></w:port>
  <w:port name="c"><o:address location="http://inner.example/other"/></w:port></w:service>
</w:definitions>"""
ADDRESS = ".//{http://schemas.xmlsoap.org/wsdl/soap%s/}address"


def moved(url: str, is_address: bool) -> str | None:
    return f"{url.replace('inner.example', 'gateway.example:8080')}{'#service' if is_address else ''}&'\""


@pytest.mark.parametrize(("encoding", "mark"), [("UTF-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("ISO-8859-1", b"")])
def test_what_leads_to_the_upstream_leads_to_the_gateway_and_nothing_else_changes(encoding: str, mark: bytes) -> None:
    before = mark + DOCUMENT.format(encoding=encoding).replace("/é.xsd", "/e.xsd").encode(encoding)
    after = rewritten(before, moved)
    old, new = etree.fromstring(before), etree.fromstring(after)
    changed = []
    for was, now in zip(old.iter(), new.iter(), strict=True):
        assert (was.tag, was.text, was.tail, was.sourceline) == (now.tag, now.text, now.tail, now.sourceline)
        changed += [(was.attrib[name], now.attrib[name]) for name in was.attrib if was.attrib[name] != now.attrib[name]]
        assert was.attrib.keys() == now.attrib.keys()
    assert changed == [
        (url, moved(url, is_address))
        for url, is_address in [
            ("http://inner.example/a.wsdl?x=1&y=2", False),
            ("http://inner.example/a.xsd", False),
            ("http://inner.example/e.xsd", False),
            ("http://inner.example/a>b", True),
            ("http://inner.example/b", True),
        ]
    ]
    kept = after
    for was, now in changed:  # what was put in is taken out again: octet for octet the same
        kept = kept.replace(escape(now).encode(), was.replace("&", "&amp;").encode())
    assert kept == before


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1"])
def test_without_a_new_address_the_document_is_the_same(encoding: str) -> None:
    document = DOCUMENT.format(encoding=encoding).encode(encoding)
    assert rewritten(document, lambda _url, _is_address: None) == document
    assert rewritten(document, lambda url, _is_address: url) == document


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (DOCUMENT.format(encoding="UTF-16").encode("utf-16"), "encoding"),
        (DOCUMENT.format(encoding="UTF-16").encode("utf-16-le"), "encoding"),
        (DOCUMENT.format(encoding="windows-1251").encode("utf-8"), "encoding"),
        (b"<!DOCTYPE a [<!ENTITY b 'http://x.example/'>]><a/>", "document type"),
        (DOCUMENT.format(encoding="UTF-8").encode()[:-5], "well-formed"),
        (b"", "well-formed"),
        (b" " * (MAX_SIZE + 1), "larger"),
    ],
)
def test_what_cannot_be_read_for_sure_is_left_alone(document: bytes, why: str) -> None:
    with pytest.raises(UnreadableWsdlError, match=why):
        rewritten(document, moved)


@given(
    space=st.text(" \t\r\n", min_size=1, max_size=4),
    around=st.tuples(st.text(" \n", max_size=3), st.text(" \n", max_size=3)),
    quote=st.sampled_from("\"'"),
    path=st.text("abc/.?=-é", max_size=12),
    prefix=st.sampled_from(["", "s:", "soap:", "_:"]),
)
def test_however_it_is_written_the_address_is_found(
    space: str, around: tuple[str, str], quote: str, path: str, prefix: str
) -> None:
    declared = f"xmlns{':' + prefix[:-1] if prefix else ''}='http://schemas.xmlsoap.org/wsdl/soap/'"
    value = f"http://inner.example/{path}"
    text = f"<{prefix}address {declared}{space}location{around[0]}={around[1]}{quote}{value}{quote}{space}/>"
    after = etree.fromstring(rewritten(text.encode(), lambda _url, _is_address: "https://g.example/?a=1&b=2"))
    assert after.get("location") == "https://g.example/?a=1&b=2"
