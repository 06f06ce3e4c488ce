"""What is submitted becomes items: in every form, in order, once, sealed; and what is wrong is told by its line."""

import base64
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config import Configuration, load
from gateway.loading import Loader, Submission, Taken, UnreadableError
from gateway.loading.loader import PORTION
from gateway.loading.template import Template
from gateway.packing import StoredRequest, unpack_request
from gateway.records import Counts, Loaded, NewItem, RunRecord
from gateway.sealing import KeyRing, RunKey
from gateway.soap import digest
from policies.model import RunKind, RunState

RING = KeyRing(b"k" * 32)
PATH = "/SOA4520/RetrieveTIGroupsService/v2/retrieveTI"
NS = "http://kszbcss.fgov.be/intf/RetrieveTIGroupsService/v2"


def envelope(inner: str, namespace: str = NS, operation: str = "retrieveTIGroupsRequest") -> str:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<q:{operation} xmlns:q="{namespace}">{inner}</q:{operation}></s:Body></s:Envelope>'
    )


TEMPLATE = envelope("<ssin>{{ssin}}</ssin><name>{{ name }}</name>")


@dataclass
class Store:
    """Keeps what it is given, as the store would."""

    run: RunRecord
    key: RunKey
    items: list[NewItem] = field(default_factory=list)
    dictionary: bytes | None = None

    async def add(self, run_id: int, items: Sequence[NewItem], /, *, received: int | None) -> Loaded:
        tags = {item.key_tag for item in self.items if item.key_tag}
        fresh = [item for item in items if not item.key_tag or item.key_tag not in tags]
        self.items += fresh
        self.run = replace(self.run, received=received or 0)
        return Loaded(len(fresh), len(items) - len(fresh), received or 0)

    async def set_dictionary(self, run_id: int, sealed: bytes) -> bytes:
        self.dictionary = self.dictionary or sealed
        return self.dictionary

    def opened(self) -> list[StoredRequest]:
        key = self.key
        if self.dictionary:
            key = key.with_dictionary(key.unseal("dictionary", self.run.public_id, 0, self.dictionary))
        return [unpack_request(key.unseal("request", self.run.public_id, one.seq, one.sealed)) for one in self.items]

    def keys(self) -> list[str]:
        return [
            self.key.unseal("key", self.run.public_id, one.seq, one.sealed_key).decode()
            for one in self.items
            if one.sealed_key
        ]


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    path = tmp_path / "config.yaml"
    path.write_text(
        "upstreams: {a: {url: 'http://127.0.0.1:1'}}\n"
        "routes: [{prefix: /SOA4520, upstream: a, replace: /X}, {prefix: /connectors, upstream: a}]\n"
    )
    return load(path, {})


@pytest.fixture
def store() -> Store:
    key, wrapped = RING.new_key()
    now = datetime(2026, 11, 24, tzinfo=UTC)
    run = RunRecord(
        1, "a" * 32, RunKind.FILE, "n", "me", "", "", RunState.LOADING, "", "me", now, now, 5, None, 5, {}, wrapped,
        None, 0, 0, Counts(), 0,
    )  # fmt: skip
    return Store(run, key)


async def cut(octets: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(octets), size):
        yield octets[start : start + size]


async def taken(
    configuration: Configuration, store: Store, octets: bytes, *, size: int = 1000, offset: int = 0, **how: Any
) -> Taken:
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    submission = Submission(**{"form": "ndjson", "path": PATH, "soap_action": "act", **how})
    return await loader.take(store.run, store.key, submission, cut(octets, size), offset=offset)


def ndjson(*entries: Any) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_ndjson_becomes_items_in_order(configuration: Configuration, store: Store, size: int) -> None:
    bodies = [envelope(f"<n>{n}</n>") for n in range(3)]
    entries = [{"key": f"k{n}", "body": body} for n, body in enumerate(bodies)]
    entries[1] = {"key": "k1", "base64": base64.b64encode(bodies[1].encode()).decode(), "soapAction": '"own"'}
    report = await taken(configuration, store, ndjson(*entries[:2]) + b"\n \n" + ndjson(entries[2])[:-1], size=size)
    assert (report.received, report.added, report.faulty, report.complete) == (3, 3, 0, True)
    requests = store.opened()
    assert [one.body for one in requests] == [body.encode() for body in bodies]
    assert {one.target for one in requests} == {b"/X/RetrieveTIGroupsService/v2/retrieveTI"}
    assert [dict(one.headers)[b"SOAPAction"] for one in requests] == [b'"act"', b'"own"', b'"act"']
    assert store.keys() == ["k0", "k1", "k2"]
    assert [item.seq for item in store.items] == [0, 1, 2]
    lane = store.items[0].lane
    assert (lane.route, lane.sources, lane.repeatable) == ("/SOA4520", ("national-register",), True)


async def test_what_the_catalogue_does_not_know_is_unclassified_and_not_repeatable(
    configuration: Configuration, store: Store
) -> None:
    await taken(configuration, store, ndjson({"body": envelope("", "urn:unheard-of", "x")}))
    assert (store.items[0].lane.sources, store.items[0].lane.repeatable) == ((), False)
    assert store.items[0].key_tag == b""


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is no object of texts"),
        (b'{"body": 1}', "is no object of texts"),
        (b'{"body": "<a/>", "extra": "00000000097"}', "names that mean nothing"),
        (b"{}", "exactly one of body and base64"),
        (b'{"base64": "?"}', "base64 that is none"),
        (b'{"body": "<a/>"}', "is no sound message: not a SOAP envelope"),
        (json.dumps({"body": envelope(""), "path": "/elsewhere"}).encode(), "no route leads from"),
        (json.dumps({"body": envelope(""), "path": "x y"}).encode(), "no path"),
        (json.dumps({"body": envelope(""), "key": "k" * 600}).encode(), "too long or no text"),
        (json.dumps({"body": envelope(""), "soapAction": "a\nb"}).encode(), "header value"),
        (json.dumps({"body": envelope("x" * 2_000_000)}).encode(), "larger than a bulk message"),
    ],
)
async def test_a_faulty_entry_is_told_by_its_line_and_never_quoted(
    configuration: Configuration, store: Store, entry: bytes, what: str
) -> None:
    report = await taken(configuration, store, ndjson({"body": envelope("")}) + entry + b"\n", size=1 << 20)
    assert not report.complete
    assert store.items == []
    (fault,) = report.faults
    assert fault.line == 2
    assert what in fault.what
    assert fault.remedy.endswith(".")
    assert "00000000097" not in repr(report)


async def test_faulty_entries_are_left_out_when_asked_to_go_on(configuration: Configuration, store: Store) -> None:
    octets = ndjson({"body": envelope("1")}) + b"oops\n" + ndjson({"body": envelope("2")})
    report = await taken(configuration, store, octets, go_on=True)
    assert (report.received, report.added, report.faulty, report.complete) == (3, 2, 1, True)
    assert [item.seq for item in store.items] == [0, 2]


async def test_many_entries_are_made_items_by_processes_in_order_with_a_dictionary(
    configuration: Configuration, store: Store
) -> None:
    number = 4 * PORTION + 3
    octets = ndjson(
        *({"key": str(n), "body": envelope(f"<n>{n}</n>" + "<same>text</same>" * 50)} for n in range(number))
    )
    report = await taken(configuration, store, octets, size=64 * 1024)
    assert (report.received, report.added) == (number, number)
    assert [item.seq for item in store.items] == list(range(number))
    assert store.dictionary is not None
    assert max(len(item.sealed) for item in store.items) < 200
    assert [b"<n>%d</n>" % n in one.body for n, one in enumerate(store.opened())] == [True] * number


async def test_an_upload_goes_on_where_it_broke_off_and_adds_nothing_twice(
    configuration: Configuration, store: Store
) -> None:
    entries = [{"key": str(n), "body": envelope(str(n))} for n in range(10)]
    await taken(configuration, store, ndjson(*entries[:6]))
    again = await taken(configuration, store, ndjson(*entries))
    assert (again.received, again.added, again.duplicates) == (10, 4, 0)
    rest = await taken(configuration, store, ndjson(entries[3], {"key": "new", "body": envelope("")}), offset=10)
    assert (rest.received, rest.added, rest.duplicates) == (12, 1, 1)
    with pytest.raises(UnreadableError, match="has received 12"):
        await taken(configuration, store, b"", offset=13)


async def test_a_template_is_filled_in_row_by_row_and_escaped(configuration: Configuration, store: Store) -> None:
    rows = 'ssin;name\n00000000097;"A & <B>"\n\n00000000196;"two\nlines; ""x"""\n'
    report = await taken(
        configuration, store, b"\xef\xbb\xbf" + rows.encode(), size=5, form="csv", template=TEMPLATE, key_column="ssin"
    )
    assert (report.received, report.added, report.faulty) == (2, 2, 0)
    assert [one.body.decode() for one in store.opened()] == [
        envelope("<ssin>00000000097</ssin><name>A &amp; &lt;B&gt;</name>"),
        envelope("<ssin>00000000196</ssin><name>two\nlines; &quot;x&quot;</name>"),
    ]
    assert store.keys() == ["00000000097", "00000000196"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("00000000098,x", "no sound national number in column ssin"),
        ("00000000097", "has 1 fields where the header has 2"),
        ("00000000097,", "has nothing in column name"),
        ("00000000097,\x01", "XML cannot hold"),
        (f"00000000097,{'x' * 5000}", "too long"),
    ],
)
async def test_a_faulty_row_is_told_by_its_line(
    configuration: Configuration, store: Store, row: str, what: str
) -> None:
    report = await taken(
        configuration, store, f"ssin,name\n{row}\n".encode(), form="csv", template=TEMPLATE, ssin_columns=("ssin",)
    )
    (fault,) = report.faults
    assert (fault.line, what in fault.what) == (2, True)
    assert "000000000" not in repr(fault)


@pytest.mark.parametrize(
    ("rows", "how", "what"),
    [
        (b"ssin\n1\n", {}, "no column name"),
        (b"ssin,name,ssin\n", {}, "twice"),
        (b"ssin,name\n1,2\n", {"key_column": "key"}, "no column key"),
        (b"ssin,name\n\xff,1\n", {}, "UTF-8"),
        (b'ssin,name\n"1,2\n', {}, "quotation mark"),
        (b"ssin,name\n1,\xc3", {}, "UTF-8"),
        (b"ssin,name\n1,2\n", {"template": "<a>{{ssin}}</a>"}, "no message that can be sent"),
        (b"ssin,name\n1,2\n", {"template": envelope("x")}, "every row would ask the same"),
        (b"ssin,name\n1,2\n", {"template": envelope("{{ssin}} {{")}, "{{ without }}"),
        (b"ssin,name\n1,2\n", {"template": envelope("<![CDATA[{{ssin}}]]>")}, "CDATA"),
    ],
)
async def test_what_cannot_be_loaded_at_all_says_why(
    configuration: Configuration, store: Store, rows: bytes, how: dict[str, Any], what: str
) -> None:
    with pytest.raises(UnreadableError) as caught:
        await taken(configuration, store, rows, **{"form": "csv", "template": TEMPLATE, **how})
    assert what in str(caught.value)
    assert store.items == []


SSDN = (
    '<r:SSDNRequest xmlns:r="http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"><r:ServiceRequest>'
    "<r:ServiceId>OCMWCPASIdentifyPerson</r:ServiceId><r:Version>20050930</r:Version><q>{{name}}</q>"
    "</r:ServiceRequest></r:SSDNRequest>"
)


def classic(document: str, how: str) -> str:
    inner = f"<![CDATA[{document}]]>" if how == "cdata" else document.replace("&", "&amp;").replace("<", "&lt;")
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<w:xmlString xmlns:w="http://ksz-bcss.fgov.be/connectors/WebServiceConnector">{inner}</w:xmlString>'
        "</s:Body></s:Envelope>"
    )


@pytest.mark.parametrize("how", ["cdata", "escaped"])
async def test_values_inside_the_classic_styles_document_are_escaped_in_its_depth(
    configuration: Configuration, store: Store, how: str
) -> None:
    template = classic(SSDN, how)
    report = await taken(
        configuration, store, b"name\nA & B ]]> <c>\n", form="csv", template=template, path="/connectors/x"
    )
    assert report.faults == ()
    body = store.opened()[0].body.decode()
    assert store.items[0].lane.service == "OCMWCPASIdentifyPerson"
    from lxml import etree

    text = etree.fromstring(body.encode()).findtext(".//{*}xmlString")
    assert text is not None
    assert etree.fromstring(text).findtext(".//q") == "A & B ]]> <c>"


async def test_a_column_that_chooses_the_service_is_digested_row_by_row(
    configuration: Configuration, store: Store
) -> None:
    template = classic(SSDN.replace("OCMWCPASIdentifyPerson", "{{service}}"), "cdata")
    rows = b"service,name\nOCMWCPASIdentifyPerson,x\nUnheardOf,x\n"
    await taken(configuration, store, rows, form="csv", template=template, path="/connectors/x")
    assert [item.lane.service for item in store.items] == ["OCMWCPASIdentifyPerson", ""]


PLACES = [
    envelope("<x>{{a}}</x>"),
    envelope("<x y=\"{{a}}\" z='{{ b }}'/>{{a}}<c>{{b}}{{a}}</c>"),
    envelope("").replace("<s:Body>", "<s:Header><t>{{a}}</t></s:Header>{{b}}<s:Body>{{a}}"),
    envelope("<p>{{a}}</p><q>{{b}}</q>"),
    classic(SSDN.replace("{{name}}", "<n v='{{a}}'>{{b}}</n>"), "cdata"),
    classic(SSDN.replace("{{name}}", '<n v="{{a}}">{{b}}</n>'), "escaped"),
    classic(SSDN.replace("20050930", "{{a}}"), "escaped").replace("{{name}}", "{{b}}"),
]
SELECTORS = {NS: frozenset({("q",)})}
VALUES = st.text(
    st.sampled_from("a0 \t\n\r<>&'\"];-?!/=\u00e9\u0085\u2028\U00010000\ufffe\x00\ud800") | st.characters(), max_size=20
)


@given(st.sampled_from(PLACES), VALUES, VALUES)
@example(PLACES[3], "x", "y" * 300)
@example(PLACES[6], "y" * 300, "x")
def test_a_digest_that_is_made_once_is_the_one_that_each_row_has(text: str, a: str, b: str) -> None:
    template = Template(text, SELECTORS, "text/xml")
    try:
        body, known = template.rendered({"a": a, "b": b})
    except ValueError:
        assert not all(one.isprintable() for one in (a, b))
        return
    assert known is template.fixed_digest
    if known is not None:
        assert known == digest(body, content_type="text/xml", selectors=SELECTORS)


def test_a_digest_that_values_have_a_part_in_is_not_made_once() -> None:
    known = [Template(text, SELECTORS, "text/xml").fixed_digest is not None for text in PLACES]
    assert known == [True, True, True, False, True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        envelope("<!-- {{a}} --><x/>"),
        envelope("<?x {{a}}?><x/>"),
        envelope("<{{a}}/>"),
        envelope("<x {{a}}='1'/>"),
        envelope('<x xmlns="{{a}}"/>'),
        envelope('<x xmlns:y="{{a}}"/>'),
        envelope("<x>&{{a}};</x>"),
        envelope("<![CDATA[{{a}}]]>"),
        classic(SSDN.replace("{{name}}", "<![CDATA[{{name}}]]>"), "escaped"),
        classic(SSDN.replace("{{name}}", "<!--{{name}}-->"), "cdata"),
        classic(SSDN.replace("{{name}}", '<x xmlns="{{name}}"/>'), "escaped"),
        '<?xml version="1.0" encoding="ISO-8859-1"?>' + envelope("{{a}}"),
        "<!DOCTYPE x>" + envelope("{{a}}"),
        envelope("{{a}}") + "{{a}}",
    ],
)
def test_a_place_where_a_value_could_be_more_than_text_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        Template(text, {}, "")


def archive(form: str, files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("folder/", b"")
            for name, content in files.items():
                zipped.writestr(name, content)
        return whole.getvalue()
    mode = "w:gz" if form == "tar.gz" else "w"
    kind = tarfile.GNU_FORMAT if form == "gnu" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=whole, mode=mode, format=kind) as tar:  # type: ignore[call-overload]  # the mode varies
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "gnu"])
@pytest.mark.parametrize("size", [3, 100_000])
async def test_the_files_of_an_archive_become_items_with_their_names_as_keys(
    configuration: Configuration, store: Store, form: str, size: int
) -> None:
    files = {f"folder/{'x' * 120 if n == 1 else n}-é.xml": envelope(f"<n>{n}</n>").encode() for n in range(3)}
    report = await taken(configuration, store, archive(form, files), size=size, form="zip" if form == "zip" else "tar")
    assert (report.added, report.faulty) == (3, 0)
    assert store.keys() == list(files)  # two folders may have a file of one name
    assert [one.body for one in store.opened()] == list(files.values())


@pytest.mark.parametrize(
    ("form", "octets"),
    [
        ("zip", b"no zip"),
        ("tar", b"x" * 2000),
        ("tar", archive("tar", {"a": b"x" * 2000})[:1500]),
        ("tar", gzip.compress(b"x")[:-9] + b"\0" * 9),
        ("tar", gzip.compress(bytes(64 << 20))),
        ("zip", archive("zip", {"a": b"x" * 2000})[:-30]),
    ],
)
async def test_what_is_no_archive_is_unreadable(
    configuration: Configuration, store: Store, form: str, octets: bytes
) -> None:
    with pytest.raises(UnreadableError):
        await taken(configuration, store, octets, form=form, size=1 << 20)


async def test_checking_stores_nothing_and_finds_everything(configuration: Configuration, store: Store) -> None:
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    octets = b"oops\n" + ndjson({"body": envelope("")}) + b"oops\n"
    report = await loader.check(Submission("ndjson", PATH), cut(octets))
    assert (report.received, report.added, report.faulty, report.complete) == (3, 1, 2, True)
    assert [fault.line for fault in report.faults] == [1, 3]
    assert store.items == []


async def test_messages_that_would_be_stale_at_night_are_faulty(configuration: Configuration, store: Store) -> None:
    wsu = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
    header = f'<s:Header><u:Timestamp xmlns:u="{wsu}"><u:Expires>x</u:Expires></u:Timestamp></s:Header><s:Body>'
    report = await taken(configuration, store, ndjson({"body": envelope("").replace("<s:Body>", header)}))
    assert "stale" in report.faults[0].what


def test_what_is_asked_of_a_submission_beforehand(configuration: Configuration, store: Store) -> None:
    loader = Loader(lambda: configuration, store.add, store.set_dictionary)
    assert loader.route_of(PATH) == "/SOA4520"
    assert loader.route_of("/elsewhere") is None
    assert loader.why_not(Submission("ndjson")) == ""
    assert "Only csv" in loader.why_not(Submission("ndjson", template="x"))
    assert "needs a template" in loader.why_not(Submission("csv"))
    assert "no message" in loader.why_not(Submission("csv", template="{{a}}"))
    assert loader.why_not(Submission("csv", template=TEMPLATE)) == ""
