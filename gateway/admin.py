"""The telemetry listener: is the gateway alive, can it forward, and what does it count.

`/healthz`: alive, as long as the event loop answers. `/readyz`: can forward; false while stopping, and only then: a
closed window or a full queue is no reason to take real-time away. `/metrics`: Prometheus' text format.

Rules that always hold: nothing here changes anything, asks an upstream, or shows personal data.
"""

import asyncio
import json
from collections.abc import Callable, Mapping

from aiohttp import web

from gateway.metrics import CONTENT_TYPE, Metrics

_PATHS = "/metrics, /healthz, /readyz"


class Telemetry:
    """Answers the telemetry listener. `state` returns whether the gateway is ready, and what to show beside it."""

    def __init__(self, metrics: Metrics, state: Callable[[], tuple[bool, Mapping[str, object]]]) -> None:
        self._metrics = metrics
        self._state = state

    def server(self) -> web.Server:
        """Make the protocol factory to listen with."""
        return web.Server(self._answer, access_log=None, keepalive_timeout=75.0)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return _text(405, f"Only GET is answered here: {_PATHS}\n")
        match request.path:
            case "/metrics":
                self._metrics.take()
                # In a thread: a few thousand series take milliseconds, which calls in progress would feel.
                text = await asyncio.to_thread(self._metrics.exposition)
                return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})
            case "/healthz":
                return _text(200, "alive\n")
            case "/readyz":
                ready, shown = self._state()
                body = json.dumps({"ready": ready, **shown}, default=str) + "\n"
                return web.Response(status=200 if ready else 503, text=body, content_type="application/json")
            case _:
                return _text(404, f"Nothing is here. Answered: {_PATHS}\n")


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
