"""The log: JSON lines on standard output, one a call and one a state change.

Rules that always hold:
- Writing never blocks the event loop: a line goes into memory, a thread writes what has gathered. A reader that
  stands still, or has gone, costs lines, which are counted, not calls.
- A line holds names, numbers and identifiers that the caller of `event` chose; never a body, a credential or a national
  number. `safe_id` says which identifiers from outside may stand in it.

Nothing here decides what is worth a line.
"""

import json
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import TextIO

from policies.model import Clock

_MAX_WAITING_LINES = 100_000  #: about 40 MB: what a stopped log reader may cost before lines are dropped
_WRITE_EVERY_S = 0.05
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")
_LIKE_A_NATIONAL_NUMBER = re.compile(r"(?<!\d)\d{2}\D?\d{2}\D?\d{2}\D?\d{3}\D?\d{2}(?!\d)")


def safe_id(text: str) -> str:
    """Return an identifier from outside if it may stand in a log, else an empty text.

    Eleven digits, with or without separators, may be a national number (NISS/INSZ): such an identifier is not kept.
    """
    return text if _SAFE_ID.fullmatch(text) and not _LIKE_A_NATIONAL_NUMBER.search(text) else ""


def nameable(text: str) -> str:
    """Return a name from outside as it may stand in a log: the subject of a personal certificate (an eID's) holds its
    owner's national number."""
    return _LIKE_A_NATIONAL_NUMBER.sub("(withheld)", text)


class LineWriter:
    """Writes lines from a thread of its own, some times a second. `close` writes what is left, for at most two seconds.

    The thread looks by itself whether there is something to write: waking it for each line would cost more than the
    line.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out if out is not None else sys.stdout
        self._lines: deque[str] = deque()
        self._stop = threading.Event()
        self._gone = False
        self.dropped = 0  #: lines given up because the reader of the output stood still or went away
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Take a line, without its end. Returns at once."""
        if self._gone or len(self._lines) >= _MAX_WAITING_LINES:
            self.dropped += 1
        else:
            self._lines.append(line)

    def close(self) -> None:
        """Write what has gathered and stop."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(_WRITE_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        batch = [self._lines.popleft() for _ in range(len(self._lines))]
        if not batch or self._gone:
            return
        try:
            self._out.write("\n".join(batch) + "\n")
            self._out.flush()
        except (OSError, ValueError):  # there is nowhere left to say so but in the count of dropped lines
            self._gone = True


class EventLog:
    """The log of state changes: one JSON line an event, to `write`. Fields are the caller's choice."""

    def __init__(self, clock: Clock, write: Callable[[str], None]) -> None:
        self._clock = clock
        self._write = write

    def info(self, event: str, **fields: object) -> None:
        """Log what is as it should be."""
        self._line("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what somebody should look at."""
        self._line("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log what somebody must mend."""
        self._line("error", event, fields)

    def _line(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        time = self._clock.wall().astimezone(UTC).isoformat(timespec="milliseconds")
        line = {**fields, "event": event, "level": level, "time": time}
        self._write(json.dumps(line, separators=(",", ":"), default=str))


def event_log(clock: Clock, writer: LineWriter) -> EventLog:
    """Make the log of state changes, whose lines go to `writer`."""
    return EventLog(clock, writer.msg)
