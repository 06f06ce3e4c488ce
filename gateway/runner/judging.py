"""What follows from one attempt: its answer is read, judged, sealed and handed in; what it says is accounted for.

Rules that always hold:
- Each attempt is handed in once, as a result or as an item that waits again, and its sources' breakers hear of it.
- An answer that came is kept with its item's result, also a reject's and a failure's.
- Nothing of an answer goes into a log or a metric but codes.

Reading is `gateway.soap.outcome`'s, judging `policies.recovery`'s, writing the committer's.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from gateway.log import EventLog
from gateway.metrics import Metrics
from gateway.packing import StoredAnswer, StoredRequest, pack_answer, unpack_request
from gateway.records import Result, Returned, RunRecord, StoredItem
from gateway.runner.accounts import Accounts, RejectTerms
from gateway.runner.committer import Committer
from gateway.runner.feed import Item
from gateway.runner.sending import Attempt, Site, field_of
from gateway.sealing import RunKey, SealError
from gateway.soap.outcome import read_answer
from policies.model import ItemState, TrafficClass
from policies.recovery import Disposition, Trouble, backoff_s, disposition

LARGE = 128 * 1024
"""Octets from which a message is sealed, opened and read in a thread: half a millisecond of the event loop."""
UNREADABLE = "unreadable"
"""The code of an item that cannot be opened."""


@dataclass(slots=True, eq=False)
class RunInHand:
    """A run of which this process has lanes at work."""

    record: RunRecord
    key: RunKey
    lanes: int = 0


class Judge:
    """Judges what calls came to, for all lanes. `hold` is told of runs that must not go on."""

    def __init__(
        self,
        committer: Committer,
        accounts: Accounts,
        metrics: Metrics,
        log: EventLog,
        dice: Random,
        site: Callable[[], Site],
        *,
        noted: Callable[[Iterable[str], bool], None],
        hold: Callable[[RunInHand, str], None],
    ) -> None:
        self._committer = committer
        self._accounts = accounts
        self._metrics = metrics
        self._log = log
        self._dice = dice
        self._site = site
        self._noted = noted
        self._hold = hold

    # Before the call.

    async def opened(self, run: RunInHand, items: Iterable[StoredItem]) -> list[StoredRequest | None]:
        """Open stored requests; None for one that cannot be opened."""
        stored = list(items)
        if sum(len(one.sealed) for one in stored) > LARGE:
            return await asyncio.to_thread(self._open_all, run, stored)
        return self._open_all(run, stored)

    def _open_all(self, run: RunInHand, stored: list[StoredItem]) -> list[StoredRequest | None]:
        return [_opened(run, one) for one in stored]

    # After it.

    async def conclude(
        self,
        run: RunInHand,
        item: Item,
        label: str,
        sources: frozenset[str],
        *,
        repeatable: bool,
        attempt: Attempt | None,
    ) -> None:
        """Judge one attempt and hand it in. No attempt: the item could not be opened, and never will be."""
        stored = item.stored
        if attempt is None:
            unreadable = Result(
                item.batch.batch_id, stored.lane_id, stored.position, stored.attempts, ItemState.FAILED, code=UNREADABLE
            )
            self._hand_in(run, unreadable)
            self._log.error(
                "item cannot be opened",
                run=run.record.public_id,
                seq=stored.seq,
                remedy="Its key or what is stored is not what it was. Look at the store's disk, and at `store.key`.",
            )
            return
        judged = await self._judged(
            attempt, repeatable=repeatable, attempts=stored.attempts + 1, most=run.record.max_attempts
        )
        self._count(label, sources, attempt, judged)
        if judged.state is ItemState.WAITING:
            settings = self._site().settings.runs
            made = stored.attempts + judged.counts
            delay_s = backoff_s(stored.attempts + 1, settings.retry_first, settings.retry_longest, self._dice.random())
            self._committer.add(
                Returned(item.batch.batch_id, stored.lane_id, stored.position, made, delay_s, judged.code)
            )
        else:
            sealed = b""
            if attempt.answer is not None:
                sealed = await self._sealed(run, stored, attempt.answer)
            status = attempt.answer.status if attempt.answer is not None else 0
            result = Result(
                item.batch.batch_id,
                stored.lane_id,
                stored.position,
                stored.attempts + 1,
                judged.state,
                status,
                judged.code,
                round(attempt.took_s * 1000),
                sealed,
            )
            self._hand_in(run, result)
        self._line(run, item, label, attempt, judged)
        if judged.holds_run:
            self._hold(run, f"{judged.code}: {judged.meaning}")

    async def _judged(self, attempt: Attempt, *, repeatable: bool, attempts: int, most: int) -> Disposition:
        statuses = self._site().configuration.statuses
        answer, trouble = attempt.answer, attempt.trouble
        if answer is not None:
            asked = (
                answer.status,
                field_of(answer, b"content-type"),
                field_of(answer, b"content-encoding"),
                answer.body,
            )
            facts = await asyncio.to_thread(read_answer, *asked) if len(answer.body) > LARGE else read_answer(*asked)
            return disposition(facts, statuses, repeatable=repeatable, attempts=attempts, max_attempts=most)
        assert trouble is not None
        fact = Trouble(trouble.reason, trouble.bytes_written)
        return disposition(fact, statuses, repeatable=repeatable, attempts=attempts, max_attempts=most)

    async def _sealed(self, run: RunInHand, stored: StoredItem, answer: StoredAnswer) -> bytes:
        def seal() -> bytes:
            return run.key.seal("answer", run.record.public_id, stored.seq, pack_answer(answer))

        return await asyncio.to_thread(seal) if len(answer.body) > LARGE else seal()

    def _hand_in(self, run: RunInHand, result: Result) -> None:
        self._committer.add(result)
        account = self._accounts.of(run.record.id)
        account.count(result.state)
        if result.state in (ItemState.REJECTED, ItemState.FAILED):
            settings = self._site().settings.runs
            terms = RejectTerms(settings.reject_ratio, settings.reject_minimum).of_run(run.record.options)
            if why := terms.broken_by(account):
                self._hold(run, why)

    def _count(self, label: str, sources: frozenset[str], attempt: Attempt, judged: Disposition) -> None:
        meters = self._metrics.call(label, TrafficClass.BULK)
        if attempt.answer is not None:
            meters.outcomes["forwarded"].inc()
            meters.upstream_seconds.observe(attempt.took_s)
        else:
            meters.outcomes["upstream_error"].inc()
        self._metrics.business(label, judged.kind)
        self._noted(sources, judged.technical)

    def _line(self, run: RunInHand, item: Item, label: str, attempt: Attempt, judged: Disposition) -> None:
        self._log.info(
            "item",
            run=run.record.public_id,
            seq=item.stored.seq,
            source=label,
            state=judged.state,
            code=judged.code,
            attempt=item.stored.attempts + 1,
            status=attempt.answer.status if attempt.answer is not None else 0,
            upstream_ms=round(attempt.took_s * 1000, 3),
        )


def _opened(run: RunInHand, stored: StoredItem) -> StoredRequest | None:
    try:
        return unpack_request(run.key.unseal("request", run.record.public_id, stored.seq, stored.sealed))
    except (SealError, ValueError):
        return None
