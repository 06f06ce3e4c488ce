"""Accepts connections, a few in each turn of the event loop: a burst of thousands must not hold up the others.

Event loops take every connection that waits at once, and then read what came on each of them: 5,000 bulk callers that
arrive together kept a real-time call waiting for 180 ms (measured). Those that are not accepted yet wait in the
kernel's queue, which costs nothing.

Rules that always hold: every accepted connection is served or closed; a handshake that fails, or takes too long, ends
that connection only; when there are no file descriptors left, accepting pauses and goes on by itself.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

A_TURN = 4
"""Connections that are accepted in one turn: with what they send at once, about half a millisecond of it."""
PAUSE_S = 0.1
HANDSHAKE_S = 10.0
"""For a TLS handshake: three lost packets of a slow client (1+2+4 s, RFC 6298)."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts on one listening socket. Made inside the running event loop; `close` when done."""

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        tasks: asyncio.TaskGroup,
        context: ssl.SSLContext | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._protocol = protocol
        self._tasks = tasks
        self._context = context
        self._paused: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()  # accepted, not yet served: a TLS handshake may take long
        self.address: tuple[str, int] = listening.getsockname()[:2]
        listening.setblocking(False)  # the standard library's signature
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end handshakes under way; connections that are served go on."""
        for task in self._beginning:
            task.cancel()
        if self._paused is not None:
            self._paused.cancel()
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()

    def _accept(self) -> None:
        for _ in range(A_TURN):
            try:
                sock, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # the client has gone already
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._loop.remove_reader(self._listening.fileno())
                self._paused = self._loop.call_later(PAUSE_S, self._go_on)
                return
            task = self._tasks.create_task(self._serve(sock))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    def _go_on(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # as above
        with suppress(OSError):  # gone already: the transport will say so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake_s = HANDSHAKE_S if self._context is not None else None
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, sock, ssl=self._context, ssl_handshake_timeout=handshake_s
            )
        except (OSError, ssl.SSLError, TimeoutError):
            sock.close()  # that client's connection, and nobody else's
        except asyncio.CancelledError:
            sock.close()
            raise


def listening_on(address: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens. Raises OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=backlog, reuse_port=False)
