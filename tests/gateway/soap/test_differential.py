"""Differential fuzzing: what expat makes of a message, lxml makes of it too, or it is unclassified."""

from xml.sax.saxutils import escape

from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from gateway.soap import digest
from gateway.soap.digest import Peek
from policies.model import Style

SOAP = {"1.1": "http://schemas.xmlsoap.org/soap/envelope/", "1.2": "http://www.w3.org/2003/05/soap-envelope"}
CONNECTOR = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
SSDN = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"
names = st.text("abcdefXYZ_", min_size=1, max_size=6)
namespaces = st.sampled_from(["urn:a", "urn:b", "http://kszbcss.fgov.be/intf/X/v1", SOAP["1.1"], SSDN, ""])
texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=8).map(escape)
noise = st.lists(st.sampled_from([" ", "\n", "<!-- c -->", "<?pi x?>", "<!-- <s:Body/> -->"]), max_size=3).map("".join)
Asked = tuple[tuple[str, str, str], ...]
"""What a message asks: (namespace, name, version) of each operation."""


@st.composite
def elements(draw: st.DrawFn, depth: int = 0) -> str:
    """An element in some namespace, with children."""
    name, prefix = draw(names), draw(st.sampled_from(["", "p:"]))
    namespace = draw(namespaces)
    declared = f' xmlns{":p" if prefix else ""}="{namespace}"' if namespace or not prefix else ' xmlns:p="urn:p"'
    inside = draw(texts) if depth > 1 else "".join(draw(st.lists(elements(depth + 1), max_size=2)))
    return f"<{prefix}{name}{declared}>{draw(noise)}{inside}</{prefix}{name}>"


@st.composite
def classic(draw: st.DrawFn) -> str:
    """The classic style: a document as text, escaped or as CDATA, in one piece or several."""
    requests = "".join(
        f"<ServiceRequest>{draw(noise)}<ServiceId>{draw(texts)}</ServiceId><Version>{draw(names)}</Version>"
        f"{draw(elements(1))}</ServiceRequest>"
        for _ in range(draw(st.integers(0, 3)))
    )
    declaration = draw(st.sampled_from(["", '<?xml version="1.0" encoding="UTF-8"?>', "\n"]))
    document = f'{declaration}<SSDNRequest xmlns="{SSDN}">{requests}</SSDNRequest>'
    cut = draw(st.integers(0, len(document)))
    parts = [document[:cut], document[cut:]]
    written = [escape(part) if draw(st.booleans()) else f"<![CDATA[{part}]]>" for part in parts]
    return f'<c:xmlString xmlns:c="{CONNECTOR}">{"".join(written)}</c:xmlString>'


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """An envelope of any shape, sound or not, in some encoding, its octets perhaps damaged."""
    soap = draw(st.sampled_from([*SOAP.values(), "urn:not-soap"]))
    header = draw(st.sampled_from(["", f"<s:Header>{draw(elements())}</s:Header>", "<s:Header/>"]))
    inside = draw(st.one_of(elements(), classic(), st.just(""), st.tuples(elements(), elements()).map("".join)))
    bodies = f"<s:Body>{draw(noise)}{inside}{draw(noise)}</s:Body>" * draw(st.sampled_from([1, 1, 1, 2]))
    encoding = draw(st.sampled_from(["utf-8", "utf-16", "iso-8859-1"]))
    declaration = draw(st.sampled_from(["", f'<?xml version="1.0" encoding="{encoding}"?>']))
    if not declaration:
        encoding = "utf-8"
    text = f'{declaration}<s:Envelope xmlns:s="{soap}">{header}{draw(noise)}{bodies}{draw(noise)}</s:Envelope>'
    octets = text.encode(encoding, "xmlcharrefreplace")
    if draw(st.integers(0, 2)) == 0:
        start = draw(st.integers(0, len(octets)))
        end = draw(st.integers(start, min(len(octets), start + 12)))
        octets = (
            octets[:start]
            + draw(st.sampled_from([b"", octets[start:end] * 2, b"<", b"&", b"\x00", b"x"]))
            + octets[end:]
        )
    return octets


def parsed(octets: bytes) -> etree._Element | None:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(octets, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    return None if root.getroottree().docinfo.doctype else root


def refuses_a_namespace(octets: bytes) -> bool:
    """Say whether lxml stumbles over a namespace that is no URI (damage made it so): XML does not demand one."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    root = etree.fromstring(octets, parser)
    if any("is not a valid URI" in one.message for one in parser.error_log):
        return True
    string = root.find(f".//{{{CONNECTOR}}}xmlString") if root is not None else None
    inside = document_in(string) if string is not None else b""
    return bool(inside) and refuses_a_namespace(inside)


def document_in(string: etree._Element) -> bytes:
    """Return the document inside `xmlString`, without its declaration: it is text, whatever encoding it declares."""
    text = "".join(string.itertext(with_tail=False)).lstrip("\ufeff \t\r\n")
    return (text.partition("?>")[2] if text.startswith("<?xml") else text).encode()


def oracle(octets: bytes) -> Asked | None:  # noqa: PLR0911  # a list of what makes it none
    """Return what lxml makes of a message; None: nothing that may be classified."""
    root = parsed(octets)
    if root is None:
        return None
    name = etree.QName(root)
    children = [etree.QName(child) for child in root if isinstance(child.tag, str)]
    bodies = [child for child in root if isinstance(child.tag, str) and etree.QName(child).localname == "Body"]
    if name.namespace not in SOAP.values() or name.localname != "Envelope" or len(bodies) != 1:
        return None
    if any(child.namespace != name.namespace or child.localname not in ("Header", "Body") for child in children):
        return None
    operations = [child for child in bodies[0] if isinstance(child.tag, str)]
    if len(operations) != 1:
        return None
    operation = etree.QName(operations[0])
    if (operation.namespace, operation.localname) != (CONNECTOR, "xmlString"):
        return ((operation.namespace or "", operation.localname, ""),)
    document = parsed(document_in(operations[0]))
    if document is None or document.tag != f"{{{SSDN}}}SSDNRequest":
        return None
    asked = [
        ("", (one.findtext(f"{{{SSDN}}}ServiceId") or "").strip(), (one.findtext(f"{{{SSDN}}}Version") or "").strip())
        for one in document.findall(f"{{{SSDN}}}ServiceRequest")
    ]
    return tuple(asked) or None


@settings(max_examples=600, deadline=None)
@given(messages())
def test_expat_reads_what_lxml_reads_or_nothing(message: bytes) -> None:
    found = digest(message)
    if found.style is Style.UNKNOWN:
        assert found.unsound
        assert found.operations == ()
    elif not refuses_a_namespace(message):
        assert tuple((one.namespace, one.name, one.version) for one in found.operations) == oracle(message)


@settings(max_examples=300, deadline=None)
@given(messages(), st.lists(st.integers(1, 60), max_size=30))
def test_a_peek_sees_the_same_however_the_message_was_cut(message: bytes, cuts: list[int]) -> None:
    """It may see less of what is wrong, since it stops at the operation; never another operation."""
    peeks = [Peek("", "", {}), Peek("", "", {})]
    peeks[0].feed(message)
    rest = message
    for cut in cuts:
        if peeks[1].feed(rest[:cut]):
            break
        rest = rest[cut:]
    else:
        peeks[1].feed(rest)
    whole, cut_up, strict = peeks[0].result(), peeks[1].result(), digest(message)
    assert whole.operations == cut_up.operations
    if strict.style is not Style.UNKNOWN:
        assert whole.operations == strict.operations


def test_sound_messages_are_read() -> None:
    """The fuzz would pass if nothing were ever read: it is."""
    for soap in SOAP.values():
        message = f'<s:Envelope xmlns:s="{soap}"><s:Body><o xmlns="urn:a"/></s:Body></s:Envelope>'.encode()
        assert oracle(message) == (("urn:a", "o", ""),)
        assert [(one.namespace, one.name) for one in digest(message).operations] == [("urn:a", "o")]
