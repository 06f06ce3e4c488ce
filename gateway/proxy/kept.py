"""What the proxy needs of mass runs, and whom it tells how bulk calls end. Handed in by `gateway.app`.

Rules that always hold: without it (the store is not open yet, or not reachable) real-time and plain bulk go on, and
what needs it is answered with `store_unavailable`. The proxy never looks for a store itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from policies.model import Reason
from policies.recovery import Disposition

if TYPE_CHECKING:  # not needed until the store is open
    from gateway.sealing import KeyRing
    from gateway.store.interface import Store


class ClientRuns(Protocol):
    """Runs that clients drive by themselves, tagging their calls `X-Bulk-Run`."""

    async def begin(self, run_id: str, flow: str) -> Reason | None:
        """Say why a call of this run may not go on: it is no client-driven run of this flow, or has ended
        (`unknown_run`), or is paused (`run_paused`), or nobody can tell (`store_unavailable`). None: it may."""

    def ended(self, run_id: str, disposition: Disposition | None) -> None:
        """Account for a call of this run that was sent; None: nobody knows how it ended."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is once the store is open."""

    store: "Store"
    keys: "KeyRing"
    client_runs: ClientRuns
    wake: Callable[[], None]  #: have the runner look at once


Behind = Callable[[], Kept | None]
Noted = Callable[[Iterable[str], bool], None]
"""Told the sources of each bulk call that ended, and whether its end was technical: for the breakers."""


def nothing() -> None:
    """Stand where no store is."""
    return


def nobody(_sources: Iterable[str], _technical: bool) -> None:  # the signature is `Noted`'s
    """Stand where nobody minds breakers."""
