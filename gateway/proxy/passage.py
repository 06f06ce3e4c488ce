"""A real-time call without a task: what came is sent on where it was read, and its answer where that was read.

Most calls need nobody to wait: the body comes in a moment, and a connection to the upstream is kept. As callbacks such
a call takes two turns of the event loop less until it is answered. Whatever is not so goes on as a task, from where it
stands; so does what the upstream left without an answer.

Rules that always hold:
- As for every call (`gateway.proxy.forward`): it is answered or its connection is cut, and stands in the books once.
- It is cancelled when its client goes, before and after it became a task; the upstream's connection is then aborted.
- Nothing is raised into the event loop: a defect ends the call, is told, and its caller gets an answer.

Decides nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from gateway.inbound import HIGH_WATER, ClientGoneError, Inbound
from gateway.lending import LARGE
from gateway.proxy.calls import Call
from gateway.proxy.relay import write_beginning, write_more
from gateway.proxy.site import Prepared
from gateway.upstream import Answer, Connection, Exchange

if TYPE_CHECKING:
    from gateway.proxy.forward import Proxy

GATHER_S = 0.05
"""How long a body of at most `HIGH_WATER` may take to arrive and still go out whole: in one write with its header it
costs a fifth less CPU than as a stream (measured at 200 kB), and what is slower is streamed."""


class Passage:
    """One call. Made by `Proxy.at_once`."""

    __slots__ = (
        "_call",
        "_exchange",
        "_goes_on",
        "_has_begun",
        "_inbound",
        "_is_chunked",
        "_is_over",
        "_prepared",
        "_proxy",
        "_task",
        "_timer",
    )

    def __init__(self, proxy: "Proxy", inbound: Inbound, call: Call, prepared: Prepared) -> None:
        self._proxy = proxy
        self._inbound = inbound
        self._call = call
        self._prepared = prepared
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None  # while the body is awaited
        self._task: asyncio.Task[None] | None = None  # what it has become, and has not begun
        self._is_over = False
        self._has_begun = False  # the answer, towards the client
        self._goes_on = self._is_chunked = False

    # The request.

    def gather(self) -> None:
        """Give the rest of a small body a moment to come."""
        inbound = self._inbound
        inbound.connection.carried_by(self)
        if self._prepared.fields.invites:
            inbound.invite_body()
        inbound.connection.on_more_body = self._body_came
        self._timer = self._prepared.upstream.loop.call_later(GATHER_S, self._become, self._unsent)

    def _body_came(self) -> None:
        inbound = self._inbound
        if inbound.body_is_here and (connection := self._prepared.upstream.quiet()) is not None:
            self._stop_gathering()
            self.send(connection)
        elif inbound.body_is_here or inbound.size > HIGH_WATER:
            self._become(self._unsent)

    def _stop_gathering(self) -> None:
        self._inbound.connection.on_more_body = None
        if self._timer is not None:
            self._timer.cancel()

    def send(self, connection: Connection) -> None:
        """Send the request, whose body is here, on a connection to the upstream that nobody uses."""
        call, prepared, inbound = self._call, self._prepared, self._inbound
        inbound.connection.carried_by(self)
        call.sent_at = perf_counter()
        try:
            self._exchange = exchange = prepared.upstream.send(prepared.whole(inbound, call), slot=None)
            exchange.start(connection, self._news)
            if call.bytes_in >= LARGE:  # and not later: what is looked at holds a buffer
                self._proxy.look(call, prepared)
        except Exception as error:  # noqa: BLE001  # a defect: it is told
            self._end_with(error)

    def cancel(self) -> None:
        """Give the call up: its client has gone."""
        if self._is_over:
            return
        if self._task is not None:
            self._task.cancel()
        self._stop_gathering()
        self._call.outcome = "client_gone"
        self._leave(answered=False)
        self._end()

    # The answer.

    def _news(self) -> None:
        """Go on: there is something of the answer, or never will be, or the client has taken what there was."""
        exchange = self._exchange
        if self._is_over or self._task is not None or exchange is None or (answer := exchange.answer) is None:
            return
        try:
            if self._has_begun:
                self._go_on_with(answer)
            elif answer.trouble is None:
                self._begin_with(exchange, answer)
            else:
                self._become(self._unanswered)
        except ClientGoneError:
            self._finish("client_gone")
        except Exception as error:  # noqa: BLE001  # a defect: it is told
            self._end_with(error)

    def _begin_with(self, exchange: Exchange, answer: Answer) -> None:
        proxy, call, inbound = self._proxy, self._call, self._inbound
        call.status = answer.status
        extra, goes_on = proxy.own_lines(call, self._prepared), proxy.may_go_on(inbound)
        self._has_begun = True
        self._goes_on, self._is_chunked = write_beginning(inbound, answer, extra, keep_alive=goes_on)
        if answer.complete:
            self._finish("forwarded")
        else:
            exchange.handed_out(answer)

    def _go_on_with(self, answer: Answer) -> None:
        inbound = self._inbound
        if inbound.connection.is_slow(self._news):
            return
        write_more(inbound, answer, chunked=self._is_chunked)
        if answer.trouble is not None:
            inbound.cut()
            self._finish("cut")
        elif answer.complete:
            self._finish("forwarded")

    # The end, or what goes on as a task.

    def _finish(self, outcome: str) -> None:
        inbound, is_whole = self._inbound, outcome == "forwarded"
        answer = self._leave(answered=is_whole)
        if is_whole and answer is not None:
            self._proxy.forwarded(self._call, answer)
        else:
            self._call.outcome = outcome
        self._end()
        inbound.connection.over(inbound, goes_on=is_whole and self._goes_on)

    def _leave(self, *, answered: bool) -> Answer | None:
        if self._exchange is None:
            return None
        self._exchange.leave(answered=answered)
        self._proxy.exchanged(self._call, self._prepared)
        return self._exchange.answer

    def _end_with(self, defect: Exception) -> None:
        if not self._is_over:  # else the connection to the upstream may be another call's by now
            self._leave(answered=False)
            self._end()
        self._inbound.connection.defective(self._inbound, defect)

    def _end(self) -> None:
        self._is_over = True
        self._proxy.over(self._inbound, self._call)

    def _become(self, handler: Callable[[Inbound], Awaitable[bool]]) -> None:
        self._stop_gathering()
        connection = self._inbound.connection
        self._task = connection.carry_on(self._inbound, handler)
        connection.carried_by(self)  # a task that is cancelled before it began does nothing

    def _has_become(self) -> None:
        assert self._task is not None
        self._inbound.connection.carried_by(self._task)
        self._is_over = True  # for this

    async def _unsent(self, inbound: Inbound) -> bool:
        self._has_become()
        return await self._proxy.go_on_unsent(inbound, self._call, self._prepared.plan)

    async def _unanswered(self, inbound: Inbound) -> bool:
        self._has_become()
        assert self._exchange is not None
        return await self._proxy.go_on(inbound, self._call, self._prepared, self._exchange)
