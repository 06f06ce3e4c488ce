"""Loads what is submitted: cuts it into entries, has items made of them, and hands those over in their order.

Rules that always hold:
- Memory is bounded: so many portions are under way, and no more is read meanwhile.
- Items are added in the order of their entries; what the run has received already is passed over, not looked at.
- At the first fault loading stops, and nothing of its portion is added, unless the submission says to go on: then the
  faulty entry is left out, and counts as received.
- The dictionary is made of a run's first entries, once, and sealed before it is stored.
"""

import asyncio
import os
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol

from gateway.config import Configuration
from gateway.loading.archives import tarred, zipped
from gateway.loading.cutting import lines, rows
from gateway.loading.encoding import Encoded, Encoder, columns_of, faults_of
from gateway.loading.processes import Processes, result_of
from gateway.loading.submission import Fault, Raw, Submission, Taken, UnreadableError
from gateway.loading.template import Template
from gateway.records import Counts, Loaded, NewItem, RunRecord
from gateway.routing import Routes
from gateway.sealing import KeyRing, RunKey
from policies.model import RunKind, RunState

PORTION = 500
"""Entries that are encoded at a time: some 10 to 30 ms of a process."""
PORTION_SIZE = 1 << 20
"""Octets from which a portion is none the larger."""
SAMPLES = 1500
"""Entries that a dictionary is made of (engine measurements: 0.2 s, and more make it no better)."""
SAMPLES_SIZE = 4 << 20
FEWEST_SAMPLES = 100
FEW, FEW_SIZE = 50, 65_536
"""What is so little is encoded here: 10 ms, where a process takes half a second to start."""
MOST_WORKERS = 4
"""They make some 150,000 items a second; no store takes as many, and each has 40 MiB."""
SHOWN = 100
"""Faults that are told; of the others only how many there are."""
REMEMBERED = 1_000_000
"""Keys among which a check looks for duplicates: 100 MB. Loading needs none: the store knows them all."""
_CUTS: dict[str, Callable[[AsyncIterator[bytes]], AsyncGenerator[list[Raw]]]] = {
    "ndjson": lines,
    "csv": rows,
    "tar": tarred,
    "zip": zipped,
}
Portion = tuple[int, list[Raw]]
"""Entries that follow each other, and the number of the first in the run."""


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
        route = Routes(self._configuration().settings.routes).of(path.encode("utf-8", "replace"))
        return route.prefix if route is not None else None

    def why_not(self, submission: Submission) -> str:
        """Say why nothing can be loaded so; empty: it can."""
        return why_not(self._configuration(), submission)

    async def take(
        self, run: RunRecord, key: RunKey, submission: Submission, octets: AsyncIterator[bytes], *, offset: int
    ) -> Taken:
        """Add what comes to a loading run; its first entry is number `offset` of the run.

        Args:
            key: with the run's dictionary, where it has one.

        Raises:
            UnreadableError: it is not of its form, or (BrokenOffError) could not be read on.
            StoreError, StoreDownError: the store's own.
        """
        if offset > run.received:
            raise UnreadableError(f"Entries are missing: the run has received {run.received}. Go on from there.")
        cutting = _Cutting(submission, octets, offset, run.received)
        async with aclosing(cutting.portions()) as portions:
            first = await _first(portions)
            encoder = _encoder(self._configuration(), submission, run.public_id, key, cutting.header)
            async with _Taking(run, encoder, self._add, goes_on=submission.go_on, little=_is_little(first)) as taking:
                if run.dictionary is None:
                    await self._give_dictionary(run, key, taking, first)
                for portion in first:
                    await taking.take(portion)
                async for portion in portions:
                    if taking.stopped:
                        break
                    await taking.take(portion)
        return taking.taken()

    async def check(self, submission: Submission, octets: AsyncIterator[bytes]) -> Taken:
        """Read everything and store nothing."""
        return await check(self._configuration(), submission, octets)

    async def _give_dictionary(self, run: RunRecord, key: RunKey, taking: "_Taking", first: Sequence[Portion]) -> None:
        samples = [raw for _, entries in first for raw in entries]
        if len(samples) < FEWEST_SAMPLES or not (dictionary := await taking.trained(samples)):
            return
        kept = await self._set_dictionary(run.id, key.seal("dictionary", run.public_id, 0, dictionary))
        taking.use(key.unseal("dictionary", run.public_id, 0, kept))  # another's, if that was the first


def why_not(configuration: Configuration, submission: Submission) -> str:
    """Say why nothing can be loaded so; empty: it can."""
    if submission.form != "csv":
        return "Only csv has a template." if submission.template else ""
    if not submission.template:
        return "CSV needs a template: an envelope with {{column}} where a value goes."
    try:
        Template(submission.template, configuration.catalogue.selectors, submission.content_type)
    except UnreadableError as why:
        return str(why)
    return ""


async def check(configuration: Configuration, submission: Submission, octets: AsyncIterator[bytes]) -> Taken:
    """Read everything and store nothing: what is wrong, and how much of it. Raises UnreadableError."""
    cutting = _Cutting(submission, octets, 0, 0)

    async def nowhere(_run_id: int, items: Sequence[NewItem], /, *, received: int | None) -> Loaded:
        return Loaded(len(items), 0, received or 0)

    async with aclosing(cutting.portions()) as portions:
        first = await _first(portions)
        key = KeyRing(secrets.token_bytes(32)).new_key()[0]
        encoder = _encoder(configuration, submission, _NOBODY.public_id, key, cutting.header)
        async with _Taking(_NOBODY, encoder, nowhere, goes_on=True, little=_is_little(first), keys=set()) as taking:
            for portion in first:
                await taking.take(portion)
            async for portion in portions:
                await taking.take(portion)
    return taking.taken()


def _encoder(
    configuration: Configuration, submission: Submission, run: str, key: RunKey, header: tuple[str, ...]
) -> Encoder:
    settings = configuration.settings
    limit = settings.bulk.body_limit
    return Encoder(submission, configuration.catalogue, settings.routes, limit, run=run, key=key, header=header)


class _Cutting:
    """Makes portions of what comes; those that the run has received already are passed over."""

    def __init__(self, submission: Submission, octets: AsyncIterator[bytes], offset: int, received: int) -> None:
        self._submission = submission
        self._octets = octets
        self._number = offset
        self._received = received
        self.header: tuple[str, ...] = ()  #: of a CSV, once its first portion is there

    async def portions(self) -> AsyncGenerator[Portion]:
        """Yield what is new to the run, a portion at a time."""
        waiting: list[Raw] = []
        size = 0
        async with aclosing(_CUTS[self._submission.form](self._octets)) as cut:
            async for entries in cut:
                for raw in entries:
                    if self._submission.form == "csv" and not self.header:
                        self.header = _header(self._submission, raw)
                        continue
                    self._number += 1
                    if self._number <= self._received:
                        continue
                    waiting.append(raw)
                    size += len(raw[1]) if isinstance(raw[1], bytes) else sum(map(len, raw[1]))
                    if len(waiting) >= PORTION or size >= PORTION_SIZE:
                        yield self._number - len(waiting), waiting
                        waiting, size = [], 0
        if self._submission.form == "csv" and not self.header:
            raise UnreadableError("It is empty: not even a header with the names of the columns.")
        if waiting:
            yield self._number - len(waiting), waiting


async def _first(portions: AsyncIterator[Portion]) -> list[Portion]:
    """Return as many portions as a dictionary is made of, or all there are."""
    first: list[Portion] = []
    count = size = 0
    while count < SAMPLES and size < SAMPLES_SIZE and (portion := await anext(portions, None)) is not None:
        first.append(portion)
        count += len(portion[1])
        size += _size(portion)
    return first


def _is_little(first: Sequence[Portion]) -> bool:
    """Say whether these are all, and little."""
    return sum(len(entries) for _, entries in first) <= FEW and sum(map(_size, first)) <= FEW_SIZE


def _size(portion: Portion) -> int:
    return sum(len(raw[1]) if isinstance(raw[1], bytes) else sum(map(len, raw[1])) for raw in portion[1])


def _header(submission: Submission, raw: Raw) -> tuple[str, ...]:
    assert isinstance(raw[1], tuple)
    header = tuple(map(str.strip, raw[1]))
    if len(set(header)) < len(header):
        raise UnreadableError("The header names a column twice. Give each a name of its own.")
    wanted = columns_of(submission, Template(submission.template, {}, submission.content_type))
    if missing := [column for column in wanted if column not in header]:
        raise UnreadableError(
            f"The first line has no column {', '.join(missing)}. It must name the columns; it has {len(header)}."
        )
    return header


class _Taking:
    """One submission on its way. `keys`: the tags seen so far, where nothing else knows them."""

    def __init__(
        self,
        run: RunRecord,
        encoder: Encoder,
        add: Adds,
        *,
        goes_on: bool,
        little: bool,
        keys: set[bytes] | None = None,
    ) -> None:
        self._run_id = run.id
        self._encoder = encoder
        self._add = add
        self._goes_on = goes_on
        self._little = little
        self._keys = keys
        self._workers = min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) - 1))  # one is the gateway's
        self._processes: Processes | None = None
        self._under_way: deque[tuple[Portion, asyncio.Future[Encoded]]] = deque()
        self.stopped = False
        self._received = run.received
        self._added = self._duplicates = self._faulty = 0
        self._faults: list[Fault] = []

    async def __aenter__(self) -> "_Taking":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._under_way and kind is None:
                await self._hand_over()
        finally:
            for _, work in self._under_way:
                if not work.cancel() and not work.cancelled():
                    work.exception()  # looked at, or asyncio complains of it: the first one was told
            if self._processes is not None:
                await self._processes.close()

    async def trained(self, samples: Sequence[Raw]) -> bytes:
        """Return a dictionary made of these entries; empty where they do not make one."""
        return await self._others().dictionary(samples)

    def use(self, dictionary: bytes) -> None:
        """Compress with a dictionary from now on."""
        self._others().use(dictionary)

    async def take(self, portion: Portion) -> None:
        """Have a portion encoded, and hand over what is ready; waits while enough is under way."""
        if self.stopped:
            return
        if self._little:
            work = asyncio.get_running_loop().run_in_executor(None, self._encoder.encoded, *portion)
        else:
            work = self._others().encode(*portion)
        self._under_way.append((portion, work))
        while len(self._under_way) > 2 * self._workers:
            await self._hand_over()

    def _others(self) -> Processes:
        if self._processes is None:
            self._processes = Processes(self._encoder, self._workers)
        return self._processes

    async def _hand_over(self) -> None:
        (number, entries), work = self._under_way.popleft()
        encoded = await result_of(work)
        if self.stopped:
            return
        self._faulty += len(encoded.faults)
        self._faults += faults_of(encoded)[: SHOWN - len(self._faults)]
        if encoded.faults and not self._goes_on:
            self.stopped = True
            return
        if self._keys is not None:
            self._look_for_duplicates(self._keys, number, entries, encoded)
        lanes = encoded.lanes
        items = [NewItem(seq, lanes[lane], sealed, tag, key) for seq, lane, sealed, tag, key in encoded.rows]
        loaded = await self._add(self._run_id, items, received=number + len(entries))
        self._received = loaded.received
        self._added += loaded.added
        self._duplicates += loaded.duplicates

    def _look_for_duplicates(self, keys: set[bytes], number: int, entries: Sequence[Raw], encoded: Encoded) -> None:
        for seq, _, _, tag, _ in encoded.rows:
            if not tag:
                continue
            if tag in keys:
                self._duplicates += 1
                self._added -= 1
                if len(self._faults) < SHOWN:
                    line = entries[seq - number][0]
                    self._faults.append(Fault(line, "has the key of an earlier entry", "A key is sent once; look why."))
            elif len(keys) < REMEMBERED:
                keys.add(tag)

    def taken(self) -> Taken:
        """Return what became of it all."""
        faults = tuple(self._faults)
        complete = not self.stopped
        return Taken(self._received, self._added, self._duplicates, faults, self._faulty, complete=complete)


_NEVER = datetime.fromtimestamp(0, UTC)
_NOBODY = RunRecord(
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
    changed_at=_NEVER,
    created_at=_NEVER,
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
"""The run that is loaded when nothing is stored."""
