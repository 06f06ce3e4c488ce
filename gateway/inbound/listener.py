"""All connections of one address: their number, their idleness, and who owns their calls.

Rules that always hold: past the number of connections that are allowed, one is answered and closed; a connection that
waits for a request for longer than `idle_time` is closed; a call that waits is a task of the group that was handed in.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from gateway.config import Limits
from gateway.inbound.connection import Connection
from gateway.inbound.crowd import Crowd
from gateway.inbound.request import Inbound
from gateway.inbound.turns import Turns
from gateway.lending import Lender

Handler = Callable[[Inbound], Awaitable[bool]]
"""Takes a call to its end; returns whether the connection may go on."""


class Listener:
    """Makes a `Connection` for each client of one address, and closes those that idle.

    Args:
        tasks: owns the calls.
        at_once: begins a call that need not be a task, and returns whether it did; its body may still be coming. Such
            a call says by itself to its connection by what it is `carried_by`, and when it is `over`.
        is_mass: says of a target whether its calls are bulk for sure: they come by the thousand, and begin in turns.
        on_malformed: writes the whole answer to what is not a readable request, from a status and what is wrong.
        on_defect: is told of an exception that nobody foresaw.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        tasks: asyncio.TaskGroup,
        *,
        turns: Turns,
        at_once: Callable[[Inbound], bool] = lambda _inbound: False,
        is_mass: Callable[[bytes], bool] = lambda _target: False,
        on_malformed: Callable[[int, str], bytes],
        on_defect: Callable[[BaseException], None],
        on_refused_connection: Callable[[], None],
    ) -> None:
        self.handler = handler
        self.at_once = at_once
        self.limits = limits
        self.tasks = tasks
        self.turns = turns
        self.is_mass = is_mass
        self.crowd = Crowd(turns, is_mass)
        self._loop = asyncio.get_running_loop()  # kept: in Python 3.11 each call of it is a system call (getpid)
        self.on_malformed = on_malformed
        self.on_defect = on_defect
        self.on_refused_connection = on_refused_connection
        self.connections: set[Connection] = set()
        self.idle: OrderedDict[Connection, float] = OrderedDict()  #: since when, oldest first
        self.buffer = Lender()
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def now_idle(self, connection: Connection) -> None:
        """Note that a connection waits for a request."""
        self.idle[connection] = self._loop.time()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.limits.idle_time, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        loop = self._loop
        due = loop.time() - self.limits.idle_time + 0.001
        while self.idle and next(iter(self.idle.values())) <= due:
            connection, _ = self.idle.popitem(last=False)
            connection.close()
        if self.idle:
            self._sweeper = loop.call_at(next(iter(self.idle.values())) + self.limits.idle_time, self._sweep)

    async def shutdown(self) -> None:
        """End every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.cancel()
        await asyncio.sleep(0)  # the transports say goodbye in the loop's next turn
