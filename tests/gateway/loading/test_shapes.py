"""A message whose shape is known has the digest that a strict reading gives it, whatever its text says."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.loading.shapes import LARGEST, MOST, Shapes
from gateway.soap import digest
from policies.model import Style

KIND = "text/xml; charset=utf-8"
FIRST = (
    b'<?xml version="1.0"?>\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Header/><s:Body>'
    b'<q:ask xmlns:q="urn:q" a="1"><ssin>00000000097</ssin><name>x</name></q:ask></s:Body></s:Envelope>\n'
)


def known() -> Shapes:
    shapes = Shapes(frozenset())
    shapes.learn(FIRST, KIND, digest(FIRST, content_type=KIND))
    return shapes


PIECES = st.sampled_from(
    [b"<", b">", b"&", b"&amp;", b"]]>", b"<![CDATA[", b"<!--", b"-->", b"<?p?>", b"\x00", b"\x1f", b"\xc3\xa9",
     b"\xff", b"<x/>", b"</x>", b"text", b" ", b"\n", b"'", b'"', b"s:Body", b"<s:Body/>", b""]
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, len(FIRST)), st.integers(0, 12), PIECES), max_size=4))
@example([(FIRST.index(b"\n<s:"), 1, b"junk")])
@example([(len(FIRST), 0, b"junk")])
@example([(FIRST.index(b'a="1"') + 3, 1, b">")])
def test_a_known_shape_is_never_another_digest(edits: list[tuple[int, int, bytes]]) -> None:
    body = FIRST
    for at, length, piece in edits:
        body = body[:at] + piece + body[at + length :]
    found = known().digest_of(body, KIND)
    if found is not None:
        assert found == digest(body, content_type=KIND)
        assert found.style is Style.SOA


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<>&"), max_size=30))
def test_messages_that_differ_in_values_only_have_one_shape(value: str) -> None:
    body = FIRST.replace(b"00000000097", value.encode())
    assert known().digest_of(body, KIND) == digest(FIRST, content_type=KIND)


def test_another_content_type_is_another_shape() -> None:
    assert known().digest_of(FIRST, "text/xml; charset=utf-16") is None


@pytest.mark.parametrize(
    "body",
    [
        FIRST.replace(b"<ssin>", b"<!--c--><ssin>"),
        FIRST.replace(b"<ssin>", b"<?p x?><ssin>"),
        FIRST.replace(b"<ssin>", b"<![CDATA[x]]><ssin>"),
        FIRST.replace(b"x</name>", b"></name>"),
        FIRST.replace(b'a="1"', b'a=">" b="1"'),
        b"\xef\xbb\xbf" + FIRST,
        FIRST.decode().encode("utf-16"),
        FIRST.replace(b"<name>x", b"<name>" + b"x" * LARGEST),
    ],
)
def test_a_message_that_is_more_than_tags_and_texts_is_read_each_time(body: bytes) -> None:
    found = digest(body)
    assert found.style is Style.SOA
    shapes = Shapes(frozenset())
    shapes.learn(body, "", found)
    assert shapes.digest_of(body, "") is None


@pytest.mark.parametrize("text", [b"&lt;", b"&#9;", b"caf\xc3\xa9", b"\x7f"])
def test_a_text_that_is_not_plain_is_part_of_the_shape(text: bytes) -> None:
    body = FIRST.replace(b"<name>x", b"<name>" + text)
    shapes = known()
    assert shapes.digest_of(body, KIND) is None
    shapes.learn(body, KIND, digest(body, content_type=KIND))
    assert shapes.digest_of(body.replace(b"00000000097", b"1"), KIND) is not None
    assert shapes.digest_of(body.replace(text, text * 2), KIND) is None


def test_what_is_remembered_is_bounded() -> None:
    shapes = Shapes(frozenset())
    found = digest(FIRST, content_type=KIND)
    for number in range(3 * MOST):
        shapes.learn(FIRST.replace(b'a="1"', b'a="%d"' % number), KIND, found)
        assert len(shapes._known) <= MOST
    assert shapes.digest_of(FIRST.replace(b'a="1"', b'a="%d"' % number), KIND) is found


def test_an_operation_that_names_sources_in_its_text_is_read_each_time() -> None:
    shapes = Shapes(frozenset({"urn:q"}))
    shapes.learn(FIRST, KIND, digest(FIRST, content_type=KIND))
    assert shapes.digest_of(FIRST, KIND) is None
