"""What is packed comes back the same, octet for octet."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.packing import (
    StoredAnswer,
    StoredRequest,
    new_seq,
    pack_answer,
    pack_request,
    storable,
    unpack_answer,
    unpack_request,
)

FIELDS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=8).map(tuple)


@given(st.binary(max_size=60), FIELDS, st.binary(max_size=2000), st.binary(max_size=8))
def test_a_request_comes_back_the_same(target: bytes, headers: object, body: bytes, method: bytes) -> None:
    request = StoredRequest(target, headers, body, method)
    assert unpack_request(pack_request(request)) == request


@given(st.integers(0, 999), st.binary(max_size=60), FIELDS, st.binary(max_size=2000))
def test_an_answer_comes_back_the_same(status: int, reason: bytes, headers: object, body: bytes) -> None:
    answer = StoredAnswer(status, reason, headers, body)
    assert unpack_answer(pack_answer(answer)) == answer


@pytest.mark.parametrize("octets", [b"", b"2", b"2\n{}", b"x\n[]", b"2\n[]body"])
def test_anything_else_is_not_unpacked(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        unpack_answer(octets)


def test_credentials_are_not_stored() -> None:
    fields = [(b"AUTHORIZATION", b"Basic x"), (b"Cookie", b"a=b"), (b"Host", b"h"), (b"SOAPAction", b'""')]
    assert storable(fields) == ((b"SOAPAction", b'""'),)


BEGUN = datetime(2026, 11, 24, tzinfo=UTC)


@given(st.timedeltas(timedelta(hours=-23), timedelta(days=90)))
def test_sequence_numbers_follow_time(after: timedelta) -> None:
    now = BEGUN + after
    assert 0 <= new_seq(now, BEGUN) < new_seq(now + timedelta(milliseconds=2), BEGUN)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_sequence_numbers_are_whole_in_any_reader_of_json_whatever_the_clocks_say(now: datetime) -> None:
    seq = new_seq(now, BEGUN)
    assert 0 <= seq < 1 << 53
    assert int(float(seq)) == seq
