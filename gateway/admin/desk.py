"""What the API works with, put together by `gateway.app`: the store, the keys, and views of the rest of the gateway.

The API cannot reach the runner, the proxy or the slots: what it changes is desired state in the store, and `changed`
tells whoever acts on it to look again. Nothing here decides or keeps anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.admin.intake import Intake
from gateway.config import Configuration
from gateway.log import EventLog
from gateway.sealing import KeyRing
from gateway.slots import Statistics
from gateway.store.interface import Store
from policies.model import Clock, StoreDownError


def _nobody() -> None:
    """Nobody has to look again."""


def _unknown(_code: str) -> str:
    return ""


def _nothing() -> Mapping[str, object]:
    return {}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there once the store is open."""

    store: Store
    ring: KeyRing
    intake: Intake  #: makes items of what is submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the API works with."""

    kept: Callable[[], Kept | None]  #: None: the store is not open yet
    clock: Clock
    log: EventLog
    configuration: Callable[[], Configuration]  #: the one in force: a reload replaces it
    statistics: Callable[[], Statistics]  #: how admission stands
    socket: Path  #: the Unix socket of the CLI
    version: str
    engine: str = "sqlite"  #: what keeps the store, for people
    changed: Callable[[], None] = field(default=_nobody)  #: runs, holds or interruptions are not what they were
    meaning: Callable[[str], str] = field(default=_unknown)  #: a business status or fault code, for people
    more_status: Callable[[], Mapping[str, object]] = field(default=_nothing)  #: what else GET /status shows
    defect: Callable[[BaseException], None] = field(default=lambda _error: None)  #: tells the log

    @property
    def store(self) -> Store:
        """Return the store. Raises StoreDownError."""
        return self._open().store

    @property
    def ring(self) -> KeyRing:
        """Return the keys. Raises StoreDownError."""
        return self._open().ring

    @property
    def intake(self) -> Intake:
        """Return what makes items of what is submitted. Raises StoreDownError."""
        return self._open().intake

    def _open(self) -> Kept:
        kept = self.kept()
        if kept is None:
            raise StoreDownError("the store is not open yet")
        return kept
