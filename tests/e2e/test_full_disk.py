"""A disk that is full for a while, and a kill while it is: nothing acknowledged is lost, and it goes on by itself.

The limit is the kernel's on how large files of the gateway's process may grow: what SQLite sees is a write that fails.
"""

import asyncio
import resource
from pathlib import Path

from tests.e2e.world import (
    CONSULT,
    DECISION,
    Replica,
    at_work,
    check_books,
    check_sqlite,
    configured,
    keys,
    settled_of,
    source_at_work,
    until,
)


def limit(replica: Replica, octets: int) -> None:
    """Let no file of the process grow beyond so much."""
    assert replica.process is not None
    resource.prlimit(replica.process.pid, resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))


def full(replica: Replica) -> None:
    """Leave no room for the store's log."""
    limit(replica, (replica.folder / "data" / "store.sqlite-wal").stat().st_size)


async def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room_or_after_a_kill(tmp_path: Path) -> None:
    items = {**keys("r", 500, CONSULT), **keys("w", 160, DECISION)}
    async with source_at_work() as source:
        replica = configured(tmp_path, source.url)
        async with at_work(replica) as api:
            run_id = await api.submit(items)
            await api.reaches(run_id, settled=40)
            full(replica)
            await until(lambda: replica.events("store down"), 10, replica.log)
            [line] = replica.events("store down")
            assert "room" in line["what"] or "limits" in line["what"], line
            # What cannot be kept is not acknowledged; what needs no store goes on.
            status, said = await api.ask(
                "POST", "/runs", params={"path": "/x"}, data=b"", headers={"Content-Type": "application/x-ndjson"}
            )
            assert status == 503, said
            assert b"200 OK" in await replica.real_time("person")
            await asyncio.sleep(0.8)
            asked = source.number
            await asyncio.sleep(0.4)
            assert source.number == asked, "what may have been sent was not committed before it was sent"
            limit(replica, resource.RLIM_INFINITY)
            settled = settled_of(await api.run(run_id))
            await api.reaches(run_id, settled=settled + 60)
            # Again, and now it is killed while what it knows cannot be written.
            full(replica)
            await until(lambda: len(replica.events("store down")) == 2, 10, replica.log)
            await asyncio.sleep(0.3)
            await replica.kill()
            await replica.start()
            shown = await api.reaches(run_id, "paused", "completed")
            await check_books(api, source, run_id, items, most_calls={key: 1 if key[0] == "w" else 2 for key in items})
            doubts = await api.page(run_id, "doubts")
            assert doubts, "the kill hit nothing"
            assert {row["key"][0] for row in doubts} == {"w"}
            assert (shown["state"], shown["reason"]) == ("paused", "in doubt")
    check_sqlite(tmp_path)
