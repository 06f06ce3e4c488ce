"""Slots as rows of a real PostgreSQL: who may take, renew, release and install, and what races come to."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.app import SystemClock
from gateway.store.postgres import PostgresStore, open_postgres
from policies.model import LayoutRow, SlotBook, SlotRow, StoreDownError, WaitingReplica
from tests.gateway.store.postgres_server import (
    TEMPLATE,
    EmbeddedServer,
    embedded_server,
    emptied_database,
    fresh_database,
    step_clock,
)

LAYOUT = LayoutRow("digest-1", 76.0, (("base", 4), ("other", 2)))


@pytest.fixture
async def stores(postgres_url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """Two gateways' stores on one fresh database."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(emptied_database(postgres_url))
        one, two = await open_postgres(url, SystemClock(), 5.0), await open_postgres(url, SystemClock(), 5.0)
        stack.push_async_callback(one.close)
        stack.push_async_callback(two.close)
        yield one, two


async def installed(store: PostgresStore, layout: LayoutRow = LAYOUT) -> tuple[SlotRow, ...]:
    """Install a layout; return its rows."""
    assert await store.install(layout, await store.observe())
    return (await store.observe()).rows


def of(rows: tuple[SlotRow, ...], pool: str) -> tuple[SlotRow, ...]:
    return tuple(row for row in rows if row.pool == pool)


class TestInstalling:
    async def test_an_empty_database_has_no_layout_and_no_rows(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        assert await stores[0].observe() == SlotBook(None, ())

    async def test_new_rows_are_born_occupied_by_nobody(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        rows = await installed(stores[0])
        assert [(row.pool, row.n) for row in rows] == [
            *(("base", n) for n in (1, 2, 3, 4)),
            *(("other", n) for n in (1, 2)),
        ]
        assert all(row.holder.startswith("nobody-") and row.token == 1 and row.renewal == 0 for row in rows)
        assert (await stores[1].observe()).layout == LAYOUT

    async def test_a_layout_is_replaced_only_as_it_was_seen(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        seen = await two.observe()
        await one.take(LAYOUT.digest, "one", rows[:1])
        wanted = LayoutRow("digest-2", 80.0, (("base", 2),))
        assert not await two.install(wanted, seen)
        assert not await two.install(wanted, replace(seen, layout=None))
        assert (await one.observe()).layout == LAYOUT
        assert await two.install(wanted, await two.observe())

    async def test_rows_of_both_layouts_stay_and_new_ones_get_a_token_above_all_before(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, _ = stores
        rows = await installed(one)
        for _ in range(3):
            rows = (*await one.take(LAYOUT.digest, "one", rows[:1]), *rows[1:])
        (other,) = await one.take(LAYOUT.digest, "one", of(rows, "other")[:1])
        after = await installed(one, LayoutRow("digest-2", 76.0, (("base", 4),)))
        assert after == of((await one.observe()).rows, "base")
        assert after[0].token == 4
        again = await installed(one, LAYOUT)
        assert of(again, "base") == after
        assert all(row.token > max(other.token, after[0].token) for row in of(again, "other"))
        assert len({row.holder for row in of(again, "other")} | {row.holder for row in rows[1:]}) >= 2

    async def test_tokens_of_dropped_rows_are_not_given_again(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, _ = stores
        rows = await installed(one)
        for _ in range(5):
            rows = (*rows[:4], *await one.take(LAYOUT.digest, "one", rows[4:]))
        await installed(one, LayoutRow("nothing", 76.0, ()))
        assert (await one.observe()).rows == ()
        assert {row.token for row in await installed(one)} == {7}

    async def test_of_two_that_install_at_once_one_does(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        for round_ in range(10):
            seen = await stores[0].observe()
            layouts = [LayoutRow(f"{round_}-{one}", 76.0, (("base", one + 1),)) for one in (0, 1)]
            done = await asyncio.gather(*(s.install(layout, seen) for s, layout in zip(stores, layouts, strict=True)))
            assert sorted(done) == [False, True]
            book = await stores[0].observe()
            assert book.layout == layouts[done.index(True)]


class TestTaking:
    async def test_a_take_raises_the_token_and_begins_renewals_anew(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        rows = await installed(stores[0])
        taken = await stores[0].take(LAYOUT.digest, "one", rows[:2])
        assert taken == tuple(SlotRow(row.pool, row.n, row.token + 1, 0, "one") for row in rows[:2])
        assert (await stores[1].observe()).rows == (*taken, *rows[2:])

    async def test_all_rows_or_none(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        await two.take(LAYOUT.digest, "two", rows[1:2])
        assert await one.take(LAYOUT.digest, "one", (rows[0], rows[1], rows[5])) == ()
        assert {row.holder for row in (await one.observe()).rows if row.holder in ("one", "two")} == {"two"}

    async def test_a_renewal_since_the_sighting_keeps_the_row(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        (renewed,) = await one.renew(LAYOUT.digest, "one", held)
        assert renewed.renewal == 1
        assert await two.take(LAYOUT.digest, "two", held) == ()
        assert await two.take(LAYOUT.digest, "two", (renewed,)) != ()

    async def test_another_layout_takes_and_renews_nothing(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, _ = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        assert await one.take("digest-2", "one", rows[1:2]) == ()
        assert await one.renew("digest-2", "one", held) == ()
        assert (await one.observe()).rows == (*held, *rows[1:])

    async def test_nothing_is_taken_when_nothing_is_asked(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        await installed(stores[0])
        assert await stores[0].take(LAYOUT.digest, "one", ()) == ()

    async def test_of_two_that_take_the_same_row_one_gets_it(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        rows = await installed(stores[0])
        for _ in range(30):
            takes = await asyncio.gather(
                stores[0].take(LAYOUT.digest, "one", rows), stores[1].take(LAYOUT.digest, "two", rows[::-1])
            )
            assert sorted(map(len, takes)) == [0, len(rows)]
            rows = max(takes, key=len)
            assert (await stores[0].observe()).rows == rows

    async def test_overlapping_takes_and_renewals_do_not_wait_for_each_other_for_ever(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, two = stores
        rows = await installed(one)
        for _ in range(20):
            rows = (await one.observe()).rows
            got = await asyncio.gather(
                one.take(LAYOUT.digest, "one", rows[:4]),
                two.take(LAYOUT.digest, "two", rows[:1:-1]),
                one.renew(LAYOUT.digest, "one", ()),
                two.renew(LAYOUT.digest, "two", ()),
            )
            held = [(row.pool, row.n) for row in (*got[0], *got[1])]
            assert len(held) == len(set(held))


class TestEverythingAtOnce:
    async def test_nobody_waits_for_ever_and_no_row_has_two_holders(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        """Installing, taking, renewing and releasing at once; a deadlock would be an error."""
        layouts = (LAYOUT, LayoutRow("digest-2", 76.0, (("base", 3), ("more", 2))))
        await installed(stores[0])
        taken: set[tuple[str, int, int]] = set()

        async def live(store: PostgresStore, holder: str) -> int:
            count, held = 0, ()
            for turn in range(60):
                book = await store.observe()
                assert book.layout is not None
                wanted = tuple(row for row in book.rows if row.n % 2 == turn % 2)
                got = await store.take(book.layout.digest, holder, wanted)
                for row in got:
                    assert (row.pool, row.n, row.token) not in taken
                    taken.add((row.pool, row.n, row.token))
                count += len(got)
                held = await store.renew(book.layout.digest, holder, got)
                if turn % 3 == 0:
                    await store.release(holder, held)
            return count

        async def reinstall(store: PostgresStore) -> None:
            for turn in range(60):  # in vain, whenever another was quicker: how often, is chance
                await store.install(layouts[turn % 2], await store.observe())

        other = await open_postgres(stores[0]._own[0]._url, SystemClock(), 5.0)
        try:
            one, two, _ = await asyncio.gather(live(stores[0], "one"), live(stores[1], "two"), reinstall(other))
            assert one + two == len(taken) > 0
            assert await other.install(layouts[0], await other.observe()), "nobody is left who could be quicker"
        finally:
            await other.close()


class TestRenewing:
    async def test_rows_that_its_holder_does_not_know_are_released(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, two = stores
        rows = await installed(one)
        taken = await one.take(LAYOUT.digest, "one", rows[:3])
        foreign = await two.take(LAYOUT.digest, "two", rows[3:4])
        assert await one.renew(LAYOUT.digest, "one", taken[:1]) == (replace(taken[0], renewal=1),)
        after = (await one.observe()).rows
        assert [row.holder for row in after[:4]] == ["one", "", "", "two"]
        assert after[1].token == taken[1].token
        assert after[3:4] == foreign

    async def test_a_row_that_was_taken_over_is_not_renewed(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:2])
        taken = await two.take(LAYOUT.digest, "two", held[:1])
        assert await one.renew(LAYOUT.digest, "one", held) == (replace(held[1], renewal=1),)
        assert (await one.observe()).rows[0] == taken[0]

    async def test_a_row_taken_over_and_back_is_released_when_only_the_old_token_is_known(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        back = await one.take(LAYOUT.digest, "one", await two.take(LAYOUT.digest, "two", held))
        assert await one.renew(LAYOUT.digest, "one", held) == ()
        assert (await one.observe()).rows[0] == replace(back[0], holder="")


class TestReleasing:
    async def test_a_released_row_can_be_taken_as_it_is_seen(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        await one.release("one", held)
        (row, *_) = (await two.observe()).rows
        assert row == replace(held[0], holder="")
        assert await two.take(LAYOUT.digest, "two", (row,)) == (SlotRow("base", 1, row.token + 1, 0, "two"),)

    async def test_what_another_holds_by_now_is_not_released(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        taken = await two.take(LAYOUT.digest, "two", held)
        await one.release("one", held)
        await one.release("one", taken)
        assert (await one.observe()).rows[0] == taken[0]

    async def test_who_waits_is_woken_by_a_release(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows[:1])
        await two.woken(0.01)  # it listens from here on
        await two.wait("two", {"base": 0.5})
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(two.woken(20.0))
            tasks.create_task(one.release("one", held))
        assert loop.time() - began < 10

    async def test_nobody_is_woken_when_nobody_waits_for_that_pool(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        one, two = stores
        rows = await installed(one)
        held = await one.take(LAYOUT.digest, "one", rows)
        await two.woken(0.01)
        await two.wait("two", {"other": 0.5})
        await one.wait("one", {"base": 0.5})  # the one that releases does not wake itself
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(two.woken(0.3))
            tasks.create_task(one.release("one", of(held, "base")))
        assert loop.time() - began >= 0.29


class TestWaiting:
    async def test_others_are_told_and_not_oneself(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        assert await one.wait("one", {"base": 0.25, "other": 1.5}) == ()
        (base, other) = await two.wait("two", {})
        assert (base.holder, base.pool, other.pool) == ("one", "base", "other")
        assert 0.25 <= base.waited_s < 5
        assert (await two.observe()).waiting[1].waited_s >= 1.5
        await one.wait("one", {"other": 2.0})
        assert [told.pool for told in await two.wait("two", {})] == ["other"]
        await one.wait("one", {})
        assert await two.wait("two", {}) == ()

    @pytest.mark.parametrize("hours", [1, -1])
    async def test_a_step_of_the_databases_clock_forgets_who_waits_until_they_say_so_again(
        self, stores: tuple[PostgresStore, PostgresStore], hours: int
    ) -> None:
        one, two = stores
        await one.wait("one", {"base": 0.25})
        await step_clock(one._own[0]._url, timedelta(hours=hours))
        assert await two.wait("two", {}) == ()
        assert (await two.observe()).waiting == ()
        await one.wait("one", {"base": 0.5})
        (told,) = await two.wait("two", {})
        assert told == WaitingReplica("one", "base", pytest.approx(0.5, abs=1.0))


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedServer]:
    """A server that may be killed."""
    with embedded_server(durable=True) as server:
        yield server


class TestOutages:
    async def test_a_killed_server_is_an_error_at_once_and_its_rows_are_there_when_it_is_back(
        self, mortal: EmbeddedServer
    ) -> None:
        store = await open_postgres(mortal.url, SystemClock(), 5.0)
        try:
            await store.migrate()
            rows = await installed(store)
            held = await store.take(LAYOUT.digest, "one", rows[:2])
            await asyncio.to_thread(mortal.kill)
            for _ in range(3):
                with pytest.raises(StoreDownError):
                    await store.renew(LAYOUT.digest, "one", held)
            await store.woken(0.05)
            await asyncio.to_thread(mortal.start)
            deadline = asyncio.get_running_loop().time() + 20
            while True:
                try:
                    renewed = await store.renew(LAYOUT.digest, "one", held)
                    break
                except StoreDownError:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.05)
            assert renewed == tuple(replace(row, renewal=1) for row in held)
        finally:
            await store.close()

    async def test_a_row_that_stays_locked_is_an_error_in_time_and_nothing_happened(self, postgres_url: str) -> None:
        async with fresh_database(postgres_url, template=TEMPLATE) as url:
            store = await open_postgres(url, SystemClock(), 0.3)
            other = await open_postgres(url, SystemClock(), 5.0)
            try:
                rows = await installed(store)
                async with other._lines.shared.transaction() as connection:
                    await connection.execute("select from slot for update")
                    with pytest.raises(StoreDownError, match="did not do it"):
                        await store.take(LAYOUT.digest, "one", rows[:1])
                assert len(await store.take(LAYOUT.digest, "one", rows[:1])) == 1
            finally:
                await store.close()
                await other.close()

    async def test_ended_sessions_are_made_again(self, stores: tuple[PostgresStore, PostgresStore]) -> None:
        one, two = stores
        rows = await installed(one)
        await two.woken(0.01)
        async with one._lines.shared.transaction() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
        await asyncio.sleep(0.1)  # the news of it travels
        assert len(await one.take(LAYOUT.digest, "one", rows[:1])) == 1
        await two.woken(0.01)
        await two.wait("two", {"base": 0.5})
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(two.woken(20.0))
            tasks.create_task(one.release("one", (await one.observe()).rows))

    async def test_an_unreachable_server_is_told_without_its_password(self) -> None:
        store = await open_postgres("postgresql://gateway:secret@127.0.0.1:1/none", SystemClock(), 1.0)
        with pytest.raises(StoreDownError) as raised:
            await store.observe()
        assert "secret" not in str(raised.value)
        await store.close()
        with pytest.raises(StoreDownError, match="closed"):
            await store.observe()

    async def test_a_database_without_schema_says_what_to_do(self, postgres_url: str) -> None:
        async with fresh_database(postgres_url) as url:
            store = await open_postgres(url, SystemClock(), 5.0)
            with pytest.raises(Exception, match="store migrate"):
                await store.observe()
            await store.close()
