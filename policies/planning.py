"""When a run ends: what is left, how fast it goes, and when the windows are open.

Rules that always hold: only open hours count, each in its true length (in the nights when clocks change too); nothing
is counted item by item. Never decides anything: it only foresees.
"""

from datetime import UTC, datetime, timedelta

from policies.windows import HORIZON_DAYS, Calendar


def ends_at(calendar: Calendar, now: datetime, remaining: int, per_second: float) -> datetime | None:
    """Return when `remaining` items are done at `per_second`, beginning now; None: not within 400 days, or never.

    Args:
        now: an aware instant.
        per_second: while the window is open.
    """
    if per_second <= 0:
        return None
    left = timedelta(seconds=min(remaining / per_second, HORIZON_DAYS * 86400.0))
    at: datetime | None = now
    until = now.astimezone(UTC) + timedelta(days=HORIZON_DAYS)
    while at is not None and at.astimezone(UTC) < until:
        opening = calendar.next_opening(at)
        if opening is None:
            return None
        closing = calendar.next_closing(opening)
        begin = opening.astimezone(UTC)
        if closing is None or closing.astimezone(UTC) - begin >= left:
            return (begin + left).astimezone(calendar.zone)
        left -= closing.astimezone(UTC) - begin
        at = closing
    return None
