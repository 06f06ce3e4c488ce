"""A real-time call without a task: what came is sent on where it was read, and its answer where that was read.

Most calls need nobody to wait: the body is here whole, and a connection to the upstream is kept. As callbacks such a
call takes two turns of the event loop less until it is answered. Whatever is not so goes on as a task, from where it
stands; so does what the upstream left without an answer.

Rules that always hold:
- As for every call (`gateway.proxy.forward`): it is answered or its connection is cut, and stands in the books once.
- It is cancelled when its client goes, before and after it became a task; the upstream's connection is then aborted.
- Nothing is raised into the event loop: a defect ends the call, is told, and its caller gets an answer.

Decides nothing.
"""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from gateway.inbound import ClientGoneError, Inbound
from gateway.lending import LARGE
from gateway.proxy.calls import Call
from gateway.proxy.relay import write_beginning, write_more
from gateway.proxy.site import Prepared
from gateway.upstream import Answer, Connection, Exchange

if TYPE_CHECKING:
    from gateway.proxy.forward import Proxy


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
    )

    def __init__(self, proxy: "Proxy", inbound: Inbound, call: Call, prepared: Prepared, exchange: Exchange) -> None:
        self._proxy = proxy
        self._inbound = inbound
        self._call = call
        self._prepared = prepared
        self._exchange = exchange
        self._task: asyncio.Task[None] | None = None  # what it has become, and has not begun
        self._is_over = False
        self._has_begun = False  # the answer, towards the client
        self._goes_on = self._is_chunked = False

    def begin(self, connection: Connection) -> None:
        """Send the request on a connection to the upstream that nobody uses."""
        self._inbound.connection.carried_by(self)
        self._call.sent_at = perf_counter()
        try:
            self._exchange.start(connection, self._news)
            if self._call.bytes_in >= LARGE:  # and not later: what is looked at holds a buffer
                self._proxy.look(self._call, self._prepared)
        except Exception as error:  # noqa: BLE001  # a defect: it is told
            self._end_with(error)

    def cancel(self) -> None:
        """Give the call up: its client has gone."""
        if self._is_over:
            return
        if self._task is not None:
            self._task.cancel()
        self._call.outcome = "client_gone"
        self._exchange.leave(answered=False)
        self._proxy.exchanged(self._call, self._prepared)
        self._end()

    def _news(self) -> None:
        """Go on: there is something of the answer, or never will be, or the client has taken what there was."""
        answer, inbound = self._exchange.answer, self._inbound
        if self._is_over or answer is None:
            return
        try:
            if self._has_begun:
                self._go_on_with(answer)
            elif answer.trouble is None:
                self._begin_with(answer)
            else:
                self._task = inbound.connection.carry_on(inbound, self._as_task)
                inbound.connection.carried_by(self)  # a task that is cancelled before it began does nothing
        except ClientGoneError:
            self._finish("client_gone")
        except Exception as error:  # noqa: BLE001  # a defect: it is told
            self._end_with(error)

    def _begin_with(self, answer: Answer) -> None:
        proxy, call, inbound = self._proxy, self._call, self._inbound
        call.status = answer.status
        extra, goes_on = proxy.own_lines(call, self._prepared), proxy.may_go_on(inbound)
        self._has_begun = True
        self._goes_on, self._is_chunked = write_beginning(inbound, answer, extra, keep_alive=goes_on)
        if answer.complete:
            self._finish("forwarded")
        else:
            self._exchange.handed_out(answer)

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

    def _finish(self, outcome: str) -> None:
        proxy, call, inbound, answer = self._proxy, self._call, self._inbound, self._exchange.answer
        is_whole = outcome == "forwarded"
        self._exchange.leave(answered=is_whole)
        proxy.exchanged(call, self._prepared)
        if is_whole and answer is not None:
            proxy.forwarded(call, answer)
        else:
            call.outcome = outcome
        self._end()
        inbound.connection.over(inbound, goes_on=is_whole and self._goes_on)

    async def _as_task(self, inbound: Inbound) -> bool:
        assert self._task is not None
        inbound.connection.carried_by(self._task)
        self._is_over = True  # for this
        return await self._proxy.go_on(inbound, self._call, self._prepared, self._exchange)

    def _end_with(self, defect: Exception) -> None:
        self._exchange.leave(answered=False)
        self._end()
        self._inbound.connection.defective(self._inbound, defect)

    def _end(self) -> None:
        self._is_over = True
        self._proxy.over(self._inbound, self._call)
