"""Which schema changes a database still needs: numbered `.sql` files, forward only, the same rules for both engines.

`migrations(engine)` reads the files that ship with the program; `pending` says which of them a database lacks. The
engine carries them out under its own lock, in one transaction, and notes each in its table `schema_version`.

Rules that always hold: versions are 1, 2, 3 ... without holes; a file is never changed once shipped; a schema that is
newer than the program is left alone. Never opens a database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from gateway.store.interface import StoreError


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    sql: str


def migrations(engine: str) -> Sequence[Migration]:
    """Return every step of an engine (`sqlite`, `postgres`), in order."""
    folder = files("gateway.store").joinpath("migrations", engine)
    found = sorted(one.name for one in folder.iterdir() if one.name.endswith(".sql"))
    steps = tuple(
        Migration(int(name.partition("_")[0]), PurePath(name).stem, folder.joinpath(name).read_text("utf-8"))
        for name in found
    )
    if [step.version for step in steps] != list(range(1, len(steps) + 1)):
        raise StoreError(f"The program's own schema files are incomplete ({engine}): {found}. Install it anew.")
    return steps


def pending(steps: Sequence[Migration], version: int) -> Sequence[Migration]:
    """Return what a database at `version` (0: empty) lacks.

    Raises StoreError when it is newer than the program.
    """
    known = len(steps)
    if version > known:
        raise StoreError(
            f"The store has schema version {version}; this program knows {known} at the most. A newer program made "
            "it: run that one, or restore the copy of the store from before the update. Nothing was changed."
        )
    return steps[version:]
