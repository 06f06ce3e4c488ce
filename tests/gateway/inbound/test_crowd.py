"""A crowd of bulk callers is read in turns: in order, nothing lost, and never before those who are in real time."""

import asyncio

from gateway.inbound.crowd import MAX_KEPT, Crowd
from gateway.inbound.turns import Turns


class Reader:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.held = 0

    def take(self, data: memoryview | bytes) -> None:
        self.taken.append(bytes(data))

    def hold_reading(self) -> None:
        self.held += 1

    def go_on_reading(self) -> None:
        self.held -= 1


def crowd() -> Crowd:
    return Crowd(Turns(), lambda target: target.startswith(b"/bulk/"))


BULK = memoryview(b"POST /bulk/a HTTP/1.1\r\nHost: x\r\n\r\n")
REALTIME = memoryview(b"POST /a HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_what_there_is_time_for_is_not_kept() -> None:
    assert not crowd().keeps(Reader(), BULK)


async def test_bulk_beyond_a_turn_is_kept_and_read_in_the_next_ones_in_order() -> None:
    ours, readers = crowd(), [Reader() for _ in range(500)]
    kept = [reader for reader in readers if ours.keeps(reader, BULK)]
    assert 300 < len(kept) < 500
    for reader in kept:
        assert ours.keeps(reader, memoryview(b"more"))
    assert not any(reader.taken for reader in readers)
    for _ in range(50):
        await asyncio.sleep(0)
    assert [reader.taken for reader in kept] == [[bytes(BULK) + b"more"]] * len(kept)


async def test_real_time_is_never_kept() -> None:
    ours = crowd()
    for _ in range(500):
        ours.keeps(Reader(), BULK)
    assert not ours.keeps(Reader(), REALTIME)


async def test_a_connection_that_sends_much_is_not_read_until_its_turn() -> None:
    ours, reader = crowd(), Reader()
    while not ours.keeps(reader, BULK):
        pass
    piece = memoryview(b"x" * (MAX_KEPT // 2))
    for _ in range(4):
        assert ours.keeps(reader, piece)
    assert reader.held == 1
    for _ in range(5):
        await asyncio.sleep(0)
    assert reader.held == 0
    assert [len(taken) for taken in reader.taken] == [len(BULK) + 4 * len(piece)]


async def test_what_a_connection_sent_that_has_ended_is_forgotten() -> None:
    ours, reader = crowd(), Reader()
    while not ours.keeps(reader, BULK):
        pass
    ours.forget(reader)
    for _ in range(5):
        await asyncio.sleep(0)
    assert reader.taken == []
