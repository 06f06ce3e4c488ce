"""What only the store in a file can get wrong: kill -9, a full disk, other programs, a damaged file, its thread."""

import asyncio
import os
import secrets
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import pytest

from gateway.records import Counts, NewItem
from gateway.store.interface import DelayedError, StateError, StoreError
from gateway.store.sqlite import SqliteStore, open_sqlite, runs
from gateway.store.sqlite.thread import StoreThread
from policies.model import ItemState, RunState, StoreDownError
from tests.conftest import JumpingClock
from tests.gateway.store.making import READS, claimed, items, new_run, ready_run, result, settle_all, settlement

ROOT = Path(__file__).parents[3]

# Says each thing it did after the store has acknowledged it, one a line, until it is killed.
WRITER = """
import asyncio, secrets, sys
from pathlib import Path
from gateway.store.sqlite import open_sqlite
from policies.model import RunState
from tests.conftest import JumpingClock
from tests.gateway.store.making import again, claimed, items, new_run, result, settlement

async def main():
    store = await open_sqlite(Path(sys.argv[1]), JumpingClock())
    await store.migrate()
    for _ in range(1000):
        run = await store.create_run(new_run())
        print("run", run.id, flush=True)
        for start in range(0, 200, 50):
            await store.add_items(run.id, items(range(start, start + 50), keyed=True), received=start + 50)
            print("items", run.id, start + 50, flush=True)
        await store.change_state(run.id, RunState.READY, author="anna", reason="")
        ((lane, _),) = await store.lanes(run.id)
        for _ in range(4):
            batch = await claimed(store, lane.lane_id, size=40, window=40)
            for lo in range(batch.lo, batch.hi, 8):
                done = [result(batch, position) for position in range(lo, lo + 7)]
                await store.settle(settlement(results=done, returned=[again(batch, lo + 7)]))
                print("settled", run.id, lane.lane_id, lo, flush=True)

asyncio.run(main())
"""

FILLER = """
import asyncio, resource, sys
from pathlib import Path
from gateway.store.sqlite import open_sqlite
from policies.model import StoreDownError
from tests.conftest import JumpingClock
from tests.gateway.store.making import items, new_run

async def main():
    store = await open_sqlite(Path(sys.argv[1]), JumpingClock())
    await store.migrate()
    run = await store.create_run(new_run())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    received = 0
    for _ in range(200):
        try:
            more = items(range(received, received + 500))
            received = (await store.add_items(run.id, more, received=received + 500)).received
        except StoreDownError as error:
            assert "nothing was half written" in str(error), error
            break
    else:
        raise AssertionError("the disk was never full")
    assert received > 0
    found = await store.run(run.public_id)
    assert (found.received, found.total) == (received, received), found
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    loaded = await store.add_items(run.id, items(range(received, received + 500)), received=received + 500)
    assert (loaded.added, loaded.received) == (500, received + 500)
    await store.close()
    print("went on after", received)

asyncio.run(main())
"""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await open_sqlite(path, JumpingClock())
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


def script(text: str, path: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", text, str(path)]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def counted(rows: sqlite3.Connection, query: str) -> dict[int, int]:
    return dict(rows.execute(query).fetchall())


def check_books(path: Path) -> None:
    """Compare counts with rows, past the program."""
    rows = sqlite3.connect(path)
    try:
        assert rows.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert rows.execute("pragma foreign_key_check").fetchall() == []
        item_counts = counted(
            rows, "select run_id, count(*) from item i join lane l on l.lane_id = i.id >> 32 group by 1"
        )
        settled = counted(rows, "select run_id, count(*) from result group by 1")
        tagged = counted(rows, "select run_id, count(*) from client_key group by 1")
        tried = counted(
            rows,
            "select run_id, sum(attempts) from (select run_id, attempts from result union all "
            "select run_id, attempts from returned) group by 1",
        )
        for run_id, total, done, attempts in rows.execute(
            "select run_id, total, done + rejected + failed + in_doubt, attempts from run"
        ):
            assert item_counts.get(run_id, 0) == tagged.get(run_id, 0) == total
            assert settled.get(run_id, 0) == done
            assert tried.get(run_id, 0) == attempts
    finally:
        rows.close()


async def check_acknowledged(store: SqliteStore, said: Sequence[Sequence[str]]) -> None:
    """See that whatever was said to be written is there."""
    found = {run.id: run for run in await store.runs(limit=100_000)}
    for what, run_id, *rest in said:
        run = found[int(run_id)]
        if what == "items":
            assert run.received == run.total >= int(rest[0])
        elif what == "settled":
            lane_id, lo = map(int, rest)
            for position in range(lo, lo + 7):
                record = await store.item_at(lane_id, position)
                assert record is not None
                assert record.state is ItemState.DONE
            assert await store.item_at(lane_id, lo + 7) is None


async def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    path, dice = tmp_path / "store.sqlite", Random(7)
    said: list[list[str]] = []
    for _ in range(6):
        with script(WRITER, path) as writer:
            assert writer.stdout is not None
            wanted = dice.randrange(10, 80)
            fresh = [line.split() for _, line in zip(range(wanted), writer.stdout, strict=False)]
            os.kill(writer.pid, signal.SIGKILL)
            fresh += [line.split() for line in writer.stdout if line.endswith("\n")]
        assert len(fresh) >= wanted, "the writer ended by itself"
        said += fresh
        async with opened(path) as store:
            await check_acknowledged(store, said)
            for sighting in await store.batches():
                assert await store.recover(sighting, delay_s=0) is not None
            assert list(await store.batches()) == []
        check_books(path)


async def test_a_full_disk_half_writes_nothing_and_goes_on_with_room(tmp_path: Path) -> None:
    with script(FILLER, tmp_path / "store.sqlite") as filler:
        out, errors = filler.communicate(timeout=60)
    assert filler.returncode == 0, errors
    assert out.startswith("went on after")
    rows = sqlite3.connect(tmp_path / "store.sqlite")
    assert rows.execute("pragma integrity_check").fetchall() == [("ok",)]
    rows.close()


async def test_a_database_without_room_says_so(tmp_path: Path) -> None:
    thread = StoreThread(tmp_path / "store.sqlite", JumpingClock())
    await thread.start()
    store = SqliteStore(thread)
    await store.migrate()
    run = await store.create_run(new_run())
    (pages,) = await thread.ask(lambda db: db.execute("pragma page_count").fetchone())
    await thread.ask(lambda db: db.execute(f"pragma max_page_count = {pages + 5}").fetchall())
    with pytest.raises(StoreDownError, match="Make room"):
        await store.add_items(run.id, items(range(2000)), received=2000)
    await thread.ask(lambda db: db.execute("pragma max_page_count = 1000000").fetchall())
    assert (await store.add_items(run.id, items(range(2000)), received=2000)).added == 2000
    await store.close()


async def test_a_schema_newer_than_the_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with opened(path):
        pass
    rows = sqlite3.connect(path)
    rows.execute("insert into schema_version values (99, '0099_later', 0)")
    rows.commit()
    rows.close()
    store = await open_sqlite(path, JumpingClock())
    with pytest.raises(StoreError, match=r"99.*newer program"):
        await store.migrate()
    await store.close()


async def test_another_program_that_holds_the_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with opened(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(StoreDownError, match="another program"):
            await store.note("anna", "try", "store")
        other.execute("rollback")
        other.close()
        await store.note("anna", "try", "store")


async def test_a_file_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with opened(path):
        pass
    thread = StoreThread(path, JumpingClock())
    await thread.start()
    await thread.ask(lambda db: db.execute("pragma query_only = on").fetchall())
    with pytest.raises(StoreDownError, match="cannot be opened for writing"):
        await SqliteStore(thread).note("anna", "try", "store")
    await thread.close()


async def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"this is no database, and long enough to be looked at. " * 100)
    with pytest.raises(StoreError, match="damaged"):
        await open_sqlite(path, JumpingClock())


async def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreDownError, match="cannot be opened"):
        await open_sqlite(tmp_path / "nowhere" / "store.sqlite", JumpingClock())


async def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        await store.create_run(new_run())
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {0o600}


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        pass
    with pytest.raises(StoreDownError, match="closed"):
        await store.runs()
    await store.close()  # harmless


async def test_a_caller_who_leaves_does_not_stop_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        async with asyncio.TaskGroup() as tasks:
            leaving = [tasks.create_task(store.create_run(new_run())) for _ in range(5)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
        assert all(task.cancelled() for task in leaving)
        assert len(await store.runs()) == 5


async def test_a_purge_beside_a_reader_says_so_and_is_not_over_while_the_key_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with opened(path) as store:
        await store.migrate()
        run = await store.create_run(new_run(wrapped_key=b"the key of this run"))
        await store.add_items(run.id, items(range(50)), received=50)
        await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        with closing(sqlite3.connect(path, isolation_level=None)) as backup:
            backup.execute("begin")
            backup.execute("select count(*) from run").fetchall()
            with pytest.raises(DelayedError, match="backup"):
                await store.purge(run.id, author="anna")
            purged = await store.run(run.public_id)
            assert purged is not None
            assert purged.wrapped_key is None
            assert [one.id for one in await store.to_purge(JumpingClock().wall())] == [run.id]
            await store.note("anna", "test", "x")  # nothing else waits for the reader
        await store.purge(run.id, author="anna")
        assert await store.to_purge(JumpingClock().wall()) == []
        log = path.with_name("store.sqlite-wal")
        assert b"the key of this run" not in path.read_bytes() + log.read_bytes()


async def test_a_purge_that_was_broken_off_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    thread = StoreThread(path, JumpingClock())
    await thread.start()
    store = SqliteStore(thread)
    await store.migrate()
    run = await store.create_run(new_run())
    await store.add_items(run.id, items(range(5000), keyed=True), received=5000)
    await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
    await thread.write(runs.begin_purge, run.id, "anna")
    assert await thread.write(runs.purge_slice, run.id)
    await store.close()
    async with opened(path) as store:
        (broken,) = await store.to_purge(JumpingClock().wall())
        assert (broken.id, broken.wrapped_key) == (run.id, None)
        await store.purge(run.id, author="gateway")
        assert await store.to_purge(JumpingClock().wall()) == []
        purges = [row for row in await store.audit() if row.action == "purge run"]
        assert [row.author for row in purges] == ["anna"]
    rows = sqlite3.connect(path)
    left = [rows.execute(f"select count(*) from {table}").fetchone()[0] for table in ("item", "client_key", "result")]
    rows.close()
    assert left == [0, 0, 0]


async def test_a_purged_key_is_nowhere_in_the_files(tmp_path: Path) -> None:
    path, key = tmp_path / "store.sqlite", secrets.token_bytes(60)
    async with opened(path) as store:
        run = await store.create_run(new_run(wrapped_key=key))
        await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        assert any(key in file.read_bytes() for file in tmp_path.iterdir())
        await store.purge(run.id, author="anna")
        assert not any(key in file.read_bytes() for file in tmp_path.iterdir())


async def test_others_are_served_while_a_large_run_is_purged(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        run = await store.create_run(new_run())
        await store.add_items(run.id, items(range(20_000), keyed=True), received=20_000)
        await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        served = 0
        async with asyncio.TaskGroup() as tasks:
            purge = tasks.create_task(store.purge(run.id, author="anna"))
            while not purge.done():
                await store.controls()
                served += 1
        assert served >= 10  # 20 slices at the least


async def test_purged_pages_are_used_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        sizes = []
        for _ in range(3):
            run = await store.create_run(new_run())
            await store.add_items(run.id, items(range(5000), keyed=True), received=5000)
            await store.change_state(run.id, RunState.CANCELLED, author="anna", reason="")
            await store.purge(run.id, author="anna")
            sizes.append((tmp_path / "store.sqlite").stat().st_size)
        assert sizes[2] < 1.2 * sizes[0]


async def test_a_thousand_items_of_several_lanes_and_large_answers(tmp_path: Path) -> None:
    answer = secrets.token_bytes(300_000)
    async with opened(tmp_path / "store.sqlite") as store:
        run, lane_id = await ready_run(store, 3)
        batch = await claimed(store, lane_id)
        await store.settle(settlement(results=[result(batch, 0, sealed=answer)]))
        await settle_all(store, batch)
        first = (await store.items(run.id, bodies=True, limit=1))[0]
        assert first.sealed_answer == answer
        assert (await store.rest(run.id, may_complete=True)).counts == Counts(done=3)


async def test_what_goes_wrong_midway_has_no_effect(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:
        run = await store.create_run(new_run())
        handle = secrets.token_hex(16)
        twice = [NewItem(seq, READS, b"x", key_tag=b"%016d" % seq, handle=handle) for seq in range(2)]
        with pytest.raises(StoreError):
            await store.add_items(run.id, twice, received=2)
        found = await store.run(run.public_id)
        assert found is not None
        assert (found.total, found.received) == (0, 0)
        assert await store.lanes(run.id) == []
        assert (await store.add_items(run.id, twice[:1], received=2)).added == 1
        with pytest.raises(StateError):
            await store.change_state(run.id, RunState.PAUSED, author="anna", reason="")
