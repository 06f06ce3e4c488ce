"""The API's listeners: TCP for those with a token, a Unix socket for the CLI on this host.

Imported after the gateway is ready, since aiohttp takes longer to import than the rest of the start. Rules that always
hold: the socket is nobody's but the gateway's user's (mode 0600 from its first moment); a file that an earlier process
left is replaced, `data_dir` being locked; a port that cannot be had takes the API over TCP away and nothing else, and
the log says so.
"""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from gateway.admin.desk import Desk
from gateway.admin.identity import asker_of
from gateway.admin.openapi import document
from gateway.admin.operations import BODY_LIMIT, PREFIX, answered, handler_of, middleware
from gateway.admin.pace import Paces
from gateway.admin.routes import operations
from gateway.inbound import listening_on

BACKLOG = 64
LONGEST_PATH = 100
"""Octets of a socket's path that every system takes (sun_path has 108 on Linux)."""


class Administration:
    """The API, being served. Made by `start_admin`."""

    def __init__(
        self, runner: web.AppRunner, sampling: "asyncio.Task[None]", servers: Sequence[socket.socket], path: Path
    ) -> None:
        self._runner = runner
        self._sampling = sampling
        self._servers = servers
        self._path = path
        self.address = ""  #: over TCP; empty: it could not be had

    async def close(self) -> None:
        """End it; downloads and uploads in progress are cut."""
        self._sampling.cancel()
        await self._runner.cleanup()
        for server in self._servers:  # a stop may have come before the loop had got them
            server.close()
        with suppress(OSError):
            self._path.unlink()


def application(desk: Desk, paces: Paces) -> web.Application:
    """Return the API as an application."""
    every = operations(paces)
    described = document(every, desk.version)

    async def describe(request: web.Request) -> web.Response:
        asker_of(request, desk.configuration().settings.administration)
        return answered(described)

    found = web.Application(client_max_size=BODY_LIMIT, middlewares=[middleware(desk)])
    for operation in every:
        found.router.add_route(operation.method, PREFIX + operation.path, handler_of(operation, desk))
    found.router.add_route("GET", f"{PREFIX}/openapi.json", describe)
    return found


async def start_admin(desk: Desk, tasks: asyncio.TaskGroup) -> Administration:
    """Serve the API; `close` what is returned before the store is closed."""
    paces = Paces(lambda: desk.store, desk.clock, lambda: desk.statistics().window_open, desk.defect)
    runner = web.AppRunner(application(desk, paces), access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    servers = [listening(desk.socket), *_over_tcp(desk)]
    served = Administration(runner, tasks.create_task(paces.sample_for_ever()), servers, desk.socket)
    try:
        for server in servers:
            await web.SockSite(runner, server).start()
    except BaseException:
        await served.close()
        raise
    for server in servers[1:]:
        host, port = server.getsockname()[:2]
        served.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    tokens = len(desk.configuration().settings.administration.tokens)
    desk.log.info("administration", address=served.address, socket=str(desk.socket), tokens=tokens)
    return served


def _over_tcp(desk: Desk) -> list[socket.socket]:
    place = desk.configuration().settings.administration
    try:
        return [listening_on(place.address, place.port, BACKLOG)]
    except OSError as error:
        why = error.strerror or "cannot listen"
    remedy = "Free the port, or choose another (administration.port), and restart. The CLI works meanwhile."
    desk.log.error("no API over TCP", address=place.address, port=place.port, why=why, remedy=remedy)
    return []


def listening(path: Path) -> socket.socket:
    """Return a Unix socket that only this user may connect to."""
    with suppress(FileNotFoundError):
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Mode 0600 from the first moment: between bind and chmod anybody could connect.
    before = os.umask(0o177)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(short(path, folder))
        server.listen(BACKLOG)
    except BaseException:
        server.close()
        raise
    finally:
        os.umask(before)
        os.close(folder)
    server.setblocking(False)
    return server


def short(path: Path, folder: int) -> str:
    """Return a path that fits a socket's address: by the open folder, where it is too long."""
    return str(path) if len(os.fsencode(path)) <= LONGEST_PATH else f"/proc/self/fd/{folder}/{path.name}"
