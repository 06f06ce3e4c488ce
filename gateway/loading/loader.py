"""Loads what is submitted: cuts it into entries, has processes of its own make items of them, and hands those over.

Reading, checking, compressing and encrypting a message takes some 50 us: for a million of them a minute of the event
loop, which real-time would feel. So it is done in other processes, a few hundred entries at a time.

Rules that always hold:
- Memory is bounded: so many portions are under way, and no more is read meanwhile.
- Items are added in the order of their entries; what the run has received already is passed over, not looked at.
- At the first fault loading stops, and nothing of its portion is added, unless the submission says to go on.
- The dictionary is made of a run's first entries, once, and sealed before it is stored.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import count
from multiprocessing import get_context
from types import TracebackType
from typing import Protocol

from gateway.config import Configuration
from gateway.loading.cutting import lines, rows, tarred, zipped
from gateway.loading.encoding import Encoder
from gateway.loading.submission import Fault, Raw, Submission, Taken, UnreadableError
from gateway.loading.template import Template
from gateway.records import Counts, Loaded, NewItem, RunRecord
from gateway.routing import Routes
from gateway.sealing import KeyRing, RunKey, train
from policies.model import RunKind, RunState

PORTION = 500
"""Entries that are encoded at a time: some 25 ms of a process, and a megabyte."""
SAMPLES = 1500
"""Entries that a dictionary is made of (engine measurements: 0.2 s, and more make it no better)."""
FEWEST_SAMPLES = 100
SHOWN = 100
"""Faults that are told; of the others only how many there are."""
_CUTS = {"ndjson": lines, "csv": rows, "tar": tarred, "zip": zipped}
Entries = list[tuple[int, Raw]]
Encoded = list[NewItem | Fault]


class Adds(Protocol):
    """Where items go: `Store.add_items`."""

    async def __call__(self, run_id: int, items: Sequence[NewItem], /, *, received: int | None) -> Loaded:
        """Add items, durably."""


class Loader:
    """Loads under one configuration at a time. `add` and `set_dictionary` are the store's."""

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        add: Adds,
        set_dictionary: Callable[[int, bytes], Awaitable[bytes]],
    ) -> None:
        self._configuration = configuration
        self._add = add
        self._set_dictionary = set_dictionary

    def route_of(self, path: str) -> str | None:
        """Return the prefix of the route that a path goes by; None: there is none."""
        route = Routes(self._configuration().settings.routes).of(path.encode("utf-8"))
        return route.prefix if route is not None else None

    def why_not(self, submission: Submission) -> str:
        """Say why nothing can be loaded so; empty: it can."""
        if submission.form != "csv":
            return "Only csv has a template." if submission.template else ""
        if not submission.template:
            return "CSV needs a template: an envelope with {{column}} where a value goes."
        try:
            Template(submission.template, self._configuration().catalogue.selectors, submission.content_type)
        except UnreadableError as why:
            return str(why)
        return ""

    async def take(
        self, run: RunRecord, key: RunKey, submission: Submission, octets: AsyncIterator[bytes], *, offset: int
    ) -> Taken:
        """Add what comes to a loading run; its first entry is number `offset` of the run.

        Raises:
            UnreadableError: it is not of its form.
            StoreError, StoreDownError: the store's own.
        """
        if offset > run.received:
            raise UnreadableError(f"Entries are missing: the run has received {run.received}. Go on from there.")
        taking = _Taking(self._configuration(), run, key, submission, self._add)
        async with aclosing(_numbered(submission, octets, offset, taking)) as entries:
            first = [one async for one in _at_most(entries, SAMPLES)]
            if run.dictionary is None and len(first) >= FEWEST_SAMPLES:
                await self._give_dictionary(taking, [raw for _, raw in first])
            async with taking:
                for start in range(0, len(first), PORTION):
                    await taking.take(first[start : start + PORTION])
                async for portion in _portions(entries):
                    await taking.take(portion)
                    if taking.stopped:
                        break
        return taking.taken()

    async def check(self, submission: Submission, octets: AsyncIterator[bytes]) -> Taken:
        """Read everything and store nothing."""
        return await check(self._configuration(), submission, octets)

    async def _give_dictionary(self, taking: "_Taking", entries: Sequence[Raw]) -> None:
        run = taking.run
        dictionary = await asyncio.to_thread(_dictionary, taking.encoder(), entries)
        if not dictionary:
            return
        sealed = taking.key.seal("dictionary", run.public_id, 0, dictionary)
        kept = await self._set_dictionary(run.id, sealed)
        taking.key = taking.key.with_dictionary(taking.key.unseal("dictionary", run.public_id, 0, kept))


async def check(configuration: Configuration, submission: Submission, octets: AsyncIterator[bytes]) -> Taken:
    """Read everything and store nothing: what is wrong, and how much of it. Raises UnreadableError."""

    async def nowhere(_run_id: int, items: Sequence[NewItem], *, received: int | None) -> Loaded:
        return Loaded(len(items), 0, received or 0)

    run, key = _nobody(), KeyRing(bytes(32)).new_key()[0]
    taking = _Taking(configuration, run, key, submission, nowhere, goes_on=True)
    async with aclosing(_numbered(submission, octets, 0, taking)) as entries, taking:
        async for portion in _portions(entries):
            await taking.take(portion)
    return taking.taken()


class _Taking:
    """One submission on its way."""

    def __init__(
        self,
        configuration: Configuration,
        run: RunRecord,
        key: RunKey,
        submission: Submission,
        add: Adds,
        *,
        goes_on: bool = False,
    ) -> None:
        self._configuration = configuration
        self.run = run
        self.key = key
        self._submission = submission
        self._add = add
        self._goes_on = goes_on or submission.go_on
        self.header: tuple[str, ...] = ()
        self.stopped = False
        self._received = run.received
        self._added = self._duplicates = self._faulty = 0
        self._faults: list[Fault] = []
        self._pool: ProcessPoolExecutor | None = None
        self._workers = os.cpu_count() or 1
        self._under_way: deque[tuple[int, asyncio.Future[Encoded]]] = deque()
        self._is_first = True

    def encoder(self) -> Encoder:
        """Return what makes items of this submission's entries."""
        settings = self._configuration.settings
        return Encoder(
            self._submission,
            self._configuration.catalogue,
            settings.routes,
            settings.bulk.body_limit,
            run=self.run.public_id,
            key=self.key,
            header=self.header,
        )

    async def __aenter__(self) -> "_Taking":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._under_way and kind is None:
                await self._hand_over()
        finally:
            for _, portion in self._under_way:
                portion.cancel()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    async def take(self, portion: Entries) -> None:
        """Have a portion encoded, and hand over what is ready; waits while enough is under way."""
        if not portion or self.stopped:
            return
        last = portion[-1][0] + 1
        loop = asyncio.get_running_loop()
        if self._is_first and len(portion) < PORTION:  # all there is: a process would take longer to start
            made = loop.run_in_executor(None, self.encoder().encoded, portion)
        else:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._workers, get_context("spawn"), initializer=_begin, initargs=(self.encoder(),)
                )
            made = loop.run_in_executor(self._pool, _encoded, portion)
        self._is_first = False
        self._under_way.append((last, made))
        while len(self._under_way) > 2 * self._workers:
            await self._hand_over()

    async def _hand_over(self) -> None:
        last, made = self._under_way.popleft()
        try:
            encoded = await made
        except BrokenProcessPool:
            raise UnreadableError(
                f"A process that reads entries ended (too little memory?). {self._received} were received: go on there."
            ) from None
        if self.stopped:
            return
        items = [one for one in encoded if isinstance(one, NewItem)]
        faults = [one for one in encoded if isinstance(one, Fault)]
        self._faulty += len(faults)
        self._faults += faults[: SHOWN - len(self._faults)]
        if faults and not self._goes_on:
            self.stopped = True
            return
        loaded = await self._add(self.run.id, items, received=last)
        self._received = max(loaded.received, last)
        self._added += loaded.added
        self._duplicates += loaded.duplicates

    def taken(self) -> Taken:
        """Return what became of it all."""
        return Taken(
            self._received, self._added, self._duplicates, tuple(self._faults), self._faulty, complete=not self.stopped
        )


_ENCODER: list[Encoder] = []


def _begin(encoder: Encoder) -> None:
    _ENCODER.append(encoder)


def _encoded(portion: Entries) -> Encoded:
    return _ENCODER[0].encoded(portion)


def _dictionary(encoder: Encoder, entries: Sequence[Raw]) -> bytes:
    return train(encoder.bodies(entries))


async def _numbered(
    submission: Submission, octets: AsyncIterator[bytes], offset: int, taking: _Taking
) -> AsyncGenerator[tuple[int, Raw], None]:
    """Yield what is new to the run, each with its number in it."""
    numbers = count(offset)
    async for raw in _CUTS[submission.form](octets):
        if submission.form == "csv" and not taking.header:
            taking.header = _header(submission, raw)
            continue
        number = next(numbers)
        if number >= taking.run.received:
            yield number, raw


def _header(submission: Submission, raw: Raw) -> tuple[str, ...]:
    assert isinstance(raw.content, tuple)
    header = tuple(map(str.strip, raw.content))
    if len(set(header)) < len(header):
        raise UnreadableError("The header names a column twice. Give each a name of its own.")
    places = Template(submission.template, {}, submission.content_type).columns
    wanted = (*places, *submission.ssin_columns, *filter(None, (submission.key_column,)))
    if missing := [column for column in dict.fromkeys(wanted) if column not in header]:
        raise UnreadableError(f"The header has no column {', '.join(missing)}. Its columns: {', '.join(header)}.")
    return header


async def _at_most(entries: AsyncIterator[tuple[int, Raw]], most: int) -> AsyncIterator[tuple[int, Raw]]:
    while most > 0 and (one := await anext(entries, None)) is not None:
        most -= 1
        yield one


async def _portions(entries: AsyncIterator[tuple[int, Raw]]) -> AsyncIterator[Entries]:
    while portion := [one async for one in _at_most(entries, PORTION)]:
        yield portion


def _nobody() -> RunRecord:
    """Return the run that is loaded when nothing is stored."""
    never = datetime.fromtimestamp(0, UTC)
    return RunRecord(
        id=0,
        public_id="0" * 32,
        kind=RunKind.FILE,
        name="",
        author="",
        route="",
        client="",
        state=RunState.LOADING,
        reason="",
        changed_by="",
        changed_at=never,
        created_at=never,
        priority=0,
        not_before=None,
        max_attempts=1,
        options={},
        wrapped_key=None,
        dictionary=None,
        received=0,
        total=0,
        counts=Counts(),
        attempts=0,
    )
