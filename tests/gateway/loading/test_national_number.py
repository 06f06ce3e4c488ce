"""Check digits of national numbers, by arithmetic of the test's own. Numbers here are nobody's: day and month are 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loading.national_number import digits_of


@given(st.integers(0, 99), st.integers(0, 999), st.booleans())
def test_a_number_digits_of_with_its_own_check_digits_only(year: int, row: int, later: bool) -> None:
    number = year * 10_000_000 + row
    check = 97 - ((2_000_000_000 if later else 0) + number) % 97
    digits = f"{number:09d}{check:02d}"
    assert digits_of(digits)
    assert digits_of(f"{digits[:2]}.{digits[2:4]}.{digits[4:6]}-{digits[6:9]}.{digits[9:]}")
    others = [c for c in range(100) if digits_of(f"{number:09d}{c:02d}")]
    assert len(others) == 2 or check == (97 - number % 97) == (97 - (2_000_000_000 + number) % 97)


@pytest.mark.parametrize(
    "text", ["", "1", "0000000009", "000000000970", "0000000009a", "\u0660" * 9 + "97", "00/00/00-000.97"]
)
def test_what_is_no_number_is_not_sound(text: str) -> None:
    assert not digits_of(text)
