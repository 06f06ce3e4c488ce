"""How commands ask over the socket: what they do when the gateway goes away in the middle."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.cli.asking import BrokenOffError, Gateway


@asynccontextmanager
async def answering(path: Path, octets: bytes, *, after: int = 1) -> AsyncIterator[Gateway]:
    """Answer each connection with these octets once so many have been read, and close it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(after)
        writer.write(octets)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield Gateway(path)


def whole(gateway: Gateway) -> bytes:
    return b"".join(gateway.download("runs", "x", "results"))


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_whole_download_is_whole(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", HEAD + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as gateway:
        assert await asyncio.to_thread(whole, gateway) == b"abcde"


@pytest.mark.parametrize("cut", [b"3\r\nabc\r\n", b"3\r\nabc\r\n9\r\nab", b""])
async def test_a_download_that_breaks_off_is_not_taken_for_whole(tmp_path: Path, cut: bytes) -> None:
    async with answering(tmp_path / "s", HEAD + cut) as gateway:
        with pytest.raises(BrokenOffError):
            await asyncio.to_thread(whole, gateway)


async def test_an_upload_that_breaks_off_can_be_told_from_a_refusal(tmp_path: Path) -> None:
    def upload(gateway: Gateway) -> Callable[[], object]:
        parts = (b"x" * 65536 for _ in range(200))
        return lambda: gateway.upload("runs", "x", "items", octets=parts, media_type="text/csv", headers={})

    async with answering(tmp_path / "s", b"") as gateway:
        with pytest.raises(BrokenOffError):
            await asyncio.to_thread(upload(gateway))
    refusal = b'HTTP/1.1 422 x\r\nContent-Length: 31\r\n\r\n{"problems": [], "complete": 0}'
    async with answering(tmp_path / "t", refusal, after=1 << 20) as gateway:
        assert await asyncio.to_thread(upload(gateway)) == {"problems": [], "complete": 0}
