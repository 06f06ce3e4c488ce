"""The store's interface: runs and what belongs to them, durable when a method returns.

Two engines keep it, `sqlite` and `postgres`, and one contract test suite runs against both
(tests/gateway/store/test_contract.py). SQLite is for one process; PostgreSQL for several, and it is a
`policies.model.LeaseStore` too.

Rules that always hold:
- Each method is one transaction: durable when it returns, without effect when it raises.
- Whoever changes something is named, and the change is in the audit rows of the same transaction.
- A change of state that `policies.runs` does not know raises `StateError`.
- `settle` is the only door for results, `recover` the only one for what a dead process left.

Never seals, opens, classifies or decides; never waits for anything but the database.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from gateway.records import (
    AuditRow,
    Batch,
    BatchSighting,
    Controls,
    InterruptionRecord,
    ItemRecord,
    LaneWork,
    Loaded,
    NewItem,
    NewRun,
    Recovered,
    RunRecord,
    Settled,
    Settlement,
    StoredItem,
)
from policies.model import ItemState, RunState


class StoreError(Exception):
    """The store cannot do it. The message says what to do next."""


class StateError(StoreError):
    """What was asked does not fit the state of the run or item."""


class DelayedError(StoreError):
    """Another program is in the way, and nothing else suffers from it: to be done later."""


class Store(Protocol):
    """Every method raises `policies.model.StoreDownError` when the database cannot be reached or does not answer."""

    # Life.

    async def migrate(self) -> tuple[int, int]:
        """Bring the schema to what this program knows, under a lock; return the versions before and after.

        Raises StoreError when the schema is newer than the program.
        """

    async def close(self) -> None:
        """Let go of the database."""

    # Submission.

    async def create_run(self, new: NewRun) -> RunRecord:
        """Make a run, or return the one that the author made with the same idempotency key."""

    async def set_dictionary(self, run_id: int, sealed: bytes) -> bytes:
        """Give a run its dictionary, once; return the one that it has now."""

    async def add_items(
        self, run_id: int, items: Sequence[NewItem], *, received: int | None, places: bool = False
    ) -> Loaded:
        """Add items, each once by its key tag, behind those of its lane; make lanes as needed.

        Args:
            received: entries of the submission read so far, these included; items whose `seq` is below what the run
                has received already are known and not added again. None: items come one by one (async runs) and
                keep the `seq` they came with (`packing.new_seq`): they are sealed under it.
            places: return where each item went.

        Raises StateError unless the run is loading, or an async run that has not ended (it is made ready at once, also
        where it was paused for want of anything but items in doubt, and grows).
        """

    # Runs.

    async def run(self, public_id: str) -> RunRecord | None:
        """Return a run."""

    async def runs(self, states: Sequence[RunState] = (), *, after: int = 0, limit: int = 100) -> Sequence[RunRecord]:
        """Return runs with an id above `after`, oldest first; of these states, or all."""

    async def change_state(
        self, run_id: int, to: RunState, *, author: str, reason: str, expected: Sequence[RunState] = ()
    ) -> RunRecord:
        """Change a run's state by the table of `policies.runs`; `expected`: only from one of these. A person may pause
        what the gateway has paused: nothing but a person lets it go on then.

        Raises StateError; the message says how the run stands.
        """

    async def set_priority(self, run_id: int, priority: int, *, author: str) -> RunRecord:
        """Change whose turn it is first."""

    async def lanes(self, run_id: int) -> Sequence[tuple[LaneWork, int]]:
        """Return a run's lanes, whatever its state, each with its total of items."""

    # Execution.

    async def work(self, now: datetime) -> Sequence[LaneWork]:
        """Return the lanes of ready and running runs in which something is left, `not_before` being over."""

    async def claim(self, lane_id: int, holder: str, *, size: int, window: int) -> Batch | None:
        """Claim up to `size` positions that nobody has claimed, the first `window` of them armed; None: there are none,
        or the run may not go on. A ready run is running from then on."""

    async def claim_returned(self, lane_id: int, holder: str, *, size: int, armed: bool = True) -> Batch | None:
        """Claim up to `size` returned items whose time has come, all of them armed or none."""

    async def fetch(self, batch: Batch) -> Sequence[StoredItem]:
        """Return the items of a batch that are neither settled nor returned, by position."""

    async def settle(self, settlement: Settlement) -> Settled:
        """Write results, returned items and marks. The first result of an item stays; a result removes the item from
        the returned; an item with a result is not returned. What comes from a lost batch still counts, if it is the
        first."""

    async def renew_batches(self, holder: str) -> None:
        """Raise the renewal number of every batch of this process."""

    async def batches(self) -> Sequence[BatchSighting]:
        """Return every batch."""

    async def recover(self, sighting: BatchSighting, *, delay_s: float) -> Recovered | None:
        """End a batch that still stands as sighted: what was surely not sent waits again at once, what may have been
        sent waits again after `delay_s` where it is repeatable, and is in doubt otherwise. None: it stands otherwise.
        The process itself uses it for its own batches when it stops or its run is paused: by then everything that
        was sent has been settled or returned, so that only positions at or above `armed` are left."""

    async def rest(self, run_id: int, *, may_complete: bool) -> RunRecord:
        """Say that this process has nothing of the run in hand. A running or ready run without batches of anybody
        becomes, if it may (an async run of today may not, since calls still join it) and every item is settled:
        completed, or paused (by `gateway`, reason `in doubt`) when some are in doubt; else ready."""

    # Accounting of client-driven runs, of which nothing is stored.

    async def count(
        self, run_id: int, *, done: int, rejected: int, failed: int, attempts: int, by: tuple[str, int]
    ) -> RunRecord:
        """Add to the counts (and the total) of a client-driven run, once.

        Args:
            by: who counts, and a number that grows with what it tells; a number that is known adds nothing again.
        """

    # Results.

    async def items(
        self,
        run_id: int,
        states: Sequence[ItemState] = (),
        *,
        after: int = -1,
        limit: int = 1000,
        bodies: bool = False,
        requests: bool = False,
    ) -> Sequence[ItemRecord]:
        """Return settled items with a sequence number above `after`, in its order."""

    async def item_at(self, lane_id: int, position: int) -> ItemRecord | None:
        """Return one settled item with its answer; None: it is not settled."""

    async def decide(self, run_id: int, seq: int, decision: str, *, author: str, reason: str) -> RunRecord:
        """Settle an item in doubt by a person's word: `repeat` (it waits again), `accept` (done), `fail`. The last one
        of a run that was paused for it lets the run go on.

        Raises StateError when it is not in doubt.
        """

    async def purge(self, run_id: int, *, author: str) -> RunRecord:
        """Drop the run's key, items, results and client keys; counts and audit stay.

        Raises StateError unless the run has ended, and DelayedError when a backup is in the way: the key is out of
        use by then, and a later purge (`to_purge` still names the run) completes it.
        """

    async def to_purge(self, now: datetime) -> Sequence[RunRecord]:
        """Return ended runs whose retention is over."""

    # Async answers.

    async def find_handle(self, handle: str) -> tuple[RunRecord, int, int] | None:
        """Return the run, lane and position of a handle."""

    async def async_run(self, client: str, route: str, day: str) -> RunRecord | None:
        """Return the async run of this client, route and day (the option `day`)."""

    # Holds and interruptions.

    async def controls(self) -> Controls:
        """Return what stands against bulk."""

    async def hold(self, scope: str, *, author: str, reason: str) -> Controls:
        """Stop bulk for `all` or `source:<name>`. A second hold of a scope replaces author and reason."""

    async def unhold(self, scope: str, *, author: str, reason: str) -> Controls:
        """End a hold. Raises StateError when there is none."""

    async def interrupt(self, source: str, *, reason: str, cool_s: float) -> InterruptionRecord:
        """Note an interruption that begins now. One that is cooling already stays as it is, and is returned."""

    async def restart_ramp(self, source: str) -> Controls:
        """Let the ramp of a source begin again at one slot."""

    async def end_interruption(self, source: str, *, author: str, reason: str, skip: bool) -> Controls:
        """Forget an interruption whose ramp is over (one that is cooling again stays); with `skip`, a person ends its
        cool-down early (the ramp follows)."""

    # Audit.

    async def audit(self, *, after: int = 0, limit: int = 100) -> Sequence[AuditRow]:
        """Return who changed what, oldest first."""

    async def note(self, author: str, action: str, subject: str, detail: str = "") -> None:
        """Write an audit row for a change that is not the store's own."""
