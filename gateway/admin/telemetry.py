"""The telemetry listener: is the gateway alive, can it forward, and what does it count.

`/healthz`: alive, as long as the event loop answers. `/readyz`: can forward; false while stopping, and only then: a
closed window or a full queue is no reason to take real-time away. `/metrics`: Prometheus' text format.

Rules that always hold: nothing here changes anything, asks an upstream, or shows personal data.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus

from gateway.inbound import Inbound
from gateway.metrics import CONTENT_TYPE, Metrics

_PATHS = "/metrics, /healthz, /readyz"
_TEXT = "text/plain; charset=utf-8"


class Telemetry:
    """Answers the telemetry listener. `state` returns whether the gateway is ready, and what to show beside it."""

    def __init__(self, metrics: Metrics, state: Callable[[], tuple[bool, Mapping[str, object]]]) -> None:
        self._metrics = metrics
        self._state = state

    async def handle(self, inbound: Inbound) -> bool:
        """Answer one request; return whether the connection may go on."""
        if inbound.method not in (b"GET", b"HEAD"):
            return _said(inbound, 405, f"Only GET is answered here: {_PATHS}\n")
        match inbound.target.partition(b"?")[0]:
            case b"/metrics":
                self._metrics.take()
                # In a thread: a few thousand series take milliseconds, which calls in progress would feel.
                return _said(inbound, 200, await asyncio.to_thread(self._metrics.exposition), CONTENT_TYPE)
            case b"/healthz":
                return _said(inbound, 200, "alive\n")
            case b"/readyz":
                ready, shown = self._state()
                body = json.dumps({"ready": ready, **shown}, default=str) + "\n"
                return _said(inbound, 200 if ready else 503, body, "application/json")
            case _:
                return _said(inbound, 404, f"Nothing is here. Answered: {_PATHS}\n")


def _said(inbound: Inbound, status: int, body: str | bytes, content_type: str = _TEXT) -> bool:
    goes_on = inbound.keeps_alive and inbound.body_is_here
    content = body.encode() if isinstance(body, str) else body
    close = "" if goes_on else "Connection: close\r\n"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n{close}\r\n"
    )
    inbound.write(head.encode("ascii") + (b"" if inbound.method == b"HEAD" else content))
    return goes_on
