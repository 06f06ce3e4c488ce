"""Holds and interruptions, and the audit rows.

Rules that always hold: the revision grows with every change of a hold or an interruption; a span that is told is never
negative. When the clock was stepped back behind what is noted, the note is moved to now: a cool-down or ramp begins
again, and is not stuck until the clock has caught up.
"""

from collections.abc import Sequence
from typing import Any

from gateway.records import GATEWAY, AuditRow, Controls, Hold, InterruptionRecord
from gateway.store.interface import StateError, StoreError
from gateway.store.sqlite.runs import audit
from gateway.store.sqlite.thread import Transaction, span_us, to_instant
from policies.model import ALL_SOURCES

_INTERRUPTION = "select source, number, reason, since, cool, skipped_by, ramp_since from interruption"


def controls(tx: Transaction) -> Controls:
    """Return what stands against bulk."""
    _mend(tx)
    (revision,) = tx.db.execute("select revision from control").fetchone()
    holds = tx.db.execute("select scope, author, reason, since from hold order by scope")
    return Controls(
        revision,
        to_instant(tx.now),
        tuple(Hold(scope, author, reason, to_instant(since)) for scope, author, reason, since in holds),
        tuple(_record(tx, row) for row in tx.db.execute(f"{_INTERRUPTION} order by source")),
    )


def hold(tx: Transaction, scope: str, author: str, reason: str) -> Controls:
    """Note a person's stop."""
    if scope != ALL_SOURCES and not (scope.startswith("source:") and len(scope) > len("source:")):
        raise StoreError(f"A hold is of `all` or of `source:<name>`, not of {scope!r}.")
    tx.db.execute(
        "insert into hold (scope, author, reason, since) values (?, ?, ?, ?) "
        "on conflict (scope) do update set author = excluded.author, reason = excluded.reason",
        (scope, author, reason, tx.now),
    )
    _changed(tx)
    audit(tx, author, "hold", scope, reason)
    return controls(tx)


def unhold(tx: Transaction, scope: str, author: str, reason: str) -> Controls:
    """End a stop."""
    if not tx.db.execute("delete from hold where scope = ?", (scope,)).rowcount:
        raise StateError(f"There is no hold of {scope}: somebody may have ended it already.")
    _changed(tx)
    audit(tx, author, "unhold", scope, reason)
    return controls(tx)


def interrupt(tx: Transaction, source: str, reason: str, cool_s: float) -> InterruptionRecord:
    """Note an interruption, unless one is cooling."""
    _mend(tx)
    row = _row(tx, source)
    if row is not None and _is_cooling(tx, row):
        return _record(tx, row)
    cool = span_us(max(cool_s, 0.0))
    (number,) = tx.db.execute("update control set number = number + 1 returning number").fetchall()[0]
    tx.db.execute(
        "insert or replace into interruption (source, number, reason, since, cool, ramp_since) "
        "values (?, ?, ?, ?, ?, ?)",
        (source, number, reason, tx.now, cool, tx.now + cool),
    )
    _changed(tx)
    audit(tx, GATEWAY, "interrupt", source, reason)
    return _record(tx, (source, number, reason, tx.now, cool, "", tx.now + cool))


def restart_ramp(tx: Transaction, source: str) -> Controls:
    """Begin the ramp again; while it is cooling it has not begun."""
    _mend(tx)
    row = _row(tx, source)
    if row is not None and not _is_cooling(tx, row):
        tx.db.execute("update interruption set ramp_since = ? where source = ?", (tx.now, source))
        _changed(tx)
    return controls(tx)


def end_interruption(tx: Transaction, source: str, author: str, reason: str, skip: bool) -> Controls:
    """Forget an interruption, or end its cool-down."""
    _mend(tx)
    row = _row(tx, source)
    if skip:
        if row is None:
            raise StateError(f"{source} is not interrupted: there is no cool-down to skip.")
        if _is_cooling(tx, row):
            tx.db.execute(
                "update interruption set skipped_by = ?, ramp_since = ? where source = ?", (author, tx.now, source)
            )
            _changed(tx)
            audit(tx, author, "skip cool-down", source, reason)
    elif row is not None and not _is_cooling(tx, row):  # else another process was faster, or saw a new one
        tx.db.execute("delete from interruption where source = ?", (source,))
        _changed(tx)
        audit(tx, author, "end interruption", source, reason)
    return controls(tx)


def audit_rows(tx: Transaction, after: int, limit: int) -> Sequence[AuditRow]:
    """Return who changed what."""
    rows = tx.db.execute(
        "select id, at, author, action, subject, detail from audit where id > ? order by id limit ?", (after, limit)
    )
    return [AuditRow(row[0], to_instant(row[1]), *row[2:]) for row in rows]


def _row(tx: Transaction, source: str) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = tx.db.execute(f"{_INTERRUPTION} where source = ?", (source,)).fetchone()
    return row


def _is_cooling(tx: Transaction, row: tuple[Any, ...]) -> bool:
    _, _, _, since, cool, skipped_by, _ = row
    return not skipped_by and tx.now < since + cool


def _record(tx: Transaction, row: tuple[Any, ...]) -> InterruptionRecord:
    source, number, reason, since, cool, skipped_by, ramp_since = row
    ramp = 0 if _is_cooling(tx, row) else max(0, tx.now - ramp_since)
    return InterruptionRecord(source, number, reason, max(0, tx.now - since) / 1e6, cool / 1e6, skipped_by, ramp / 1e6)


def _changed(tx: Transaction) -> None:
    tx.db.execute("update control set revision = revision + 1")


def _mend(tx: Transaction) -> None:
    """Move to now what lies ahead of a clock that was stepped back."""
    mended = False
    for source, _, _, since, cool, skipped_by, ramp_since in tx.db.execute(_INTERRUPTION).fetchall():
        began = min(since, tx.now)
        ramp = min(ramp_since, tx.now if skipped_by else max(tx.now, began + cool))
        if (began, ramp) != (since, ramp_since):
            mended = True
            tx.db.execute("update interruption set since = ?, ramp_since = ? where source = ?", (began, ramp, source))
    if mended:
        _changed(tx)
