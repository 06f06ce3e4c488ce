"""What the API asks of whoever makes items of what is submitted (`gateway.loading`, put in by `gateway.app`)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.records import RunRecord
from gateway.sealing import RunKey


@dataclass(frozen=True, slots=True)
class Submission:
    """How a run's items come, and what they get where they do not say so themselves."""

    form: str  #: ndjson, tar, zip or csv
    path: str = ""
    soap_action: str = ""
    content_type: str = ""
    template: str = ""
    key_column: str = ""
    ssin_columns: tuple[str, ...] = ()
    go_on: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry. Never quotes it."""

    line: int  #: or number of the file in an archive, from 1
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of what was submitted."""

    received: int  #: entries of the run read so far
    added: int
    duplicates: int
    faults: Sequence[Fault] = ()  #: the first of them
    faulty: int = 0  #: how many there are in all
    complete: bool = True  #: False: stopped at a fault


class UnreadableError(Exception):
    """What was submitted is not what it says it is. The message says what to do; it quotes nothing."""


class Intake(Protocol):
    """Makes items of what is submitted."""

    def route_of(self, path: str) -> str | None:
        """Return the prefix of the route that a path goes by; None: there is none."""

    def why_not(self, submission: Submission) -> str:
        """Say why nothing can be loaded so (a placeholder that is no column's, no template for CSV); empty: it can."""

    async def take(
        self,
        run: RunRecord,
        key: RunKey,
        submission: Submission,
        octets: AsyncIterator[bytes],
        *,
        offset: int,
    ) -> Taken:
        """Add what comes to a loading run; the first entry is number `offset` of the run, and those below what the run
        has received already are skipped.

        Raises UnreadableError.
        """

    async def check(self, submission: Submission, octets: AsyncIterator[bytes]) -> Taken:
        """Read everything and store nothing."""


def submission_of(options: Mapping[str, Any], template: str, form: str) -> Submission:
    """Return how a run's items come, as its options say."""
    return Submission(
        form=form,
        path=options.get("path", ""),
        soap_action=options.get("soapAction", ""),
        content_type=options.get("contentType", ""),
        template=template,
        key_column=options.get("keyColumn", ""),
        ssin_columns=tuple(options.get("ssinColumns", ())),
        go_on=options.get("goOn", False),
    )
