"""The digest does not depend on how a message is written or cut; what is unsound is said to be, and nothing raises."""

import gzip
import zlib
from html import escape
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from gateway.soap import MalformedBodyError, Peek, PrefixCache, TooLargeError, digest
from policies.model import Digest, Operation, SoapVersion, Style

S11 = "http://schemas.xmlsoap.org/soap/envelope/"
S12 = "http://www.w3.org/2003/05/soap-envelope"
ASK = Operation("ask", "urn:x")
SELECTORS = {"urn:x": frozenset({("criteria", "source")})}


def soa(
    inside: str = "<criteria><source> A </source></criteria>", *, soap: str = S11, header: str = "<s:Header/>"
) -> str:
    return f'<s:Envelope xmlns:s="{soap}">{header}<s:Body><q:ask xmlns:q="urn:x">{inside}</q:ask></s:Body></s:Envelope>'


def request(service: str, version: str = "20050930", inside: str = "<d/>") -> str:
    said = f"<n:ServiceId> {service} </n:ServiceId><n:Version>{version}</n:Version>"
    return f"<n:ServiceRequest>{said}{inside}</n:ServiceRequest>"


def ssdn(*requests: str, declaration: str = "<?xml version='1.0' encoding='UTF-16' standalone='yes'?>") -> str:
    inside = "<n:RequestContext/>" + "".join(requests)
    namespace = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"
    return f'{declaration}<n:SSDNRequest xmlns:n="{namespace}">{inside}</n:SSDNRequest>'


def connector(text: str) -> bytes:
    namespace = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
    body = f'<xmlString xmlns="{namespace}">{text}</xmlString>'
    return f'<s:Envelope xmlns:s="{S11}"><s:Body>{body}</s:Body></s:Envelope>'.encode()


LITE = (
    "<m:Message xmlns:m='http://www.ksz-bcss.fgov.be/XSD/Message'><m:Header/><m:Data><m:XML>"
    "<L950 xmlns='http://www.ksz-bcss.fgov.be/XmlSchema'><x/></L950></m:XML></m:Data></m:Message>"
)


def test_the_new_style_is_told_by_its_first_body_child() -> None:
    assert digest(soa().encode()) == Digest(Style.SOA, SoapVersion.SOAP_11, (ASK,))
    assert digest(soa(soap=S12).encode()).soap is SoapVersion.SOAP_12


def test_sources_that_are_named_are_read_where_the_catalogue_says_so() -> None:
    found = digest(soa().encode(), selectors=SELECTORS)
    assert found.choices == {("criteria/source", "A")}


@pytest.mark.parametrize(
    "written",
    [
        lambda text: f"<![CDATA[{text}]]>",
        lambda text: escape(text),
        lambda text: f"\n  \ufeff{escape(text)}\n",
        lambda text: f"<![CDATA[{text[:90]}]]>{escape(text[90:150])}<![CDATA[{text[150:]}]]>",
    ],
    ids=["cdata", "escaped", "white space and mark", "mixed"],
)
def test_the_classic_style_is_read_however_its_string_is_written(written: object) -> None:
    text = ssdn(request("One"), request("XMLite", "20051206", LITE))
    found = digest(connector(written(text)))
    inner = "{http://www.ksz-bcss.fgov.be/XmlSchema}L950"
    assert found.style is Style.SSDN
    assert found.operations == (
        Operation("One", version="20050930"),
        Operation("XMLite", version="20051206", inner=inner),
    )


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "ascii"])
def test_the_encoding_does_not_matter(coding: str) -> None:
    declared = {
        "latin-1": "<?xml version='1.0' encoding='ISO-8859-1'?>",
        "ascii": "<?xml version='1.0' encoding='ASCII'?>",
    }
    comment = "<!-- \xe9 -->" if coding != "ascii" else ""
    body = (declared.get(coding, "") + comment + soa()).encode(coding)
    assert digest(body, selectors=SELECTORS) == digest(soa().encode(), selectors=SELECTORS)


@pytest.mark.parametrize(
    ("content_type", "body", "style"),
    [
        ("text/xml; charset=utf-8", soa().encode(), Style.SOA),
        ('text/xml; charset="iso-8859-1"', ("<!-- \xe9 -->" + soa()).encode("latin-1"), Style.SOA),
        ("text/xml;charset=utf8", soa().encode(), Style.SOA),
        ("text/xml; charset=utf-16le", soa().encode("utf-16-le"), Style.SOA),
        ("text/xml; charset=utf-16", soa().encode("utf-16"), Style.SOA),
        ("text/xml; charset=iso-8859-1", b"<?xml version='1.0' encoding='utf-8'?>" + soa().encode(), Style.SOA),
        ("text/xml; charset=utf-7", soa().encode(), Style.UNKNOWN),
        ("multipart/related; boundary=x", soa().encode(), Style.UNKNOWN),
        ("text/xml", b"<?xml version='1.0' encoding='klingon'?>" + soa().encode(), Style.UNKNOWN),
    ],
)
def test_the_content_type_may_name_the_encoding(content_type: str, body: bytes, style: Style) -> None:
    assert digest(body, content_type=content_type).style is style
    peek = Peek(content_type, "", {})
    peek.feed(body)
    assert peek.result().style is style


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
)
def test_a_compressed_body_is_read(coding: str, packed: object) -> None:
    body = packed(soa().encode())
    assert digest(body, content_encoding=coding).operations == (ASK,)
    peek = Peek("text/xml", coding, {})
    for octet in body:
        peek.feed(bytes([octet]))
    assert peek.result().operations == (ASK,)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(b"x" * 99)[:-4], "gzip"),
        (gzip.compress(b"x") + b"more", "gzip"),
        (soa().encode(), "br"),
        (gzip.compress(b"x"), "gzip, gzip"),
    ],
)
def test_an_unreadable_compression_is_malformed(body: bytes, coding: str) -> None:
    with pytest.raises(MalformedBodyError):
        digest(body, content_encoding=coding)
    peek = Peek("", coding, {})
    peek.feed(body)
    assert peek.result().style is Style.UNKNOWN


def test_a_bomb_costs_its_limit_and_no_more() -> None:
    bomb = gzip.compress(b"<a>" + b" " * (64 << 20))
    with pytest.raises(TooLargeError):
        digest(bomb, content_encoding="gzip")
    peek = Peek("", "gzip", {})
    assert peek.feed(bomb)
    assert peek.result().style is Style.UNKNOWN


BODY = '<s:Body><q:ask xmlns:q="urn:x"/></s:Body>'


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "it is empty"),
        ("not xml", "not well-formed"),
        (soa() + "<more/>", "not well-formed"),
        (soa()[:-3], "not well-formed"),
        ("<!DOCTYPE x>" + soa(), "document type"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + soa("&e;"), "document type"),
        (soa("&undefined;"), "not well-formed"),
        ("<Envelope/>", "not a SOAP envelope"),
        (f'<s:Envelope xmlns:s="{S11}x">{BODY}</s:Envelope>', "not a SOAP envelope"),
        (f'<s:Envelope xmlns:s="{S11}"><s:Header/></s:Envelope>', "no operation"),
        (f'<s:Envelope xmlns:s="{S11}"><s:Body/></s:Envelope>', "no operation"),
        (f'<s:Envelope xmlns:s="{S11}">{BODY}{BODY}</s:Envelope>', "two Bodies"),
        (f'<s:Envelope xmlns:s="{S11}">{BODY}<s:Header/></s:Envelope>', "neither Header nor Body"),
        (f'<s:Envelope xmlns:s="{S11}"><s:Header>{BODY}</s:Header></s:Envelope>', "no operation"),
        (f'<s:Envelope xmlns:s="{S11}"><s:Body><a/><b/></s:Body></s:Envelope>', "two elements"),
        (soa("<a>" * 300 + "</a>" * 300), "too deeply"),
        (soa("<a " + " ".join(f'a{n}="1"' for n in range(300)) + "/>"), "too many attributes"),
        (soa(f"<{'n' * 2000}/>"), "too long a name"),
        (soa("<criteria><source><x/></source></criteria>"), "elements where a source is named"),
        (soa(f"<criteria><source>{'x' * 300}</source></criteria>"), "too long"),
        (soa("<criteria>" + "".join(f"<source>{n}</source>" for n in range(70)) + "</criteria>"), "too many sources"),
    ],
)
def test_what_is_unsound_is_unknown_and_says_why(message: str, why: str) -> None:
    found = digest(message.encode(), selectors=SELECTORS)
    assert found.style is Style.UNKNOWN
    assert why in found.unsound


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        ("<a/>", "no SSDNRequest"),
        ("text", "not well-formed"),
        (ssdn(), "no ServiceRequest"),
        ("<!DOCTYPE x>" + ssdn(request("A"), declaration=""), "document type"),
        (ssdn("<n:ServiceRequest/>"), "without a ServiceId"),
        (ssdn(request("A"), '<ServiceRequest xmlns="urn:y"/>'), "another namespace"),
        (ssdn(request("A", inside="<n:ServiceId>B</n:ServiceId>")), "twice"),
        (ssdn(request("A", inside="<d><n:ServiceId>B</n:ServiceId></d>")), "inside the data"),
        (ssdn(request("<x/>")), "elements in it"),
        (ssdn(request("A" * 300)), "too long"),
        (ssdn(request("XMLite", inside=LITE.replace("<m:XML>", "<m:XML><L301/>"))), "two elements"),
        (ssdn(*[request("A")] * 40), "too many"),
    ],
)
def test_an_unsound_string_is_unknown_and_says_why(inner: str, why: str) -> None:
    found = digest(connector(escape(inner)))
    assert found.style is Style.UNKNOWN
    assert why in found.unsound


def test_elements_inside_the_string_are_unsound() -> None:
    assert "inside xmlString" in digest(connector("<x/>")).unsound


MESSAGES = [
    soa().encode(),
    soa(soap=S12, header="<s:Header><s:Body/></s:Header>").encode("utf-16"),
    connector(escape(ssdn(request("One"), request("XMLite", inside=LITE)))),
    connector(f"<![CDATA[{ssdn(request('One'))}]]>"),
    b"<!DOCTYPE x>" + soa().encode(),
    soa().encode()[:60],
]


@given(message=st.sampled_from(MESSAGES), cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_cutting_a_message_changes_nothing(message: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    peek = Peek("text/xml", "", SELECTORS)
    for start, end in pairwise(edges):
        peek.feed(message[start:end])
    whole = digest(message, selectors=SELECTORS)
    assert (peek.result().style, peek.result().operations) == (whole.style, whole.operations)


@given(
    prefix=st.sampled_from(["s", "soapenv", "\xe9", "a.b-c"]),
    space=st.sampled_from(["", "\n", "<!-- c -->", "<?pi x?>"]),
    name=st.sampled_from(["ask", "\xe9t\xe9", "x.y"]),
    namespace=st.sampled_from(["urn:x", "http://a/b?c=%7D", ""]),
)
def test_lxml_agrees(prefix: str, space: str, name: str, namespace: str) -> None:
    """Another parser, hardened alike, is the oracle: the same answer, or none."""
    message = (
        f'{space}<{prefix}:Envelope xmlns:{prefix}="{S11}">{space}<{prefix}:Body>{space}<{name} xmlns="{namespace}"/>'
        f"{space}</{prefix}:Body></{prefix}:Envelope>{space}"
    ).encode()
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    child = etree.QName(etree.fromstring(message, parser).find(f"{{{S11}}}Body/*"))
    (operation,) = digest(message).operations
    assert (operation.namespace, operation.name) == (child.namespace or "", child.localname)


def test_a_real_time_message_is_read_no_further_than_needed() -> None:
    peek = Peek("text/xml", "", {})
    assert peek.feed(soa()[:200].encode())
    assert peek.feed(b"whatever follows <<<")
    assert peek.result().operations == (ASK,)
    endless = Peek("text/xml", "", {})
    assert not endless.feed(b"<s:Envelope xmlns:s='" + S11.encode() + b"'>")
    assert endless.feed(b" " * (300 << 10))
    assert endless.result().style is Style.UNKNOWN
    assert Peek("text/xml", "", {}).result().unsound == "it is empty"


def test_a_prefix_that_decides_is_remembered_and_no_other() -> None:
    cache, kind = PrefixCache(), "text/xml"

    def learnt(body: bytes, selectors: object = None) -> None:
        peek = Peek(kind, "", selectors or {})
        peek.feed(body)
        cache.learn(body, kind, peek)

    body = soa().replace('<q:ask xmlns:q="urn:x">', '<q:ask note=">" xmlns:q="urn:x">').encode()
    assert cache.lookup(body, kind) is None
    learnt(body)
    found = cache.lookup(body.replace(b" A ", b" B "), kind)
    assert found is not None
    assert found.operations == (ASK,)
    assert cache.lookup(body, "application/soap+xml") is None
    assert cache.lookup(body.replace(b"q:ask", b"q:asks"), kind) is None
    learnt(soa().encode(), SELECTORS)  # what follows may matter
    assert cache.lookup(soa().encode(), kind) is None
    learnt(soa().encode("utf-16"))
    learnt(connector(escape(ssdn(request("One")))))
    learnt(b"not xml")
    for number in range(40):
        learnt(soa(header=f"<s:Header><a{number}/></s:Header>").encode())
    assert cache.lookup(body, kind) is None
    assert cache.lookup(soa(header="<s:Header><a20/></s:Header>").encode(), kind) is not None
