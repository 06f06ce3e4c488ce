"""What is cut short, malformed, contradictory or huge is told, bounded, or loaded right; never loaded wrong."""

import asyncio
import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Configuration, load
from gateway.loading import Submission, Taken, UnreadableError, check, loader
from gateway.loading.archives import tarred, zipped
from gateway.loading.cutting import SLICE, lines, rows
from gateway.loading.encoding import Encoder
from gateway.loading.submission import Raw
from gateway.packing import StoredRequest, unpack_request
from gateway.sealing import KeyRing

PATH = "/SOA4520/RetrieveTIGroupsService/v2/retrieveTI"
SOAP_11, SOAP_12 = "http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"
RUN = "a" * 32
KEY = KeyRing(b"k" * 32).new_key()[0]


def envelope(inner: str, soap: str = SOAP_11) -> str:
    return f'<s:Envelope xmlns:s="{soap}"><s:Body><q:ask xmlns:q="urn:q">{inner}</q:ask></s:Body></s:Envelope>'


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    path = tmp_path / "config.yaml"
    path.write_text("upstreams: {a: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /SOA4520, upstream: a}]\n")
    return load(path, {})


async def pieces(octets: bytes, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for start in range(0, len(octets), size):
        yield octets[start : start + size]


async def cut(how: Callable[[AsyncIterator[bytes]], AsyncIterator[list[Raw]]], octets: bytes, size: int) -> list[Raw]:
    return [raw async for entries in how(pieces(octets, size)) for raw in entries]


def requests(configuration: Configuration, *entries: bytes | tuple[str, ...], **how: Any) -> list[StoredRequest | str]:
    """Return what each entry becomes: a request, or what is wrong with it."""
    submission = Submission(**{"form": "ndjson", "path": PATH, "soap_action": "act", **how})
    header = ("ssin", "name") if submission.form == "csv" else ()
    settings = configuration.settings
    encoder = Encoder(
        submission,
        configuration.catalogue,
        settings.routes,
        settings.bulk.body_limit,
        run=RUN,
        key=KEY,
        header=header,
    )
    became: list[StoredRequest | str] = []
    for line, content in enumerate(entries, 1):
        encoded = encoder.encoded(0, [(line, content, "name.xml")])
        became += [unpack_request(KEY.unseal("request", RUN, 0, sealed)) for _, _, sealed, _, _ in encoded.rows]
        became += [what for _, what, _ in encoded.faults]
    return became


def headers(configuration: Configuration, *entries: bytes, **how: Any) -> list[dict[bytes, bytes] | str]:
    found = requests(configuration, *entries, **how)
    return [one if isinstance(one, str) else dict(one.headers) for one in found]


def line(**entry: str) -> bytes:
    return json.dumps(entry).encode()


# Cutting.


@given(st.lists(st.binary(max_size=9).map(lambda one: one.replace(b"\n", b"")), max_size=8), st.integers(1, 9))
async def test_lines_do_not_depend_on_how_they_came(whole: list[bytes], size: int) -> None:
    expected = [(number, one, "") for number, one in enumerate(whole, 1) if one.strip()]
    assert await cut(lines, b"\n".join(whole), size) == expected
    assert await cut(lines, b"\n".join([*whole, b""]), size) == expected


CELLS = st.text(st.sampled_from('ab" ,;\n\u0085\u2028\u000b\u001cé'), max_size=5)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=6), st.integers(1, 9), st.sampled_from(["\n", "\r\n"]))
async def test_rows_are_what_was_written_however_they_came(
    cells: list[tuple[str, str]], size: int, newline: str
) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if set(cell) & set('",;\n') else cell

    text = f"one,two{newline}" + "".join(f"{quoted(a)},{quoted(b)}{newline}" for a, b in cells)
    found = await cut(rows, text.encode(), size)
    assert [fields for _, fields, _ in found] == [("one", "two"), *(row for row in cells if any(row))]
    numbers = [number for number, _, _ in found]
    at = 2
    for row in cells:
        if any(row):
            assert numbers[1:].count(at) == 1
        at += 1 + sum(cell.count("\n") for cell in row)


@pytest.mark.parametrize(
    ("octets", "what"),
    [
        (b'a,b\n"x,1\ny,2\n', "begins at line 2 has a quotation mark"),
        (b'a,b\nx","y\n', "Line 2 is not CSV"),
        (b"a,b\rx,y\rz,u\r", "Line 1 is not CSV"),
        (b"a,b\n1,2\n\xe9,1\n", "not UTF-8"),
        (b"a,b\n" + b"x" * (2 << 20), "Line 2 is longer than 1 MiB"),
        (b'a,b\n"' + b"\n" * (3 << 20), "begins at line 2 has a quotation mark"),
    ],
)
async def test_what_is_no_csv_says_where(octets: bytes, what: str) -> None:
    async with asyncio.timeout(20):  # a quadratic reader would need hours for the last one
        with pytest.raises(UnreadableError, match=what):
            await cut(rows, octets, 1 << 20)


async def test_a_line_without_end_is_not_kept() -> None:
    with pytest.raises(UnreadableError, match="Line 1 is longer than 8 MiB"):
        await cut(lines, b"x" * (9 << 20), 1 << 20)


async def test_others_get_their_turn_while_a_large_piece_is_cut() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    octets = b"a,b\n" + b"1,2\n" * 100_000
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(other())
        assert len(await cut(rows, octets, len(octets))) == 100_001
        task.cancel()
    assert turns >= len(octets) // SLICE


# Archives.


def tar(files: dict[str, bytes], **member: Any) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in member.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


FILES = {"./a/1.xml": b"x" * 1000, "b/1.xml": b"", "c.xml": b"z" * 512}
FOUND = [(1, b"x" * 1000, "a/1.xml"), (2, b"", "b/1.xml"), (3, b"z" * 512, "c.xml")]


@pytest.mark.parametrize("size", [1, 600, 1 << 20])
async def test_a_tar_and_one_in_several_gzips_have_their_files(size: int) -> None:
    octets = tar(FILES)
    assert await cut(tarred, octets, size) == FOUND
    assert await cut(tarred, gzip.compress(octets[:700]) + gzip.compress(octets[700:]), size) == FOUND


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("zip_it", [bytes, gzip.compress])
async def test_an_archive_that_was_cut_short_is_never_taken_for_a_whole_one(
    share: float, zip_it: Callable[[bytes], bytes]
) -> None:
    octets = zip_it(tar(FILES)[:3072])  # without its end, of zeros
    with pytest.raises(UnreadableError):
        await cut(tarred, octets[: int(len(octets) * share)], 100)
    with pytest.raises(UnreadableError):
        await cut(tarred, b"", 100)


async def test_a_tar_that_ends_between_two_files_is_not_whole() -> None:
    with pytest.raises(UnreadableError, match="after file 1"):
        await cut(tarred, tar({"a": b"x" * 512, "b": b"y"})[:1024], 100)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CHRTYPE])
async def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    with pytest.raises(UnreadableError, match="no plain file"):
        await cut(tarred, tar({"a": b""}, type=kind, linkname="/etc/passwd"), 600)


def zip_of(content: bytes, how: int, damage: bytes = b"") -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", how) as archive:
        archive.writestr("a/b.xml", content)
    octets = whole.getvalue()
    return octets.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01") if damage else octets


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_a_zip_of_any_kind_has_its_files_and_a_damaged_one_is_told(how: int) -> None:
    content = bytes(range(256)) * 4
    octets = zip_of(content, how)
    assert await cut(zipped, octets, 100) == [(1, content, "a/b.xml")]
    for at in range(45, 60):
        try:
            found = await cut(zipped, octets[:at] + bytes([octets[at] ^ 0xFF]) + octets[at + 1 :], 100)
        except UnreadableError:
            continue
        assert found == [(1, content, "a/b.xml")]


@pytest.mark.parametrize(
    ("octets", "what"),
    [
        (zip_of(b"x", zipfile.ZIP_STORED, b"1"), "encrypted"),
        (zip_of(bytes(9 << 20), zipfile.ZIP_DEFLATED), "larger than 8 MiB"),
    ],
)
async def test_what_is_not_read_from_a_zip_is_told(octets: bytes, what: str) -> None:
    with pytest.raises(UnreadableError, match=what):
        await cut(zipped, octets, 1 << 20)


# Messages.


def test_a_content_type_says_utf_8_only_where_it_is(configuration: Configuration) -> None:
    latin = ('<?xml version="1.0" encoding="ISO-8859-1"?>' + envelope("é")).encode("latin-1")
    found = headers(
        configuration,
        envelope("é").encode(),
        b"\xef\xbb\xbf" + envelope("é").encode(),
        latin,
        ('<?xml version="1.0"?>' + envelope("é")).encode("utf-16"),
        form="tar",
    )
    types = [one[b"Content-Type"] for one in found if isinstance(one, dict)]
    assert types == [b"text/xml; charset=utf-8", b"text/xml; charset=utf-8", b"text/xml", b"text/xml"]


@pytest.mark.parametrize(
    "entry",
    [
        {"body": '<?xml version="1.0" encoding="ISO-8859-1"?>' + envelope("é")},
        {"body": envelope("é"), "contentType": "text/xml; charset=iso-8859-1"},
    ],
)
def test_a_text_that_goes_out_as_utf_8_must_not_say_otherwise(
    configuration: Configuration, entry: dict[str, str]
) -> None:
    (what,) = requests(configuration, line(**entry))
    assert "UTF-8 and says otherwise" in str(what)


def test_soap_1_2_has_its_action_in_its_content_type(configuration: Configuration) -> None:
    entry = {"body": envelope("", SOAP_12)}
    assert headers(configuration, line(**entry), line(**entry, contentType='application/soap+xml; action="own"')) == [
        {b"Content-Type": b'application/soap+xml; charset=utf-8; action="act"'},
        {b"Content-Type": b'application/soap+xml; action="own"'},
    ]


def test_the_prefix_that_tags_bulk_is_not_sent(configuration: Configuration) -> None:
    (request,) = requests(configuration, line(body=envelope(""), path=f"/bulk{PATH}"))
    assert isinstance(request, StoredRequest)
    assert request.target == PATH.encode()


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (line(body=envelope(""), soapAction='a"b'), "quotation mark"),
        (line(body=envelope(""), contentType="text/xml\x7f"), "HTTP cannot carry"),
        (line(body=envelope(""), path=PATH + "\x7f"), "no path"),
        (line(body="<?xml"), "no sound message"),
        (b'{"body": "\\ud800"}', "no text"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"key": "\\ud800", "body": "x"}', "no text"),
        (line(base64="AAAA", contentType="multipart/related; boundary=x"), "no sound message"),
    ],
)
def test_what_cannot_be_sent_is_told_and_not_quoted(configuration: Configuration, entry: bytes, what: str) -> None:
    (found,) = requests(configuration, entry)
    assert what in str(found)
    assert "urn:q" not in str(found)


def test_a_multipart_message_is_looked_at_in_its_root(configuration: Configuration) -> None:
    wsu = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
    stale = f'<s:Header><u:Timestamp xmlns:u="{wsu}"><u:Expires>x</u:Expires></u:Timestamp></s:Header><s:Body>'
    found = requests(
        configuration,
        *(
            b"--x\r\nContent-Type: text/xml\r\n\r\n" + body.encode() + b"\r\n--x--\r\n"
            for body in (envelope(""), envelope("").replace("<s:Body>", stale))
        ),
        form="tar",
        content_type="multipart/related; boundary=x",
    )
    assert isinstance(found[0], StoredRequest)
    assert "stale" in str(found[1])


def test_numbers_are_sent_without_dots_and_rows_within_bounds(configuration: Configuration) -> None:
    template = envelope("{{ssin}}|{{name}}")
    how = {"form": "csv", "template": template, "ssin_columns": ("ssin",)}
    found = requests(configuration, ("00.00.00-000.97", "x"), ("97", "x"), **how)
    assert isinstance(found[0], StoredRequest)
    assert b">00000000097|x<" in found[0].body
    assert "no sound national number" in str(found[1])
    repeated = {**how, "template": envelope("{{name}}" * 300)}
    (what,) = requests(configuration, ("00000000097", "x" * 4096), **repeated)
    assert "larger than a bulk message" in str(what)


def test_a_template_that_would_be_stale_is_refused(configuration: Configuration) -> None:
    wsu = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
    stale = f'<s:Header><u:Timestamp xmlns:u="{wsu}"><u:Expires>x</u:Expires></u:Timestamp></s:Header><s:Body>'
    template = envelope("{{name}}").replace("<s:Body>", stale)
    assert "stale" in loader.why_not(configuration, Submission("csv", template=template))


# The whole.


async def checked(configuration: Configuration, octets: bytes, **how: Any) -> Taken:
    return await check(configuration, Submission(**{"form": "ndjson", "path": PATH, **how}), pieces(octets))


async def test_a_check_tells_the_lines_of_keys_that_came_before(configuration: Configuration) -> None:
    octets = b"\n".join(line(body=envelope(""), **key) for key in ({"key": "a"}, {}, {"key": "b"}, {"key": "a"}, {}))
    report = await checked(configuration, octets)
    assert (report.received, report.added, report.duplicates, report.faulty) == (5, 4, 1, 0)
    assert [(fault.line, fault.what) for fault in report.faults] == [(4, "has the key of an earlier entry")]


async def test_a_file_without_a_header_is_told_without_a_word_of_it(configuration: Configuration) -> None:
    with pytest.raises(UnreadableError) as caught:
        await checked(configuration, b"00000000097,Fictive\n", form="csv", template=envelope("{{ssin}}"))
    assert "no column ssin" in str(caught.value)
    assert "00000000097" not in str(caught.value)
    with pytest.raises(UnreadableError, match="empty"):
        await checked(configuration, b"", form="csv", template=envelope("{{ssin}}"))


async def test_portions_are_bounded_by_octets_too(configuration: Configuration) -> None:
    body = envelope("x" * 300_000)
    octets = b"\n".join(line(body=body) for _ in range(24))
    sizes = [
        len(entries)
        async for _, entries in loader._Cutting(Submission("ndjson", PATH), pieces(octets), 0, 0).portions()
    ]
    assert sum(sizes) == 24
    assert max(sizes) * len(body) < 2 * loader.PORTION_SIZE


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_a_zip_that_is_compressed_in_a_rare_way_is_not_read(how: int) -> None:
    with pytest.raises(UnreadableError, match="rare way"):
        await cut(zipped, zip_of(b"<a/>", how), 100)


async def test_a_file_that_inflates_to_more_than_its_table_says_costs_no_more_than_that() -> None:
    octets = zip_of(bytes(40 << 20), zipfile.ZIP_DEFLATED)
    said = (40 << 20).to_bytes(4, "little")
    assert octets.count(said) == 2, "in the file's own header and in the table"
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError):
            await cut(zipped, octets.replace(said, (100).to_bytes(4, "little")), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
