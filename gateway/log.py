"""The log: JSON lines on standard output, one a call and one a state change.

Rules that always hold:
- Writing never blocks the event loop: a line goes into memory, a thread writes what has gathered. A reader that
  stands still, or has gone, costs lines, which are counted, not calls.
- A line holds names, numbers and identifiers that the caller of `event` chose; never a body, a credential or a national
  number. `safe_id` says which identifiers from outside may stand in it.

Nothing here decides what is worth a line.
"""

import json
import queue
import re
import sys
import threading
from collections.abc import Callable
from datetime import UTC
from typing import Any, TextIO

import structlog

from policies.model import Clock

_MAX_WAITING_LINES = 100_000  #: about 40 MB: what a stopped log reader may cost before lines are dropped
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")
_LIKE_A_NATIONAL_NUMBER = re.compile(r"(?<!\d)\d{2}\D?\d{2}\D?\d{2}\D?\d{3}\D?\d{2}(?!\d)")


def safe_id(text: str) -> str:
    """Return an identifier from outside if it may stand in a log, else an empty text.

    Eleven digits, with or without separators, may be a national number (NISS/INSZ): such an identifier is not kept.
    """
    return text if _SAFE_ID.fullmatch(text) and not _LIKE_A_NATIONAL_NUMBER.search(text) else ""


class LineWriter:
    """Writes lines from a thread of its own. `close` writes what is left, for at most two seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_WAITING_LINES)
        self._gone = False
        self.dropped = 0  #: lines given up because the reader of the output stood still or went away
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Take a line, without its end. Returns at once."""
        if self._gone:
            self.dropped += 1
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    debug = info = warning = error = critical = msg

    def close(self) -> None:
        """Write what has gathered and stop."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=2)

    def _run(self) -> None:
        line = self._lines.get()
        while line is not None:
            batch = [line]
            try:
                while (line := self._lines.get_nowait()) is not None:
                    batch.append(line)
            except queue.Empty:
                line = ""
            if not self._write("\n".join(batch) + "\n"):
                return
            if line == "":
                line = self._lines.get()

    def _write(self, text: str) -> bool:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):  # there is nowhere left to say so but in the count of dropped lines
            self._gone = True
        return not self._gone


def open_log(clock: Clock, out: TextIO | None = None) -> tuple[structlog.typing.FilteringBoundLogger, LineWriter]:
    """Make the gateway's log. The writer is closed last of all by whoever opened it."""
    writer = LineWriter(out if out is not None else sys.stdout)
    log = structlog.wrap_logger(
        writer,
        processors=[
            structlog.processors.add_log_level,
            _stamp(clock),
            structlog.processors.JSONRenderer(json.dumps, separators=(",", ":"), default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("INFO"),
        cache_logger_on_first_use=True,
    )
    return log, writer


def _stamp(clock: Clock) -> Callable[[Any, str, structlog.typing.EventDict], structlog.typing.EventDict]:
    def stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["time"] = clock.wall().astimezone(UTC).isoformat(timespec="milliseconds")
        return event

    return stamp
