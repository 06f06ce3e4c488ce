"""What a group commit writes: what became of items, in the order in which it was handed in, and batches that are over.

Rules that always hold:
- A batch is finished in the commit that holds the last of its entries, or in a later one.
- Halves keep the order, and entries come before what is finished by them: each can be written by itself.
- A commit holds one entry at least, however large.

Decides nothing about items, and asks nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.records import Result, Returned

MOST_ENTRIES = 1000
"""Entries of one commit."""
COMMIT_BYTES = 16 * 1024 * 1024
"""Answers of one commit, roughly: more would take longer than a store may take (`store.timeout`), each time anew."""

Entry = Result | Returned


@dataclass(slots=True)
class Gathered:
    """What is to be written."""

    entries: list[Entry] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)

    def cut(self) -> "tuple[Gathered, Gathered]":
        """Return what the next commit writes, and what waits for a later one."""
        many = _so_many(self.entries)
        now, later = self.entries[:many], self.entries[many:]
        unwritten = {entry.batch_id for entry in later}
        return Gathered(now, self.finished - unwritten), Gathered(later, self.finished & unwritten)

    def halves(self) -> "list[Gathered]":
        """Return it in two parts; empty: it is one thing alone."""
        if self.entries and self.finished:
            return [Gathered(self.entries), Gathered(finished=self.finished)]
        if (many := len(self.entries)) > 1:
            return [Gathered(self.entries[: many // 2]), Gathered(self.entries[many // 2 :])]
        if (many := len(self.finished)) > 1:
            numbers = sorted(self.finished)
            return [Gathered(finished={*numbers[: many // 2]}), Gathered(finished={*numbers[many // 2 :]})]
        return []

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.entries or self.finished)

    @property
    def octets(self) -> int:
        """Return how large its answers are."""
        return octets(self.entries)


def octets(entries: Iterable[Entry]) -> int:
    """Return how large the answers among these are."""
    return sum(len(one.sealed) for one in entries if isinstance(one, Result))


def joined(parts: Iterable[Gathered]) -> Gathered:
    """Return several as one."""
    whole = Gathered()
    for part in parts:
        whole.entries += part.entries
        whole.finished |= part.finished
    return whole


def _so_many(entries: list[Entry]) -> int:
    """Return how many entries go into the next commit."""
    size = 0
    for number, entry in enumerate(entries[:MOST_ENTRIES]):
        size += octets((entry,))
        if size > COMMIT_BYTES and number:
            return number
    return min(len(entries), MOST_ENTRIES)
