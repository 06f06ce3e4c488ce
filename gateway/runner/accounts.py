"""Accounts of runs: what this process has settled of each, and whether too much of it was rejected.

Rules that always hold:
- A run is judged by what was settled since it was last paused or taken up by this process, so that a person who
  resumes a run with many rejects is not overruled at once.
- Everything is bounded: the account least recently used is forgotten.

Never writes a run's state: it says what should be.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from policies.model import ItemState
from policies.recovery import too_many_rejects

MOST_RUNS = 1000


@dataclass(slots=True)
class Account:
    """What this process has settled of one run since its last pause."""

    done: int = 0
    rejected: int = 0
    failed: int = 0
    settled: int = 0

    def count(self, state: ItemState) -> None:
        """Count a settled item."""
        self.done += state is ItemState.DONE
        self.rejected += state is ItemState.REJECTED
        self.failed += state is ItemState.FAILED
        self.settled += 1


class Accounts:
    """All accounts of this process, by run id."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[int, Account] = OrderedDict()

    def of(self, run_id: int) -> Account:
        """Return a run's account, a new one if there is none."""
        account = self._accounts.get(run_id)
        if account is None:
            account = self._accounts[run_id] = Account()
            if len(self._accounts) > MOST_RUNS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(run_id)
        return account

    def close(self, run_id: int) -> None:
        """Begin anew: the run was paused, or has ended."""
        self._accounts.pop(run_id, None)


@dataclass(frozen=True, slots=True)
class RejectTerms:
    """When a run has too many rejects."""

    ratio: float
    minimum: int

    def of_run(self, options: Mapping[str, object]) -> "RejectTerms":
        """Return the terms of one run: its own options `reject_ratio` and `reject_minimum` come first."""
        ratio, minimum = options.get("reject_ratio"), options.get("reject_minimum")
        return RejectTerms(
            float(ratio) if isinstance(ratio, int | float) and ratio > 0 else self.ratio,
            int(minimum) if isinstance(minimum, int) and minimum > 0 else self.minimum,
        )

    def broken_by(self, account: Account) -> str:
        """Say, for people, why a run should be held; empty: it should not."""
        if not too_many_rejects(account.done, account.rejected, account.failed, self.ratio, self.minimum):
            return ""
        bad = account.rejected + account.failed
        return f"too many rejects: {bad} of the last {account.settled} items were rejected or failed"
