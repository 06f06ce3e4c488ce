"""A connection whose call waits for long gives its parser up, and loses nothing of what came behind that call."""

import asyncio

import pytest

from gateway.config.settings import Limits
from gateway.inbound import Inbound
from gateway.inbound.listener import Listener
from gateway.inbound.turns import Turns
from tests.conftest import closed

FIRST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
SECOND = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\ncde"
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("early", [0, 1, 9, 20, len(SECOND) - 5, len(SECOND) - 1, len(SECOND)])
async def test_what_came_behind_a_call_that_rests_is_read(early: int) -> None:
    seen: list[tuple[bytes, bytes]] = []
    resting, go = asyncio.Event(), asyncio.Event()

    async def answer(inbound: Inbound) -> bool:
        body = await inbound.read(99)
        seen.append((inbound.target, body))
        inbound.rest()
        resting.set()
        await go.wait()
        inbound.write(ANSWER)
        return True

    async with asyncio.TaskGroup() as tasks:
        listener = Listener(
            answer,
            Limits(),
            tasks,
            turns=Turns(),
            on_malformed=lambda _status, _what: b"HTTP/1.1 400 Bad Request\r\n\r\n",
            on_defect=lambda defect: pytest.fail(str(defect)),
            on_refused_connection=lambda: None,
        )
        server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(FIRST + SECOND[:early])
        await resting.wait()
        go.set()
        assert await reader.readuntil(b"\r\n\r\n") == ANSWER
        writer.write(SECOND[early:])
        assert await reader.readuntil(b"\r\n\r\n") == ANSWER
        await closed(writer)
        server.close()
        await listener.shutdown()
    assert seen == [(b"/a", b"ab"), (b"/b", b"cde")]
