"""The peer: the usual aiohttp reverse proxy, as tutorials write it (web.Application and one ClientSession).

Usage: python -m benchmarks.usual PORT UPSTREAM_URL
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}


def application(upstream: str) -> web.Application:
    """Make the proxy."""
    app = web.Application(client_max_size=1 << 30)

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession() as client:
            app["client"] = client
            yield

    async def forward(request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        body = await request.read()
        client: ClientSession = request.app["client"]
        async with client.request(request.method, upstream + request.path_qs, headers=headers, data=body) as answer:
            data = await answer.read()
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            return web.Response(status=answer.status, headers=passed, body=data)

    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{tail:.*}", forward)
    return app


if __name__ == "__main__":
    web.run_app(
        application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=lambda *_: None
    )
