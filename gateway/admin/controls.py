"""Holds, interruptions, audit and status over the API.

Rules that always hold: a hold names everything or a source that the catalogue knows; each change has an author, and a
reason that the person gave; the status tells numbers and names, nothing of a message.
"""

import platform
from difflib import get_close_matches

from aiohttp import web

from gateway.admin.operations import Call, answered
from gateway.admin.problems import ProblemError
from gateway.admin.shapes import shown_audit, shown_controls, shown_instant
from policies.model import ALL_SOURCES, StoreDownError

SOURCE = "source:"


def _known_scope(call: Call) -> str:
    scope = call.part("scope")
    sources = call.desk.configuration().catalogue.sources
    if scope == ALL_SOURCES or (scope.startswith(SOURCE) and scope.removeprefix(SOURCE) in sources):
        return scope
    near = get_close_matches(scope.removeprefix(SOURCE), [*sources, ALL_SOURCES], n=1)
    hint = f" Did you mean {'' if near[0] == ALL_SOURCES else SOURCE}{near[0]}?" if near else ""
    raise ProblemError(
        404,
        "That is neither `all` nor a source of the catalogue.",
        f"Write all, or source:NAME.{hint} `bcss-gateway check` lists the sources.",
    )


async def holds(call: Call) -> web.Response:
    """Answer the holds."""
    return answered({"holds": shown_controls(await call.desk.store.controls())["holds"]})


async def hold(call: Call) -> web.Response:
    """Stop bulk for a source or for everything."""
    scope = _known_scope(call)
    controls = await call.desk.store.hold(scope, author=call.author, reason=call.reason)
    call.desk.log.warning("held", scope=scope, author=call.author)
    call.desk.changed()
    return answered(shown_controls(controls))


async def unhold(call: Call) -> web.Response:
    """End a hold."""
    scope = _known_scope(call)
    controls = await call.desk.store.unhold(scope, author=call.author, reason=call.reason or "released by a person")
    call.desk.log.info("released", scope=scope, author=call.author)
    call.desk.changed()
    return answered(shown_controls(controls))


async def interruptions(call: Call) -> web.Response:
    """Answer what has stopped bulk by itself."""
    return answered({"interruptions": shown_controls(await call.desk.store.controls())["interruptions"]})


async def skip_cool_down(call: Call) -> web.Response:
    """End a cool-down early; the ramp follows."""
    source = call.part("source")
    known = {one.source for one in (await call.desk.store.controls()).interruptions}
    if source not in known:
        raise ProblemError(
            404, "Nothing has interrupted that source.", f"Interrupted are: {', '.join(sorted(known)) or 'none'}."
        )
    controls = await call.desk.store.end_interruption(source, author=call.author, reason=call.reason, skip=True)
    call.desk.log.warning("cool-down skipped", source=source, author=call.author)
    call.desk.changed()
    return answered(shown_controls(controls))


async def audit(call: Call) -> web.Response:
    """Answer who changed what, oldest first."""
    limit = call.query.get("limit", 100)
    rows = await call.desk.store.audit(after=max(call.query.get("after", 0), 0), limit=limit)
    following = rows[-1].id if len(rows) == limit else None
    return answered({"audit": [shown_audit(row) for row in rows], "next": following})


async def status(call: Call) -> web.Response:
    """Answer how the gateway stands: also when the store is down."""
    desk = call.desk
    statistics = desk.statistics()
    try:
        controls, store_up = shown_controls(await desk.store.controls()), True
    except StoreDownError:
        controls, store_up = {"holds": [], "interruptions": []}, False
    return answered(
        {
            "window": {"open": statistics.window_open, "nextChange": shown_instant(statistics.next_change)},
            "coolingSeconds": round(statistics.cooling_s, 1),
            "mode": desk.configuration().settings.mode,
            "pools": {
                name: {
                    "cap": pool.cap,
                    "inUse": pool.in_use,
                    "peak": pool.peak,
                    "waiting": pool.waiting,
                    "oldestSeconds": round(pool.oldest_s, 3),
                }
                for name, pool in statistics.pools.items()
            },
            **controls,
            "store": {"engine": desk.engine, "up": store_up},
            "versions": {"gateway": desk.version, "python": platform.python_version(), "api": "v1"},
            **desk.more_status(),
        }
    )
