"""What only PostgreSQL has to show: two gateways on one database, a server that dies, hangs or restarts, partitions."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import asyncpg
import pytest

from gateway.app import SystemClock
from gateway.records import BatchSighting, RunRecord
from gateway.store.interface import DelayedError, StateError, Store, StoreError
from gateway.store.migrating import migrations
from gateway.store.postgres import PostgresStore, open_postgres
from policies.model import ItemState, LayoutRow, RunKind, RunState, StoreDownError
from tests.conftest import JumpingClock, closed
from tests.gateway.store.making import again, claimed, items, new_run, ready_run, result, settle_all, settlement
from tests.gateway.store.postgres_server import (
    TEMPLATE,
    EmbeddedServer,
    embedded_server,
    emptied_database,
    fresh_database,
)

Two = tuple[PostgresStore, PostgresStore]


@asynccontextmanager
async def opened(url: str, timeout: float = 10.0) -> AsyncIterator[PostgresStore]:
    store = await open_postgres(url, SystemClock(), timeout)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[str]:
    """The address of an empty store."""
    async with emptied_database(postgres_url) as url:
        yield url


@pytest.fixture
async def two(database: str) -> AsyncIterator[Two]:
    """Two gateways' stores on one database."""
    async with opened(database) as one, opened(database) as other:
        yield one, other


async def asked(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


class TestTwoGateways:
    async def test_nothing_is_claimed_twice_and_nothing_is_left_out(self, two: Two) -> None:
        _, lane = await ready_run(two[0], 500)

        async def work(store: PostgresStore, holder: str) -> list[int]:
            mine: list[int] = []
            while batch := await store.claim(lane, holder, size=7, window=3):
                mine += [item.position for item in await store.fetch(batch)]
            return mine

        shares = await asyncio.gather(*(work(two[n % 2], f"holder-{n}") for n in range(4)))
        assert sorted(position for share in shares for position in share) == list(range(500))
        assert all(shares)

    async def test_a_returned_item_is_claimed_once(self, two: Two) -> None:
        _, lane = await ready_run(two[0], 60)
        batch = await claimed(two[0], lane)
        await two[0].settle(settlement(returned=[again(batch, n) for n in range(60)], finished=[batch]))

        async def work(store: PostgresStore, holder: str) -> list[int]:
            mine: list[int] = []
            while taken := await store.claim_returned(lane, holder, size=4):
                mine += [item.position for item in await store.fetch(taken)]
            return mine

        shares = await asyncio.gather(*(work(two[n % 2], f"holder-{n}") for n in range(4)))
        assert sorted(position for share in shares for position in share) == list(range(60))

    async def test_an_item_that_both_settle_is_settled_once(self, two: Two, database: str) -> None:
        run, lane = await ready_run(two[0], 40)
        batch = await claimed(two[0], lane)
        states = (ItemState.DONE, ItemState.REJECTED)
        told = await asyncio.gather(
            *(
                store.settle(settlement(results=[result(batch, n, state)], holder=holder))
                for n in range(40)
                for store, state, holder in zip(two, states, ("here", "there"), strict=True)
            )
        )
        assert sum(one.stored for one in told) == 40
        found = await two[1].run(run.public_id)
        assert found is not None
        assert found.counts.settled == 40
        assert found.attempts == 40
        rows = await asked(database, "select state, count(*) from result group by state")
        assert {row[0]: row[1] for row in rows} == {
            number: count for number, count in enumerate((found.counts.done, found.counts.rejected)) if count
        }

    async def test_what_is_settled_while_another_recovers_its_batch_counts_once(self, two: Two) -> None:
        run, lane = await ready_run(two[0], 50)
        for lo in range(0, 50, 5):
            batch = await claimed(two[0], lane, size=5, window=5)
            assert batch.lo == lo
            sighting = BatchSighting(batch.batch_id, "here", batch.token, 0)
            settled, recovered = await asyncio.gather(
                two[0].settle(settlement(results=[result(batch, n) for n in range(lo, lo + 5)])),
                two[1].recover(sighting, delay_s=0.0),
            )
            assert settled.stored == 5
            assert recovered is not None
        found = await two[0].run(run.public_id)
        assert found is not None
        assert (found.counts.done, found.waiting) == (50, 0)
        assert await two[1].claim_returned(lane, "there", size=100) is None
        assert await two[1].batches() == []

    async def test_of_two_that_recover_a_batch_one_does(self, two: Two) -> None:
        _, lane = await ready_run(two[0], 10)
        batch = await claimed(two[0], lane)
        sighting = BatchSighting(batch.batch_id, "here", batch.token, 0)
        told = await asyncio.gather(*(store.recover(sighting, delay_s=0.0) for store in (*two, *two)))
        assert sorted(one.again for one in told if one is not None) == [10]

    async def test_a_run_is_made_once_by_two_that_submit_it_at_once(self, two: Two) -> None:
        made = await asyncio.gather(*(store.create_run(new_run(idempotency_key="key")) for store in (*two, *two)))
        assert len({run.id for run in made}) == 1
        assert [row.action for row in await two[0].audit()] == ["create run"]

    async def test_a_client_key_is_added_once_by_two_that_upload_at_once(self, two: Two) -> None:
        run = await two[0].create_run(new_run(kind=RunKind.ASYNC))
        told = await asyncio.gather(
            *(store.add_items(run.id, items(range(30), keyed=True), received=None) for store in (*two, *two))
        )
        assert sorted(one.added for one in told) == [0, 0, 0, 30]
        ((work, total),) = await two[0].lanes(run.id)
        assert (work.unclaimed, total) == (30, 30)

    async def test_after_a_pause_nothing_is_claimed(self, two: Two) -> None:
        for _ in range(5):
            run, lane = await ready_run(two[0], 64)

            async def work(lane: int = lane) -> int:
                count = 0
                while await two[1].claim(lane, "there", size=1, window=1):
                    count += 1
                return count

            async def pause(run_id: int = run.id) -> None:
                await two[0].change_state(run_id, RunState.PAUSED, author="anna", reason="stop")

            count, _ = await asyncio.gather(work(), pause())
            ((left, _),) = await two[0].lanes(run.id)
            assert left.unclaimed == 64 - count
            assert await two[1].claim(lane, "there", size=1, window=1) is None

    async def test_revisions_and_numbers_grow_by_one_for_each_change(self, two: Two) -> None:
        before = (await two[0].controls()).revision
        await asyncio.gather(
            *(two[n % 2].hold(f"source:{n}", author="anna", reason="") for n in range(6)),
            *(two[n % 2].interrupt(f"source-{n % 3}", reason="burst", cool_s=60.0) for n in range(6)),
        )
        after = await two[1].controls()
        assert after.revision == before + 9
        assert sorted(one.number for one in after.interruptions) == [1, 2, 3]

    async def test_two_that_start_on_an_empty_database_make_its_schema_once(self, postgres_url: str) -> None:
        async with fresh_database(postgres_url) as url, AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(url)) for _ in range(3)]
            told = await asyncio.gather(*(store.migrate() for store in stores))
            known = len(migrations("postgres"))
            assert sorted(told) == [(0, known), (known, known), (known, known)]

    async def test_a_schema_that_is_newer_is_left_alone(self, postgres_url: str) -> None:
        async with fresh_database(postgres_url, template=TEMPLATE) as url, opened(url) as store:
            await asked(url, "insert into schema_version (version, name) values (99, 'future')")
            with pytest.raises(StoreError, match="newer"):
                await store.migrate()
            assert await store.controls()  # the connection was not lost for it


class TestLines:
    async def test_a_connection_that_cannot_be_made_again_stops_nothing_while_others_are_there(
        self, two: Two, database: str
    ) -> None:
        await asyncio.gather(*(two[0].controls() for _ in range(8)))
        line = two[0]._lines._shared[0]
        assert line._connection is not None
        name, pid = urlsplit(database).path.strip("/"), line._connection.get_server_pid()
        server = urlsplit(database)._replace(path="/postgres").geturl()
        await asked(server, f'alter database "{name}" with allow_connections false')
        try:
            await asked(server, f"select pg_terminate_backend({pid})")
            with suppress(StoreDownError):
                await two[0].controls()  # it may be the one that was under way
            for _ in range(20):
                await two[0].controls()
        finally:
            await asked(server, f'alter database "{name}" with allow_connections true')


class TestPurging:
    async def test_a_files_partitions_go_with_it_and_others_stay(self, two: Two, database: str) -> None:
        runs = [await ready_run(two[0], 20) for _ in range(2)]
        for run, lane in runs:
            await settle_all(two[0], await claimed(two[0], lane))
            await two[0].rest(run.id, may_complete=True)
        (gone, _), (stays, _) = runs
        async with asyncio.TaskGroup() as tasks:
            purge = tasks.create_task(two[0].purge(gone.id, author="anna"))
            for _ in range(20):
                await two[1].items(stays.id)
        assert purge.result().wrapped_key is None
        tables = {row[0] for row in await asked(database, "select relname from pg_class where relname ~ '_[0-9]+$'")}
        assert {f"item_{stays.id}", f"result_{stays.id}"} <= tables
        assert not {f"item_{gone.id}", f"result_{gone.id}"} & tables
        assert len(await two[0].items(stays.id, bodies=True, requests=True)) == 20
        assert await two[0].items(gone.id) == []

    async def test_a_purge_that_was_broken_off_is_completed(self, two: Two, database: str) -> None:
        run, _ = await ready_run(two[0], 20)
        await two[0].change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        purge = asyncio.ensure_future(two[0].purge(run.id, author="anna"))
        while (found := await two[1].run(run.public_id)) and found.wrapped_key is not None:
            await asyncio.sleep(0)
        purge.cancel()
        with suppress(asyncio.CancelledError):
            await purge
        await two[1].purge(run.id, author="ben")
        assert await two[1].to_purge(SystemClock().wall()) == []
        assert await asked(database, f"select 1 from item where part = {run.id}") == []
        assert [row.author for row in await two[0].audit() if row.action == "purge run"] == ["anna"]

    async def test_a_backup_that_holds_the_tables_delays_a_purge_and_nothing_else(
        self, two: Two, database: str
    ) -> None:
        run, _ = await ready_run(two[0], 20)
        _, lane = await ready_run(two[0], 20)
        await two[0].change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        backup = await asyncpg.connect(database, timeout=10)
        try:
            await backup.execute("begin")
            await backup.execute("lock table item, result in access share mode")
            with pytest.raises(DelayedError, match="backup"):
                await two[0].purge(run.id, author="anna")
            await settle_all(two[1], await claimed(two[1], lane))
        finally:
            await backup.close()
        assert [one.id for one in await two[1].to_purge(SystemClock().wall())] == [run.id]
        await two[1].purge(run.id, author="anna")
        assert await two[1].to_purge(SystemClock().wall()) == []
        assert await asked(database, f"select 1 from pg_class where relname = 'item_{run.id}'") == []

    async def test_a_call_that_ends_in_the_middle_of_a_purge_does_no_harm(self, two: Two, database: str) -> None:
        """Where its result's partition is gone and its item is not, no settlement that holds it could be written."""
        run, lane = await ready_run(two[0], 20)
        batch = await claimed(two[0], lane)
        await two[0].change_state(run.id, RunState.CANCELLED, author="anna", reason="")
        reader = await asyncpg.connect(database, timeout=10)
        try:
            await reader.execute("begin")
            await reader.execute(f"lock table result_{run.id} in access share mode")
            purge = asyncio.ensure_future(two[0].purge(run.id, author="anna"))
            async with asyncio.timeout(5):
                while await asked(database, f"select 1 from pg_class where relname = 'item_{run.id}'"):
                    await asyncio.sleep(0.05)
            assert (await two[1].settle(settlement(results=[result(batch, 0)], finished=[batch]))).stored == 0
        finally:
            await reader.close()
        await purge
        assert (await two[1].settle(settlement(results=[result(batch, 1)], finished=[batch]))).stored == 0

    async def test_small_runs_leave_the_shared_partition_row_by_row(self, two: Two, database: str) -> None:
        runs = [await two[0].create_run(new_run(kind=RunKind.ASYNC)) for _ in range(2)]
        for run in runs:
            await two[0].add_items(run.id, items(range(2500)), received=None)
        await two[0].change_state(runs[0].id, RunState.CANCELLED, author="anna", reason="")
        await two[0].purge(runs[0].id, author="anna")
        rows = await asked(database, "select run_id, count(*) from item where part = 0 group by run_id")
        assert [tuple(row) for row in rows] == [(runs[1].id, 2500)]


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedServer]:
    """A server that may be killed, and then has on disk what it acknowledged."""
    with embedded_server(durable=True) as server:
        yield server


async def load(store: Store, run_id: int, acknowledged: list[int]) -> None:
    """Add items one by one, until the store is down."""
    with suppress(StoreDownError):
        while True:
            seq = len(acknowledged)
            await store.add_items(run_id, items(range(seq, seq + 1), keyed=True), received=seq + 1)
            acknowledged.append(seq)


class TestOutages:
    async def test_what_was_acknowledged_is_there_after_a_kill(self, mortal: EmbeddedServer) -> None:
        async with opened(mortal.url, 5.0) as store:
            await store.migrate()
            for _ in range(3):
                run = await store.create_run(new_run())
                acknowledged: list[int] = []
                async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                    tasks.create_task(load(store, run.id, acknowledged))
                    while len(acknowledged) < 20:
                        await asyncio.sleep(0.005)
                    await asyncio.to_thread(mortal.kill)
                await asyncio.to_thread(mortal.start)
                found = await eventually(store, run.public_id)
                assert found.total in (len(acknowledged), len(acknowledged) + 1)  # the last answer may be lost
                assert found.received == found.total
                ((_, total),) = await store.lanes(run.id)
                assert total == found.total
                rows = await asked(mortal.url, f"select seq from item where part = {run.id} order by seq")
                assert [row[0] for row in rows] == list(range(found.total))

    async def test_a_black_hole_is_an_error_in_time_and_over_when_it_heals(self, database: str) -> None:
        async with hole(database) as (url, opening), opened(url, 0.5) as store:
            run = await store.create_run(new_run())
            loop = asyncio.get_running_loop()
            opening.clear()
            began = loop.time()
            asked_at_once = [store.run(run.public_id), store.batches(), store.observe(), store.renew_batches("here")]
            told = await asyncio.gather(*asked_at_once, return_exceptions=True)
            assert all(isinstance(one, StoreDownError) for one in told), told
            assert loop.time() - began < 2.0
            await store.woken(0.05)
            opening.set()
            assert (await eventually(store, run.public_id)).id == run.id

    async def test_a_listener_notices_that_its_server_is_gone(self, two: Two, database: str) -> None:
        clock = JumpingClock()
        async with hole(database) as (url, opening):
            store = await open_postgres(url, clock, 0.5)
            try:
                await store.woken(0.01)
                before = store._own[1]._connection
                clock.skip(seconds=11)
                await store.woken(0.01)
                assert store._own[1]._connection is before
                opening.clear()
                clock.skip(seconds=11)
                await store.woken(0.01)
                assert store._own[1]._connection is None
                opening.set()
                clock.skip(seconds=11)
                await store.woken(0.01)
                assert await two[0].install(LayoutRow("digest", 76.0, (("base", 1),)), await two[0].observe())
                rows = await two[0].take("digest", "one", (await two[0].observe()).rows)
                await store.wait("two", {"base": 0.1})
                async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                    tasks.create_task(store.woken(60.0))
                    tasks.create_task(two[0].release("one", rows))
            finally:
                await store.close()

    async def test_who_freezes_in_a_transaction_does_not_stop_the_others(self, two: Two, database: str) -> None:
        run, lane = await ready_run(two[0], 5)
        async with opened(database, 1.0) as frozen:

            async def freeze() -> None:
                async with frozen._lines.shared.transaction(5.0) as connection:
                    await connection.execute(f"select from run where id = {run.id} for update")
                    assert await two[0].claim(lane, "here", size=1, window=1) is not None

            with pytest.raises(StoreDownError):
                await freeze()

    async def test_a_refusal_leaves_the_connection_and_nothing_behind(self, two: Two) -> None:
        run, lane = await ready_run(two[0], 5)
        batch = await claimed(two[0], lane)
        connection = two[0]._lines.settling._connection
        with pytest.raises(StateError):
            await two[0].settle(settlement(results=[result(batch, 0)], finished=[batch]))
        found = await two[0].run(run.public_id)
        assert found is not None
        assert found.counts.settled == 0
        assert (await two[0].settle(settlement(results=[result(batch, 0)]))).stored == 1
        assert two[0]._lines.settling._connection is connection

    @pytest.mark.parametrize("url", ["mysql://localhost/gateway", "postgresql://gateway:sec/ret@localhost/gateway", ""])
    async def test_an_address_that_cannot_be_is_refused_without_being_quoted(self, url: str) -> None:
        with pytest.raises(StoreError, match="no address of PostgreSQL") as raised:
            await open_postgres(url, SystemClock(), 1.0)
        assert "sec" not in str(raised.value)
        assert raised.value.__cause__ is None


async def eventually(store: Store, public_id: str) -> RunRecord:
    """Return a run once the store answers."""
    async with asyncio.timeout(30):
        while True:
            with suppress(StoreDownError):
                found = await store.run(public_id)
                assert found is not None
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def hole(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Stand between a store and its server; while the event is not set, nothing comes through."""
    opening = asyncio.Event()
    opening.set()
    address = urlsplit(url)
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await opening.wait()
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection(address.hostname, address.port)
        writers.extend((writer, out))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, out))
            tasks.create_task(pump(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        user = address.netloc.rpartition("@")[0]
        yield address._replace(netloc=f"{user}@127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl(), opening
    finally:
        opening.set()
        server.close()
        for writer in writers:
            await closed(writer)
