"""The store and the calls: nothing is sent that is not marked, nothing is lost while the store cannot write."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from gateway.packing import StoredRequest, pack_request
from gateway.records import NewItem
from gateway.simulator import Latency, Script, standing_in
from policies.model import ALL_SOURCES, RunState, StoreDownError
from tests.conftest import JumpingClock, envelope, gateway_over, post, raw_server
from tests.gateway.runner.making import BASE, WRITES, items, nothing_in_hand, opened, patient, submit, until

ANSWER = (
    b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><a><status><value>DATA_FOUND</value>'
    b"<code>MSG00000</code></status></a></s:Body></s:Envelope>"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


@contextmanager
def writing_stopped(folder: Path) -> Iterator[None]:
    """Hold the file's write lock: for whoever writes, the store does not answer; reads go on."""
    with closing(sqlite3.connect(folder / "state" / "store.sqlite", isolation_level=None)) as other:
        other.execute("begin immediate")
        yield
        other.execute("rollback")


async def test_no_position_is_sent_at_or_above_the_mark_that_is_committed(tmp_path: Path) -> None:
    """The source looks into the file itself when a request arrives: its mark must be there already."""
    above: list[int] = []
    seen: list[int] = []

    async def answer(writer: asyncio.StreamWriter, request: bytes) -> None:
        found = re.search(rb"position=(\d+)", request)
        assert found is not None
        position = int(found[1])
        seen.append(position)
        with closing(sqlite3.connect(f"file:{tmp_path}/state/store.sqlite?mode=ro", uri=True)) as file:
            marks = file.execute("select armed from batch where lo <= ? and hi > ?", (position, position)).fetchall()
        if not any(mark > position for (mark,) in marks):
            above.append(position)
        writer.write(OK)
        await writer.drain()

    async with raw_server(answer) as server, patient(tmp_path, server.url) as run:
        mass = await opened(run)
        key, wrapped = mass.keys.new_key()
        record = await submit(mass, 0, wrapped_key=wrapped, ready=False)
        many = [
            NewItem(
                number,
                WRITES,
                key.seal(
                    "request",
                    record.public_id,
                    number,
                    pack_request(StoredRequest(b"/x?position=%d" % number, (), b"<a/>")),
                ),
            )
            for number in range(300)
        ]
        await mass.store.add_items(record.id, many, received=300)
        await mass.store.change_state(record.id, RunState.READY, author="anna", reason="")
        mass.runner.wake()
        done = await until(mass, record, RunState.COMPLETED)
    assert done.counts.done == 300
    assert sorted(seen) == list(range(300))
    assert above == []


async def test_what_was_answered_while_the_store_could_not_write_is_settled_later(tmp_path: Path) -> None:
    clock = JumpingClock()
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        record = await submit(mass, 300, WRITES)
        await until(mass, record, lambda one: one.counts.done >= 20)
        with writing_stopped(tmp_path):
            await asyncio.sleep(2.8)
            calls = stand_in.counts.calls.total()
            await asyncio.sleep(0.5)
            assert stand_in.counts.calls.total() == calls  # no marks, so nothing more is sent
            during = await mass.store.run(record.public_id)
            assert during is not None
            assert during.counts.done < calls < 300
            assert mass.runner.is_down
        await until(mass, record, RunState.COMPLETED)
        settled = await items(mass, record)
        await nothing_in_hand(mass)
        assert not mass.runner.is_down
        assert list((await mass.store.controls()).interruptions) == []
    assert len(settled) == 300
    assert stand_in.counts.calls.total() == 300
    events = [json.loads(line)["event"] for line in run.log.read_text().splitlines()]
    assert events.count("store down") == events.count("store up") == 1
    assert "defect" not in events


async def test_an_outage_that_stopped_bulk_is_an_interruption_of_everything(tmp_path: Path) -> None:
    clock = JumpingClock()
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        record = await submit(mass, 200)
        await until(mass, record, lambda one: one.counts.done >= 20)
        with writing_stopped(tmp_path):
            while not mass.runner.is_down:  # bounded by the suite; there is nothing to wait for
                await asyncio.sleep(0.05)
            clock.skip(seconds=20)
        async with asyncio.timeout(10):
            while not (found := (await mass.store.controls()).interruptions):
                await asyncio.sleep(0.05)
        assert [one.source for one in found] == [ALL_SOURCES]
        clock.skip(seconds=301)
        await until(mass, record, RunState.COMPLETED)
    assert stand_in.counts.calls.total() == 200


async def test_that_a_store_can_be_written_again_shows_though_nothing_is_to_be_written(tmp_path: Path) -> None:
    """Else it would seem down until the next opening, and bulk would cool down then for an outage of hours."""
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        # A claim that failed on a full disk, whose lane has left since for the closing window.
        mass.runner._committer.note_down(StoreDownError("no room on the disk"), writing=True)
        assert mass.runner.is_down
        async with asyncio.timeout(5):
            while mass.runner.is_down:
                await asyncio.sleep(0.05)
        assert [row.action for row in await mass.store.audit()] == ["store up"]


async def test_a_store_that_is_not_there_at_start_stops_no_call(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "store.sqlite").mkdir()  # nothing that can be opened
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url) as run:
        async with asyncio.timeout(5):
            while "store cannot be opened" not in run.log.read_text():
                await asyncio.sleep(0.05)
        assert (await run.ask(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n<a/>")).startswith(b"HTTP/1.1")
        assert run.gateway.mass.opened is None
        (tmp_path / "state" / "store.sqlite").rmdir()
        mass = await opened(run)
        record = await submit(mass, 5, BASE)
        await until(mass, record, RunState.COMPLETED)


def changed(folder: Path, statement: str) -> None:
    """Change the schema behind the store's back."""
    with closing(sqlite3.connect(folder / "state" / "store.sqlite")) as other:
        other.execute(statement)
        other.commit()


async def test_bulk_waits_until_it_is_known_what_persons_hold_and_real_time_does_not(tmp_path: Path) -> None:
    clock = JumpingClock()
    bulk, real_time = post("/bulk/x", envelope()), post("/x", envelope())
    queue = "bulk: {refusal_delay: 0s, queue_time: 3s}\n"
    async with standing_in() as stand_in:
        async with gateway_over(tmp_path, stand_in.url, clock=clock) as run:
            await (await opened(run)).store.hold("all", author="anna", reason="as agreed")
        changed(tmp_path, "alter table hold rename to elsewhere")  # reading it fails, whatever the reason
        async with gateway_over(tmp_path, stand_in.url, clock=clock, clean=False, extra=queue) as run:
            await opened(run)
            assert b"store_unavailable" in await run.ask(bulk)
            assert (await run.ask(real_time)).startswith(b"HTTP/1.1 200")
            waits = asyncio.ensure_future(run.ask(bulk))
            await asyncio.sleep(0.1)
            changed(tmp_path, "alter table elsewhere rename to hold")
            assert b"held" in await waits
    assert stand_in.counts.calls.total() == 1


async def test_bulk_that_cannot_know_of_holds_is_told_so_at_once_where_the_store_cannot_be_opened(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "store.sqlite").mkdir()
    async with standing_in() as stand_in, gateway_over(tmp_path, stand_in.url) as run:
        began = asyncio.get_running_loop().time()
        assert b"store_unavailable" in await run.ask(post("/bulk/x", envelope()))
        assert asyncio.get_running_loop().time() - began < 5
        (tmp_path / "state" / "store.sqlite").rmdir()
        async with asyncio.timeout(10):
            while not (await run.ask(post("/bulk/x", envelope()))).startswith(b"HTTP/1.1 200"):
                await asyncio.sleep(0.05)
    assert stand_in.counts.calls.total() == 1


async def test_where_slots_are_rows_a_start_without_the_database_says_so_to_bulk(tmp_path: Path) -> None:
    """Not that its time in the queue is over: nothing is wrong with the queue."""
    (tmp_path / "url").write_text("postgresql://nobody@127.0.0.1:9/none")
    async with (
        standing_in() as stand_in,
        gateway_over(tmp_path, stand_in.url, extra="store: {url: {file: url}}\n") as run,
    ):
        began = asyncio.get_running_loop().time()
        assert b"store_unavailable" in await run.ask(post("/bulk/x", envelope()))
        assert asyncio.get_running_loop().time() - began < 5
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
