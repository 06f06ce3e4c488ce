"""How commands show runs to people: tables, one line, JSON.

Rules that always hold: what a person reads is on standard output, what went wrong on standard error; a client key is
shown only where items are asked for.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]


def console() -> Console:
    """Return where tables go: as wide as the terminal, or wide enough for whole lines when piped."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=200)


def print_json(content: object) -> None:
    """Print JSON on one line."""
    print(json.dumps(content, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print a table, or what it means that there is nothing in it."""
    if not rows:
        print(empty)
        return
    shown = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console().print(shown, markup=False)


def moment(text: str | None) -> str:
    """Return an instant as people here write it."""
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def settled(run: Json) -> int:
    """Return how many items are settled."""
    return int(sum(run["counts"][name] for name in ("done", "rejected", "failed", "inDoubt")))


def share(run: Json) -> str:
    """Return how far a run is."""
    total = run["total"]
    return f"{100 * settled(run) / total:.1f} %" if total else ""


def counted(run: Json) -> str:
    """Return a run's counts as words; what is nought is left out, but for what is done."""
    counts = run["counts"]
    words = {"rejected": "rejected", "failed": "failed", "inDoubt": "in doubt", "waiting": "waiting"}
    return ", ".join(
        [f"{counts['done']} done", *(f"{counts[key]} {word}" for key, word in words.items() if counts[key])]
    )


def line(run: Json) -> str:
    """Return a run as one line."""
    pace = f", {run['perSecond']:.1f}/s" if run.get("perSecond") else ""
    assuming = " if a call takes a second" if run.get("endIsAssumed") else ""
    end = f", ends about {moment(run['endsAt'])}{assuming}" if run.get("endsAt") else ""
    why = f" ({run['reason']}, by {run['changedBy']})" if run["state"] in ("paused", "cancelled", "failed") else ""
    far = f" of {run['total']}, {share(run)}" if run["total"] else ""
    return f"{run['state']}{why}: {counted(run)}{far}{pace}{end}"


def runs(found: Sequence[Json]) -> None:
    """Print a list of runs."""
    rows = [
        (
            one["id"],
            one["state"],
            one["name"],
            one["author"],
            one["priority"],
            one["total"],
            share(one),
            moment(one["createdAt"]),
        )
        for one in found
    ]
    table(("id", "state", "name", "author", "prio", "items", "settled", "made"), rows, "There are no runs.")


def run(one: Json) -> None:
    """Print a run."""
    facts = [
        ("id", one["id"]),
        ("name", one["name"]),
        ("kind", one["kind"]),
        ("state", line(one)),
        ("reason", f"{one['reason']} ({one['changedBy']}, {moment(one['changedAt'])})"),
        ("author", f"{one['author']}, {moment(one['createdAt'])}"),
        ("route", one["route"]),
        ("client", one["client"]),
        ("priority", one["priority"]),
        ("not before", moment(one["notBefore"])),
        ("began", moment(one["startedAt"])),
        ("ended", moment(one["endedAt"])),
        ("received", one["received"]),
        ("calls made", one["attempts"]),
        ("purged", "yes" if one["purged"] else moment(one["purgeAfter"]) and f"on {moment(one['purgeAfter'])}"),
        ("announcement", one["announcement"]),
    ]
    for name, value in facts:
        if value != "":
            print(f"{name + ':':<14}{value}")
    lanes = [
        (
            lane["service"] or "(not recognised)",
            ", ".join(lane["sources"]) or "unclassified",
            "repeatable" if lane["repeatable"] else "once only",
            lane["total"],
        )
        for lane in one.get("lanes", ())
    ]
    if lanes:
        table(("service", "sources", "unknown fate", "items"), lanes, "")


def items(found: Sequence[Json], empty: str) -> None:
    """Print items."""
    rows = [
        (one["seq"], one["key"], one["state"], one["status"] or "", one["code"], one["meaning"], one["attempts"])
        for one in found
    ]
    table(("seq", "key", "state", "HTTP", "code", "meaning", "calls"), rows, empty)
