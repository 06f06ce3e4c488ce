"""A defect of ours while a request is read is told, and ends that connection: nobody waits for an answer in vain."""

import asyncio

import pytest

from gateway.config.settings import Limits
from gateway.inbound import Inbound
from gateway.inbound.listener import Listener
from gateway.inbound.turns import Turns
from tests.conftest import closed


async def test_a_defect_while_a_request_is_read_is_told_and_ends_the_connection() -> None:
    defects: list[BaseException] = []

    def is_mass(target: bytes) -> bool:
        if len(target) > 100:
            raise RuntimeError("a defect")
        return False

    async def answer(inbound: Inbound) -> bool:
        inbound.connection.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        return True

    async with asyncio.TaskGroup() as tasks:
        listener = Listener(
            answer,
            Limits(),
            tasks,
            turns=Turns(),
            is_mass=is_mass,
            on_malformed=lambda _status, _what: b"HTTP/1.1 400 Bad Request\r\n\r\n",
            on_defect=defects.append,
            on_refused_connection=lambda: None,
        )
        server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.write(b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % (b"x" * 100))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await closed(writer)
        server.close()
        await listener.shutdown()
    assert [str(one) for one in defects] == ["a defect"]
