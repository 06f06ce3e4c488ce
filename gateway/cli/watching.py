"""`bcss-gateway runs watch`: a run's progress, live on a terminal, line by line when piped.

Rules that always hold: it only looks; it ends with the run: status 0 if it completed, 1 otherwise. A gateway that is
restarted meanwhile ends it too, with what to do.
"""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gateway.cli.showing import Json, line, settled

_ENDED = ("completed", "cancelled", "failed")


def watch(look: Callable[[], Json], every: float) -> int:
    """Follow a run until it ends; return the exit status."""
    out = Console(highlight=False)
    run = _live(look, every, out) if out.is_terminal else _lines(look, every)
    return 0 if run["state"] == "completed" else 1


def _lines(look: Callable[[], Json], every: float) -> Json:
    told = ""
    while True:
        run = look()
        if (now := line(run)) != told:
            print(now, flush=True)
            told = now
        if run["state"] in _ENDED:
            return run
        time.sleep(every)


def _live(look: Callable[[], Json], every: float, out: Console) -> Json:
    columns = (BarColumn(bar_width=30), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task("", total=None)
        try:
            while True:
                run = look()
                progress.update(task, description=line(run), total=run["total"] or None, completed=settled(run))
                if run["state"] in _ENDED:
                    break
                time.sleep(every)
        except KeyboardInterrupt:
            sys.exit(130)
    print(line(run))
    return run
