"""What the API asks of whoever makes items of what is submitted (`gateway.loading`, put in by `gateway.app`)."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from gateway.loading import Submission, Taken
from gateway.records import RunRecord
from gateway.sealing import RunKey


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
