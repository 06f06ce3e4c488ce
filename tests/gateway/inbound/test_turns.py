"""Bulk gets a slice of each turn of the loop: in order, never starved, and real-time comes in between."""

import asyncio
from pathlib import Path

from gateway.inbound.turns import SLICE_S, Turns
from tests.conftest import closed, gateway_over, post, raw_server, whole_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_what_does_not_fit_into_a_turn_waits_for_the_next_ones_in_order() -> None:
    turns = Turns()
    loop = asyncio.get_running_loop()
    number = 0
    done: list[tuple[int, int]] = []

    def count() -> None:
        nonlocal number
        number += 1
        if len(done) < 50:
            loop.call_soon(count)

    async def work(name: int) -> None:
        await turns.take(SLICE_S / 5)
        done.append((name, number))

    loop.call_soon(count)
    async with asyncio.TaskGroup() as tasks:
        for name in range(50):
            tasks.create_task(work(name))
    assert [name for name, _ in done] == list(range(50))
    in_a_turn = [sum(turn == one for _, turn in done) for one in range(1, number + 1)]
    assert max(in_a_turn) <= 10  # five of this turn, five woken for it
    assert number >= 8


async def test_who_is_cancelled_is_passed_over_and_costs_nothing() -> None:
    turns = Turns()
    tasks = [asyncio.ensure_future(turns.take(SLICE_S)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[2:18]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result is None for result in results] == [True, True, *[False] * 16, True, True]
    await asyncio.wait_for(turns.take(1.0), 1)
    await asyncio.wait_for(turns.take(1.0), 1)


async def test_real_time_passes_between_the_slices_of_a_large_bulk_message(tmp_path: Path) -> None:
    """Counted in turns of the loop: the digest of a mebibyte leaves many of them to others."""
    body = b"<a>" + b"<b c='d'>e</b>" * 60_000 + b"</a>"
    others = 0
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        writer.write(post("/bulk/x", body))
        while run.gateway.proxy.in_flight == 0:
            await asyncio.sleep(0)
        while not server.requests:
            others += 1
            await asyncio.sleep(0)
        assert (await whole_answer(reader)).endswith(b"ok")
        await closed(writer)
    assert others > len(body) // 32768
