"""Messages meant to mislead, to fetch, or to cost: each is read as what it asks, or not at all, at a bounded price.

The price is counted, never timed: octets and characters that expat gives back, octets that it looks at again because
a token is not whole yet, and memory (pyexpat and zlib allocate where tracemalloc sees it).
"""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import pytest

from gateway.soap import Peek, digest
from gateway.soap.envelope import PIECE, _Reader
from policies.model import Digest, Operation, Style

S11 = "http://schemas.xmlsoap.org/soap/envelope/"
S12 = "http://www.w3.org/2003/05/soap-envelope"
SSDN = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"
CONNECTOR = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
ASK = (Operation("ask", "urn:x"),)
ONE = (Operation("One", version="1"),)
MEMORY = 64 << 20
SECRET = "xyzzy"  # in what must never be quoted
SSIN = "00000000097"


def soa(inside: str = SSIN, *, header: str = "", first: str = "", last: str = "", around: str = "") -> str:
    """Write an envelope that asks `ASK`."""
    body = f'<s:Body{around}><q:ask xmlns:q="urn:x">{inside}</q:ask></s:Body>'
    return f'{first}<s:Envelope xmlns:s="{S11}"><s:Header>{header}</s:Header>{body}</s:Envelope>{last}'


def ssdn(request: str = "<n:ServiceId>One</n:ServiceId><n:Version>1</n:Version>", context: str = "") -> str:
    """Write a document of the classic style that asks `ONE`."""
    context = f"<n:RequestContext>{context}</n:RequestContext>"
    return f'<n:SSDNRequest xmlns:n="{SSDN}">{context}<n:ServiceRequest>{request}</n:ServiceRequest></n:SSDNRequest>'


def connector(text: str, attributes: str = "") -> str:
    """Write the envelope of the classic style around markup that stands for its text."""
    string = f'<xmlString xmlns="{CONNECTOR}"{attributes}>{text}</xmlString>'
    return f'<s:Envelope xmlns:s="{S11}"><s:Body>{string}</s:Body></s:Envelope>'


@dataclass
class Work:
    """What expat was made to do."""

    octets: int = 0  #: fed
    looked_at: int = 0  #: fed, and looked at again since a token was not whole
    characters: int = 0  #: given back as text
    elements: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count what is done from now on."""
    done = Work()
    feed, characters, start = _Reader._feed, _Reader._characters, _Reader._start

    def counting_feed(reader: _Reader, piece: bytes | str, *, last: bool) -> None:
        done.octets += len(piece)
        fed = reader.__dict__["fed"] = reader.__dict__.get("fed", 0) + len(piece)
        feed(reader, piece, last=last)
        index = reader.parser.CurrentByteIndex
        done.looked_at += len(piece) + (max(fed - index, 0) if index >= 0 else 0)

    def counting_characters(reader: _Reader, text: str) -> None:
        done.characters += len(text)
        characters(reader, text)

    def counting_start(reader: _Reader, name: str, attributes: dict[str, str]) -> None:
        done.elements += 1
        start(reader, name, attributes)

    monkeypatch.setattr(_Reader, "_feed", counting_feed)
    monkeypatch.setattr(_Reader, "_characters", counting_characters)
    monkeypatch.setattr(_Reader, "_start", counting_start)
    return done


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """Return the most memory that was allocated at once since the last time it was asked."""

    def peak() -> int:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return most

    tracemalloc.start(1)
    yield peak
    tracemalloc.stop()


def peeked(body: bytes, content_type: str = "text/xml", coding: str = "") -> Digest:
    """Read as the real-time path does: in pieces, until it has enough."""
    peek = Peek(content_type, coding, {})
    for start in range(0, len(body), 4096):
        if peek.feed(body[start : start + 4096]):
            break
    return peek.result()


def check(found: Digest, asks: tuple[Operation, ...]) -> None:
    """Demand these operations, or, where there are none, a reason that quotes nothing."""
    assert found.operations == asks
    assert (found.style is Style.UNKNOWN) == (asks == ()) == bool(found.unsound)
    assert SECRET not in found.unsound.lower()
    assert SSIN not in found.unsound
    assert found.unsound.isascii()
    assert len(found.unsound) < 120


LAUGHS = '<!ENTITY a "xyzzy">' + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghi"))
QUADRATIC = f'<!ENTITY a "{SECRET * 20_000}">'
DTD = {
    "billion laughs": soa("&i;", first=f"<!DOCTYPE x [{LAUGHS}]>"),
    "billion laughs in an attribute": soa('<a b="&i;"/>', first=f"<!DOCTYPE x [{LAUGHS}]>"),
    "quadratic entities": soa("&a;" * 20_000, first=f"<!DOCTYPE x [{QUADRATIC}]>"),
    "internal, which gives the Body another namespace": soa(
        first="<!DOCTYPE x [<!ATTLIST q:ask xmlns:q CDATA #FIXED 'urn:xyzzy'>]>"
    ),
    "external": soa(first='<!DOCTYPE x SYSTEM "http://127.0.0.1:9/xyzzy.dtd">'),
    "public": soa(first='<!DOCTYPE x PUBLIC "-//xyzzy//EN" "http://127.0.0.1:9/xyzzy.dtd">'),
    "parameter entity": soa(first="<!DOCTYPE x [<!ENTITY % p '<!ENTITY a \"xyzzy\">'> %p;]>"),
    "external parameter entity": soa(first='<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;]>'),
    "external entity over http": soa("&e;", first='<!DOCTYPE x [<!ENTITY e SYSTEM "http://127.0.0.1:9/xyzzy">]>'),
    "entity that is the Body": soa(first=f"<!DOCTYPE x [<!ENTITY e '{soa()}'>]>").replace("<s:Body>", "&e;<s:Body>"),
    "after a comment": soa(first="<!-- xyzzy --><?xyzzy x?><!DOCTYPE x>"),
    "inside the root": soa("<!DOCTYPE x>"),
}


@pytest.mark.parametrize("case", DTD)
@pytest.mark.parametrize("inner", [False, True], ids=["message", "inside xmlString"])
def test_no_document_type_is_read(case: str, inner: bool, work: Work, memory: Callable[[], int]) -> None:
    message = DTD[case]
    if inner:
        message = connector(escape(message.replace(f'<s:Envelope xmlns:s="{S11}">', f'<SSDNRequest xmlns="{SSDN}">')))
    body = message.encode()
    memory()
    check(digest(body), ())
    check(peeked(body), ASK if case == "inside the root" and not inner else ())
    assert memory() < MEMORY
    assert work.characters <= 9 << 20  # expat's own bound; see the next test


@pytest.mark.parametrize("inside", ["&i;", '<a b="&i;"/>'], ids=["text", "attribute"])
def test_laughs_that_fit_into_one_piece_are_not_expanded(inside: str, work: Work, memory: Callable[[], int]) -> None:
    body = f"<!DOCTYPE x [{LAUGHS}]><a>{inside}</a>".encode()
    assert len(body) < PIECE
    memory()
    check(digest(body), ())
    assert work.characters < 1 << 20
    assert memory() < 1 << 20


XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
XINCLUDE = 'xmlns:xi="http://www.w3.org/2001/XInclude"'
HARMLESS = {
    "schemaLocation": soa(f'<a {XSI} xsi:schemaLocation="urn:x http://127.0.0.1:9/x.xsd"/>'),
    "noNamespaceSchemaLocation": soa(around=f' {XSI} xsi:noNamespaceSchemaLocation="file:///etc/hostname"'),
    "xsi:type": soa(around=f' {XSI} xsi:type="xyzzy"'),
    "XInclude": soa(f'<xi:include {XINCLUDE} href="file:///etc/hostname" parse="text"/>'),
    "XInclude in the Header": soa(header=f'<xi:include {XINCLUDE} href="http://127.0.0.1:9/"/>'),
    "stylesheet": soa(first='<?xml-stylesheet href="http://127.0.0.1:9/x.xsl"?>'),
    "an operation in the Header": soa(header='<q:xyzzy xmlns:q="urn:x"/>'),
    "the same operation's name in the Header": soa(header='<ask xmlns="urn:xyzzy"/>'),
    "a Body in the Header": soa(header='<s:Body><q:xyzzy xmlns:q="urn:x"/></s:Body>'),
    "an envelope in the Header": soa(header=soa().replace("ask", SECRET)),
    "a classic string in the Header": soa(header=f'<xmlString xmlns="{CONNECTOR}">{escape(ssdn())}</xmlString>'),
    "a Body of no namespace in the Header": soa(header="<Body><xyzzy/></Body>"),
    "an envelope in the operation": soa(soa().replace("ask", SECRET)),
    "a classic string in the operation": soa(f'<xmlString xmlns="{CONNECTOR}">{escape(ssdn())}</xmlString>'),
    "text before the operation": soa().replace("<q:ask", "xyzzy <q:ask"),
    "an operation in a comment": soa().replace("<q:ask", '<!-- <q:xyzzy xmlns:q="urn:x"> --><q:ask'),
    "an operation in CDATA": soa().replace("<q:ask", '<![CDATA[<q:xyzzy xmlns:q="urn:x">]]><q:ask'),
    "an operation in an instruction": soa().replace("<q:ask", "<?x <q:xyzzy?><q:ask"),
    "comments between all": soa(first="<!-- <x> -->", last="<!-- -->", header="<!-- -->", inside="<!-- -->"),
    "instructions between all": soa(first="<?x <x>?>", last="<?x?>", header="<?x?>", inside="<?x?>"),
    "a prefix declared anew": soa(header=f'<s:a xmlns:s="urn:xyzzy"><s:Body xmlns:s="{S11}"/></s:a>'),
    "a namespace by character references": soa().replace("urn:x", "&#117;rn:&#x78;"),
    "a namespace with white space to normalise": soa().replace('"urn:x"', '"urn:x"\n'),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_stands_around_the_operation_does_not_mislead(case: str) -> None:
    check(digest(HARMLESS[case].encode()), ASK)
    check(peeked(HARMLESS[case].encode()), ASK)


OPEN = f'<s:Envelope xmlns:s="{S11}">'
REJECTED = {
    "a Body of SOAP 1.2 in an envelope of 1.1": soa().replace("s:Body", f's:Body xmlns:s="{S12}"', 1),
    "a Body of no namespace": soa().replace("s:Body", "Body"),
    "a Body of another namespace before the Body": soa().replace("<s:Body>", '<Body xmlns="urn:xyzzy"/><s:Body>'),
    "a Body of another case": soa().replace("s:Body", "s:body"),
    "the operation beside the Body": f'{OPEN}<q:ask xmlns:q="urn:x"/><s:Body/></s:Envelope>',
    "the Header behind the Body": f'{OPEN}<s:Body><q:ask xmlns:q="urn:x"/></s:Body><s:Header/></s:Envelope>',
    "a Body only in the Header": f"{OPEN}<s:Header>{soa()}</s:Header></s:Envelope>",
    "the Envelope inside an element": f"<xyzzy>{soa()}</xyzzy>",
    "an Envelope of another case": soa().replace("s:Envelope", "s:envelope"),
    "a name cut by a comment": soa().replace("s:Body", "s:Bo<!-- -->dy"),
    "a name cut by an instruction": soa().replace("q:ask", "q:a<?x?>sk"),
    "a name cut by CDATA": soa().replace("q:ask", "q:<![CDATA[ask]]>"),
    "a name by character references": soa().replace("q:ask", "q:&#97;sk"),
    "a prefix of nobody": soa().replace("q:ask ", "r:ask "),
    "a prefix undeclared": soa().replace('xmlns:q="urn:x"', 'xmlns:q=""'),
    "an attribute twice": soa().replace('xmlns:q="urn:x"', 'xmlns:q="urn:xyzzy" xmlns:q="urn:x"'),
    "an attribute twice by namespace": soa('<a xmlns:b="urn:b" xmlns:c="urn:b" b:d="" c:d=""/>'),
    "the namespace of xml taken": soa('<a xmlns:b="http://www.w3.org/XML/1998/namespace"/>'),
    "two operations": soa().replace("</s:Body>", '<q:xyzzy xmlns:q="urn:x"/></s:Body>'),
    "two Bodies with one operation": soa().replace("<s:Body>", "<s:Body/><s:Body>"),
    "a second envelope": soa() + soa(),
    "text behind": soa() + SECRET,
    "NUL behind": soa() + "\0",
    "a mark behind": soa() + "\ufeff",
    "CDATA behind": soa() + "<![CDATA[]]>",
    "text before": SECRET + soa(),
    "a declaration not at the beginning": " <?xml version='1.0'?>" + soa(),
    "a declaration twice": "<?xml version='1.0'?>" * 2 + soa(),
    "NUL in text": soa("\0"),
    "NUL in a name": soa().replace("q:ask", "q:as\0k"),
    "NUL before": "\0" + soa(),
    "NUL by reference": soa("&#0;"),
    "a control character": soa("\x0b"),
    "a surrogate by reference": soa("&#xd800;"),
    "a character too large by reference": soa("&#x110000;"),
    "a noncharacter": soa("\uffff"),
    "an ampersand alone": soa("&"),
    "the end of CDATA in text": soa("]]>"),
    "CDATA without end": soa("<![CDATA["),
    "two hyphens in a comment": soa("<!-- -- -->"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_what_is_ambiguous_or_broken_is_unknown(case: str) -> None:
    body = REJECTED[case].encode()
    check(digest(body), ())
    # The real-time path stops at the operation: it may not see what is wrong behind it, and never sees another one.
    check(peeked(body), peeked(body).operations and ASK)


@pytest.mark.parametrize("beginning", ["A", f'<s:Envelope xmlns:s="{S11}" a="', f'<s:Envelope xmlns:s="{S11}"><!--'])
def test_what_has_no_end_is_not_looked_at_again_and_again(beginning: str, work: Work) -> None:
    """Half a megabyte of it took two seconds, in the path of a real-time call whose body came in large pieces."""
    peek = Peek("text/xml", "", {})
    assert peek.feed(beginning.encode() + b"A" * 524_288)
    check(peek.result(), ())
    assert work.octets < 128 << 10
    check(digest(beginning.encode() + b"A" * 1_000_000), ())
    assert work.octets < 256 << 10
