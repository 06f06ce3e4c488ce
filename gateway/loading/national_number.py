"""Whether a national number (NISS/INSZ, or BIS) has the check digits that it should have.

Eleven digits: six of a date (with 20 or 40 added to the month in a BIS number), three of a row, and two that are 97
less the rest of the nine by 97; for who was born from 2000 on, of the nine with a 2 before them (Royal Decree of
3 April 1984). Whether there is such a person only the National Register knows.
"""

import re

_SEPARATED = re.compile(r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}[.-]?\d{2}", re.ASCII)


def is_sound(text: str) -> bool:
    """Say whether a text is a national number with right check digits; dots and dashes in their usual places are
    allowed."""
    if not _SEPARATED.fullmatch(text):
        return False
    digits = "".join(filter(str.isdigit, text))
    number, check = int(digits[:9]), int(digits[9:])
    return check in (97 - number % 97, 97 - (2_000_000_000 + number) % 97)
