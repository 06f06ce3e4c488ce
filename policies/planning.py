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
    if remaining <= 0:
        return now.astimezone(calendar.zone)
    if remaining > HORIZON_DAYS * 86400.0 * per_second:
        return None
    left = timedelta(seconds=remaining / per_second)
    until = now.astimezone(UTC) + timedelta(days=HORIZON_DAYS)
    opening = calendar.next_opening(now)
    while opening is not None and (begin := opening.astimezone(UTC)) < until:
        closing = calendar.next_closing(opening)
        if closing is None or closing.astimezone(UTC) - begin >= left:
            end = begin + left
            return end.astimezone(calendar.zone) if end <= until else None
        left -= closing.astimezone(UTC) - begin
        opening = calendar.next_opening(closing)
    return None
