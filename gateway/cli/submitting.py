"""`bcss-gateway runs submit`: a file becomes a run.

The file is read twice: first to be checked whole, then to be stored. Rules that always hold:
- What is wrong is told with its line (an archive's: the number of its file) before anything is stored, unless told to
  go on; a value is never quoted.
- Memory stays flat whatever the size. A ZIP is read here, where its end can be reached, and goes as TAR.
- An upload that broke off is taken up with --resume: what has arrived is passed over.
- The run's id is all that stands on standard output.
"""

import asyncio
import gzip
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.asking import BrokenOffError, Gateway
from gateway.cli.showing import line

if TYPE_CHECKING:
    from gateway.config import Configuration

MEDIA_TYPES = {
    "ndjson": "application/x-ndjson",
    "tar": "application/x-tar",
    "zip": "application/x-tar",  # as it goes over the socket
    "csv": "text/csv",
}
_ENDINGS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".tar": "tar", ".tgz": "tar", ".zip": "zip", ".csv": "csv"}
_PART = 256 * 1024
_BLOCK = 512  # of TAR
_SHOWN_FAULTS = 20


class WrongUseError(Exception):
    """The command cannot be carried out so. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    file: Path
    form: str
    parameters: dict[str, Any]  #: of the run, as the API names them
    configuration: "Configuration | None"  #: None: it is not known here, and the gateway checks the file
    start: bool
    check: bool
    go_on: bool
    resume: str
    idempotency_key: str


def form_of(file: Path, given: str) -> str:
    """Return a file's format, as given or by its name. Raises WrongUseError."""
    if given:
        if given not in MEDIA_TYPES:
            raise WrongUseError(f"--format is one of: {', '.join(MEDIA_TYPES)}.")
        return given
    name = file.with_suffix("") if file.suffix == ".gz" else file
    form = _ENDINGS.get(name.suffix.lower())
    if form is None:
        raise WrongUseError(f"{file}: the name does not tell the format. Say --format {'|'.join(MEDIA_TYPES)}.")
    return form


def instant(text: str) -> str:
    """Return a time as an instant, Brussels time where it says no offset. Raises WrongUseError."""
    from gateway.config.policy import preset

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUseError('--not-before is not a time. Write "2026-11-24T20:00", Brussels time.') from None
    return (at if at.tzinfo else at.replace(tzinfo=preset().zone)).isoformat(timespec="seconds")


def submit(gateway: Gateway, wanted: Wanted) -> int:
    """Submit a file; return the exit status."""
    if wanted.resume:
        run = gateway.get("runs", wanted.resume)
        if run["state"] != "loading":
            print(f"The run is {run['state']}: it takes no more items.", file=sys.stderr)
            return 1
    else:
        if wanted.check and wanted.configuration is not None and not _is_sound(_checked_here(wanted), wanted):
            return 1
        headers = {"Idempotency-Key": wanted.idempotency_key} if wanted.idempotency_key else {}
        run = gateway.send("POST", "runs", body=wanted.parameters, headers=headers)
        if run["state"] != "loading":  # the idempotency key's run, complete already
            print(run["id"])
            print(f"It was submitted before. {line(run)}", file=sys.stderr)
            return 0
    try:
        if wanted.check and not wanted.resume and wanted.configuration is None:
            found = _sent(gateway, run["id"], "check", wanted, {}, "checking")
            if not _is_sound(found, wanted):
                gateway.send("POST", "runs", run["id"], "cancel", body={"reason": "a faulty file: nothing was stored"})
                return 1
        taken = _sent(gateway, run["id"], "items", wanted, {"Upload-Offset": "0"}, "storing ")
    except (BrokenOffError, KeyboardInterrupt) as error:
        print(
            f"The upload broke off. Nothing is lost: bcss-gateway runs submit {wanted.file} --resume {run['id']}",
            file=sys.stderr,
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    print(run["id"])
    return _ended(gateway, run["id"], taken, wanted)


def _checked_here(wanted: Wanted) -> dict[str, Any]:
    """Read the whole file as the gateway would, in processes of this command's own."""
    from gateway.admin.intake import submission_of
    from gateway.loading import UnreadableError, check

    assert wanted.configuration is not None
    parameters = wanted.parameters
    submission = submission_of(parameters, parameters.get("template", ""), parameters["format"])
    with _progress(wanted, "checking") as octets:
        try:
            taken = asyncio.run(check(wanted.configuration, submission, _fed(octets)))
        except UnreadableError as error:
            raise WrongUseError(f"{wanted.file}: {error}") from None
    problems = [{"line": one.line, "what": one.what, "remedy": one.remedy} for one in taken.faults]
    return {"faulty": taken.faulty, "problems": problems}


async def _fed(octets: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in octets:
        yield part


def _is_sound(found: dict[str, Any], wanted: Wanted) -> bool:
    if not found["faulty"]:
        return True
    _tell(found)
    if wanted.go_on:
        return True
    print("Nothing was stored. Mend the file, or say --go-on to leave faulty entries out.", file=sys.stderr)
    return False


def _ended(gateway: Gateway, run: str, taken: dict[str, Any], wanted: Wanted) -> int:
    print(
        f"{taken['received']} entries read, {taken['added']} items added, {taken['duplicates']} known already, "
        f"{taken['faulty']} faulty.",
        file=sys.stderr,
    )
    if not taken["complete"]:
        _tell(taken)
        print(
            f"It stopped there. Mend the file and go on: bcss-gateway runs submit {wanted.file} --resume {run}",
            file=sys.stderr,
        )
        return 1
    if not wanted.start:
        print(f"It is loading. Have it begin: bcss-gateway runs ready {run}", file=sys.stderr)
        return 0
    begun = gateway.send("POST", "runs", run, "ready")
    print(f"{line(begun)}\nFollow it: bcss-gateway runs watch {run}", file=sys.stderr)
    return 0


def _tell(taken: dict[str, Any]) -> None:
    for one in taken["problems"][:_SHOWN_FAULTS]:
        print(f"line {one['line']}: {one['what'].rstrip('.')}. {one['remedy']}", file=sys.stderr)
    more = taken["faulty"] - min(len(taken["problems"]), _SHOWN_FAULTS)
    if more > 0:
        print(f"... and {more} more.", file=sys.stderr)


def _sent(gateway: Gateway, run: str, step: str, wanted: Wanted, headers: dict[str, str], what: str) -> dict[str, Any]:
    with _progress(wanted, what) as octets:
        return gateway.upload("runs", run, step, octets=octets, media_type=MEDIA_TYPES[wanted.form], headers=headers)


@contextmanager
def _progress(wanted: Wanted, what: str) -> Iterator[Iterator[bytes]]:
    """Give the file's octets, and show on a terminal how far they are."""
    out = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, total=None if _is_packed(wanted) else wanted.file.stat().st_size)

        def counted() -> Iterator[bytes]:
            for part in _octets(wanted.file, wanted.form):
                yield part
                progress.advance(task, len(part))

        yield counted()


def _is_packed(wanted: Wanted) -> bool:
    return wanted.form == "zip" or wanted.file.suffix in (".gz", ".tgz")


def _octets(file: Path, form: str) -> Iterator[bytes]:
    if form == "zip":
        yield from tar_of(file)
        return
    packed = file.suffix in (".gz", ".tgz")
    with gzip.open(file) if packed else file.open("rb") as opened:
        while part := opened.read(_PART):
            yield part


def tar_of(file: Path) -> Iterator[bytes]:
    """Yield a ZIP's members as a TAR archive. Raises WrongUseError for what is no sound ZIP."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                header = tarfile.TarInfo(entry.filename)
                header.size = entry.file_size
                yield header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                with archive.open(entry) as member:
                    while part := member.read(_PART):
                        yield part
                yield b"\0" * (-entry.file_size % _BLOCK)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise WrongUseError(f"{file}: the ZIP cannot be read ({error}). Make it anew, or send a TAR.") from None
    yield b"\0" * (2 * _BLOCK)
