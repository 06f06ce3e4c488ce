"""What is submitted, and what becomes of it: values that whoever submits, reads and reports shares.

Rules that always hold: a fault says where and what, and never quotes what was submitted: keys and columns often are
national numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FORMS = ("ndjson", "csv", "tar", "zip")
Raw = tuple[int, bytes | tuple[str, ...], str]
"""One entry as it was cut out, not looked into yet: its line (in an archive: its number), from 1; an NDJSON line, an
XML file or the fields of a CSV row; the name of a file in an archive. A plain tuple: it goes to another process."""


@dataclass(frozen=True, slots=True)
class Submission:
    """How a run's items come, and what they get where they do not say so themselves."""

    form: str  #: one of FORMS
    path: str = ""
    soap_action: str = ""
    content_type: str = ""
    template: str = ""  #: csv: the envelope, with {{column}} where a value goes
    key_column: str = ""  #: csv: the column that is the client key
    ssin_columns: tuple[str, ...] = ()  #: csv: columns of national numbers, whose check digits must be right
    go_on: bool = False  #: leave faulty entries out and go on


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry."""

    line: int  #: or number of the file in an archive, from 1
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of what was submitted."""

    received: int  #: entries of the run read so far
    added: int
    duplicates: int
    faults: Sequence[Fault] = ()  #: the first of them; a check tells of duplicate keys here too
    faulty: int = 0  #: how many entries cannot be items, in all
    complete: bool = True  #: False: stopped at a fault


class UnreadableError(Exception):
    """What was submitted is not what it says it is. The message says what to do; it quotes nothing."""


class BrokenOffError(UnreadableError):
    """It could not be read to its end, and what was submitted is not to blame: what was received stays."""
