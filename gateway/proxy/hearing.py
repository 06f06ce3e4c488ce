"""What bulk calls come to: answers are read from a copy once they have passed, and whom it concerns is told.

Told are the breaker of each source (was its end technical?), the accounts of a client-driven run, and the counter of
business statuses. Reading is `gateway.soap.outcome`'s, judging `policies.recovery`'s.

Rules that always hold:
- An answer passes first, untouched, and is read afterwards, beside nobody's way. Its copy is bounded: what is larger
  than `MOST_OCTETS` is judged by its status alone.
- Each bulk call that was sent is told once. Of one whose answer nobody saw whole, because its caller went away, only
  that it was sent.
- Nothing of an answer goes into a log or a metric but codes.

Never delays or changes an answer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.config import Configuration
from gateway.metrics import Metrics
from gateway.proxy.calls import Call
from gateway.proxy.kept import Behind, Noted
from gateway.proxy.relay import CutError
from gateway.upstream import Answer, GuardClosedError, UpstreamError
from policies.model import UNCLASSIFIED, ItemState
from policies.recovery import AnswerFacts, Disposition, Trouble, disposition
from policies.statuses import Kind

MOST_OCTETS = 4 * 1024 * 1024
"""Held for each bulk call in progress, of which there are as many as the caps allow."""
LARGE = 64 * 1024
"""Octets from which an answer is read in a thread: a millisecond of the event loop."""


class Heard:
    """A copy of one answer, taken as it passes."""

    __slots__ = ("_pieces", "_size", "answer")

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def begin(self, answer: Answer) -> Callable[[bytes], None]:
        """Note an answer's status and header; return what takes its body."""
        self.answer = answer
        return self._take

    def _take(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MOST_OCTETS:
            self._pieces.clear()
        else:
            self._pieces.append(piece)

    @property
    def body(self) -> bytes | None:
        """Return the body; None: it is too large to be read."""
        return None if self._size > MOST_OCTETS else b"".join(self._pieces)


class Hearing:
    """Judges how the bulk calls under one configuration end."""

    def __init__(self, configuration: Configuration, metrics: Metrics, behind: Behind, noted: Noted) -> None:
        self._statuses = configuration.statuses
        self._metrics = metrics
        self._behind = behind
        self._noted = noted
        self._is_warm = False  #: the reader's library is loaded

    @asynccontextmanager
    async def of(self, call: Call, sources: frozenset[str]) -> AsyncIterator[Heard]:
        """Hear one call: whatever ends the block, it is told."""
        heard = Heard()
        try:
            yield heard
        except GuardClosedError:  # nothing was sent
            raise
        except UpstreamError as trouble:
            self._failed(call, sources, trouble)
            raise
        except CutError as cut:
            if isinstance(cut.__cause__, UpstreamError):
                self._failed(call, sources, cut.__cause__)
            raise
        except BaseException:  # its caller went away: it was sent, and what it came to is not known
            self._account(call, None)
            raise
        await self._answered(call, sources, heard)

    async def _answered(self, call: Call, sources: frozenset[str], heard: Heard) -> None:
        answer, body = heard.answer, heard.body
        assert answer is not None
        if body is None:
            self._metrics.business(call.label, Kind.UNKNOWN)
            state = ItemState.DONE if answer.status < 400 else ItemState.FAILED
            judged = Disposition(state, f"HTTP {answer.status}", "its answer is too large to be read", Kind.UNKNOWN)
            self._told(call, sources, judged, technical=answer.status >= 500)
            return
        asked = (answer.status, _field(answer, b"content-type"), _field(answer, b"content-encoding"), body)
        if len(body) <= LARGE and self._is_warm:
            self._judge(call, sources, _read(*asked))
            return
        reading = asyncio.get_running_loop().run_in_executor(None, _read, *asked)
        try:
            facts = await asyncio.shield(reading)
        except asyncio.CancelledError:  # its caller has all of the answer, and has gone
            reading.add_done_callback(lambda done: self._judge(call, sources, done.result()))
            raise
        self._is_warm = True
        self._judge(call, sources, facts)

    def _judge(self, call: Call, sources: frozenset[str], facts: AnswerFacts) -> None:
        judged = self._judged(facts)
        self._metrics.business(call.label, judged.kind)
        # A success that is no SOAP message (REST, a file) says nothing against its source.
        self._told(call, sources, judged, technical=judged.technical and judged.kind is not Kind.UNKNOWN)

    def _failed(self, call: Call, sources: frozenset[str], trouble: UpstreamError) -> None:
        judged = self._judged(Trouble(trouble.reason, trouble.bytes_written))
        self._told(call, sources, judged, technical=judged.technical)

    def _judged(self, fact: AnswerFacts | Trouble) -> Disposition:
        # Who sent it repeats it, or does not: for us its one attempt is its last, and that it may be repeated at all
        # is not ours to doubt.
        return disposition(fact, self._statuses, repeatable=True, attempts=1, max_attempts=1)

    def _told(self, call: Call, sources: frozenset[str], judged: Disposition | None, *, technical: bool) -> None:
        # Where the sources are not known, nothing can be laid at the door of one of them.
        self._noted((UNCLASSIFIED,) if UNCLASSIFIED in sources else sources, technical)
        self._account(call, judged)

    def _account(self, call: Call, judged: Disposition | None) -> None:
        if call.run and (kept := self._behind()) is not None:
            kept.client_runs.ended(call.run, judged)


def _read(status: int, content_type: str, content_encoding: str, body: bytes) -> AnswerFacts:
    from gateway.soap.outcome import read_answer  # late: lxml takes longer to load than all else that a start needs

    return read_answer(status, content_type, content_encoding, body)


def _field(answer: Answer, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in answer.headers if key.lower() == name)
