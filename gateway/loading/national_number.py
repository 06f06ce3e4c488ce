"""Whether a national number (NISS/INSZ, or BIS) has the check digits that it should have.

Eleven digits: six of a date (with 20 or 40 added to the month in a BIS number), three of a row, and two that are 97
less the rest of the nine by 97; for who was born from 2000 on, of the nine with a 2 before them (Royal Decree of 3
April 1984). Whether there is such a person only the National Register knows.
"""

import re

_WRITTEN = re.compile(r"([0-9]{2})\.?([0-9]{2})\.?([0-9]{2})[- ]?([0-9]{3})[-. ]?([0-9]{2})")


def digits_of(text: str) -> str:
    """Return the eleven digits of a national number whose check digits are right, else nothing.

    Dots, dashes and blanks in their usual places are left out: no service wants them.
    """
    written = _WRITTEN.fullmatch(text)
    if written is None:
        return ""
    digits = "".join(written.groups())
    number, check = int(digits[:9]), int(digits[9:])
    return digits if check in (97 - number % 97, 97 - (2_000_000_000 + number) % 97) else ""
