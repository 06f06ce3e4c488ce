"""A buffer that was lent out is left alone until nobody looks into it, and serves again then."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.lending import READ_SIZE, Lender


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=200))
def test_what_was_lent_out_is_not_written_to_while_anybody_looks_into_it(steps: list[tuple[bool, int]]) -> None:
    lender = Lender()
    lent: list[tuple[memoryview, int]] = []
    for number, (receives, which) in enumerate(steps):
        if receives:
            lender.view[:] = bytes([number % 256]) * READ_SIZE
            lent.append((lender.view[which : READ_SIZE - which], number % 256))
            lender.lend()
        elif lent:
            lent.pop(which % len(lent))
        for view, octet in lent:
            assert view[0] == view[-1] == octet
        assert len(lender.view) == len(lender.octets) == READ_SIZE


def test_a_buffer_that_nobody_looks_into_any_more_serves_again() -> None:
    lender = Lender()
    seen = set()
    for _ in range(100):
        seen.add(id(lender.octets))
        piece = lender.view[:100_000]
        lender.lend()
        del piece
    assert len(seen) <= 3


def test_no_more_are_kept_than_are_worth_it() -> None:
    lender = Lender()
    views = []
    for _ in range(100):
        views.append(lender.view[:1])
        lender.lend()
    del views
    kept = {id(lender.octets)}
    for _ in range(200):
        lender.lend()
        kept.add(id(lender.octets))
    assert len(kept) <= 40
