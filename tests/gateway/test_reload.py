"""Reload: by signal and by changed files; what is in progress survives; a bad file changes nothing."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gateway.config import load
from gateway.occupancy import Occupancy, boot_id
from gateway.parts import terms_of
from gateway.reloading import marks_of, needs_restart, upstream_identities
from gateway.slots import PoolStatistics
from policies.pools import Layout
from tests.conftest import Running, closed, envelope, gateway_over, post, raw_server, whole_answer
from tests.gateway.proxy.test_limits import scraped

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Gate:
    """A source that answers when it is told to."""

    def __init__(self) -> None:
        self.working = 0
        self.peak = 0
        self.may_answer = asyncio.Event()

    async def answer(self, writer: asyncio.StreamWriter, _request: bytes) -> None:
        self.working += 1
        self.peak = max(self.peak, self.working)
        await self.may_answer.wait()
        self.working -= 1
        writer.write(OK)


async def until(condition: object, *, turns: int = 400) -> None:
    assert callable(condition)
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def rewrite(run: Running, old: str, new: str) -> None:
    path = run.gateway._configuration.path
    text = path.read_text()
    assert old in text
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text.replace(old, new))
    fresh.replace(path)  # another inode, as an exchanged link has


async def reloaded(run: Running) -> tuple[str, ...]:
    spare = Occupancy(run.log.parent / "spare", boot_id())
    spare.acquire()
    try:
        spare.read_and_mark(1.0, run.clock.boot())
        return await run.gateway.reload({}, spare)
    finally:
        spare.release()


async def test_calls_queues_and_counters_survive_and_a_lowered_cap_stops_starts_at_once(tmp_path: Path) -> None:
    source = Gate()
    extra = "bulk: {refusal_delay: 0s, pools: {base: {slots: 4}}}\n"
    timeouts = "call_timeout: 30s, hold: 30s"
    async with (
        raw_server(source.answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream=timeouts) as run,
    ):
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(run.ask(post("/bulk/x", envelope()))) for _ in range(10)]

            def pool() -> PoolStatistics:
                return run.gateway.slots.statistics().pools["base"]

            await until(lambda: source.working == 4 and pool().waiting == 6)
            rewrite(run, "slots: 4", "slots: 1")
            assert await reloaded(run) == ()
            assert (pool().cap, pool().in_use, pool().waiting) == (1, 4, 6)
            source.peak = 0
            source.may_answer.set()
            answers = [await call for call in calls]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert source.peak <= 1, "a start above the lowered cap"
        assert run.gateway.slots.statistics().violations == 0
        assert pool().peak == 4
        await until(lambda: not run.gateway.proxy.in_flight)  # the books are kept once the answer has gone
        metrics = await scraped(run.telemetry, "/metrics")
    assert b'requests_total{class="bulk",outcome="forwarded",source="bcss"} 10.0' in metrics


async def test_who_waits_is_let_in_by_a_raised_cap_and_counted_into_the_new_pools(tmp_path: Path) -> None:
    source = Gate()
    extra = "bulk: {refusal_delay: 0s, pools: {base: {slots: 1}}}\n"
    async with (
        raw_server(source.answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream="call_timeout: 30s, hold: 30s") as run,
    ):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(run.ask(post("/bulk/x", envelope())))
            await until(lambda: source.working == 1 and run.gateway.slots.statistics().pools["base"].waiting == 5)
            rewrite(run, "pools: {base: {slots: 1}}", "reading: split, total_bulk: 3")
            assert await reloaded(run) == ()
            await until(lambda: source.working == 3)
            pools = run.gateway.slots.statistics().pools
            assert "base" not in pools
            assert (pools["bcss"].in_use, pools["bcss"].waiting) == (3, 3)
            source.may_answer.set()
        assert source.peak == 3


async def test_a_raised_share_counts_as_taken_for_t(tmp_path: Path) -> None:
    """Another gateway that has not read its file yet may still be using it."""
    extra = "bulk: {refusal_delay: 0s, share: {base: 1, unclassified: 1}}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        rewrite(run, "base: 1", "base: 3")
        assert await reloaded(run) == ()
        pool = run.gateway.slots.statistics().pools["base"]
        assert (pool.cap, pool.in_use) == (3, 2)
        await until(lambda: run.gateway.slots.statistics().pools["base"].in_use == 0)


async def test_a_bad_file_keeps_the_old_state_and_says_so(tmp_path: Path) -> None:
    extra = "watch_files: 20ms\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        rewrite(run, "prefix: /,", "prefix: nowhere,")
        await until(lambda: not run.gateway._reload_ok)
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
        assert b"bcss_gateway_config_last_reload_success 0.0" in await scraped(run.telemetry, "/metrics")
        await asyncio.sleep(0.2)  # it goes on looking, and does not repeat itself
        rewrite(run, "prefix: nowhere,", "prefix: /,")
        await until(lambda: run.gateway._reload_ok)
        assert b"bcss_gateway_config_last_reload_success 1.0" in await scraped(run.telemetry, "/metrics")
    log = run.log.read_text()
    assert log.count('"event":"reload failed"') == 1
    assert "routes" in log
    assert '"event":"reloaded"' in log


async def test_a_signal_reloads_when_files_are_not_watched(tmp_path: Path) -> None:
    extra = "watch_files: 0\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        rewrite(run, "prefix: /,", "prefix: /only/,")
        run.gateway.ask_reload()
        await until(lambda: run.gateway._settings.routes[0].prefix == "/only/")
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 404")
        assert (await run.ask(post("/only/x", envelope()))).startswith(b"HTTP/1.1 200")


async def test_the_exchange_of_a_link_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes does it: ..data points to another directory, the files' own links stay."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text("same size " + name)
    os.symlink("one", tmp_path / "..data")
    os.symlink("..data/c.yaml", tmp_path / "c.yaml")
    files = [tmp_path / "c.yaml", tmp_path / "gone"]
    before = marks_of(files)
    os.symlink("two", tmp_path / "..new")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert marks_of(files) != before
    assert marks_of(files)[tmp_path / "gone"] is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("data_dir: state", "data_dir: elsewhere"), "data_dir"),
        (("{address: 127.0.0.1, port: 0}]", "{address: 127.0.0.1, port: 0}, {address: 127.0.0.1, port: 1}]"), "listen"),
        (("telemetry: {address: 127.0.0.1,", "telemetry: {address: 0.0.0.0,"), "telemetry"),
    ],
)
async def test_what_needs_a_restart_is_refused_by_name(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        before = run.gateway._settings
        rewrite(run, *change)
        [why] = await reloaded(run)
        assert why.startswith(named)
        assert "restart" in why
        assert run.gateway._settings is before
        assert needs_restart(before, before) == ()


async def test_an_upstreams_connections_stay_unless_it_changes(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        await run.ask(post("/x", envelope()))
        pool = run.gateway.upstreams["bcss"]
        rewrite(run, "prefix: /,", "prefix: /a/,")
        await reloaded(run)
        assert run.gateway.upstreams["bcss"] is pool
        assert pool.statistics().idle == 1
        rewrite(run, "hold: 500ms", "hold: 700ms")
        await reloaded(run)
        assert run.gateway.upstreams["bcss"] is not pool
        assert pool.statistics().idle == 0


async def test_a_call_in_progress_ends_on_the_upstream_it_went_to(tmp_path: Path) -> None:
    source = Gate()
    async with raw_server(source.answer) as old, raw_server(OK) as new, gateway_over(tmp_path, old.url) as run:
        call = asyncio.ensure_future(run.ask(post("/x", envelope())))
        await until(lambda: source.working == 1)
        rewrite(run, old.url, new.url)
        assert await reloaded(run) == ()
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
        assert len(new.requests) == 1
        source.may_answer.set()
        assert (await call).startswith(b"HTTP/1.1 200")


async def test_a_listeners_certificate_rotates_and_its_connections_stay(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"

    def issue(name: str) -> None:
        issued = authority.issue_cert(name, "127.0.0.1")
        for path, blob in ((certificate, issued.cert_chain_pems[0]), (key, issued.private_key_pem)):
            blob.write_to_path(str(path.with_suffix(".new")))
            path.with_suffix(".new").replace(path)

    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    issue("old.example")
    extra = "listeners: [{address: 127.0.0.1, port: 0, tls: {certificate: c.pem, key: k.pem}}]\n"

    async def name_seen(run: Running) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port, ssl=context, server_hostname="127.0.0.1")
        names = dict(writer.get_extra_info("peercert")["subjectAltName"])
        return str(names["DNS"]), reader, writer

    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        name, reader, writer = await name_seen(run)
        assert name == "old.example"
        issue("new.example")
        assert await reloaded(run) == ()
        later, _, second = await name_seen(run)
        assert later == "new.example"
        writer.write(post("/x", envelope()))  # the connection from before goes on
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        await closed(writer)
        await closed(second)


def test_an_upstream_is_the_same_when_its_files_were_written_anew_and_another_when_they_differ(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    path = tmp_path / "c.yaml"
    path.write_text("upstreams: {b: {url: 'https://b2b.example', ca: ca.pem}}\nroutes: [{prefix: /, upstream: b}]\n")
    configuration = load(path, {})
    assert configuration.files == {path, authority}
    before = upstream_identities(configuration.settings)
    authority.write_bytes(authority.read_bytes())
    assert upstream_identities(configuration.settings) == before
    trustme.CA().cert_pem.write_to_path(str(authority))
    assert upstream_identities(configuration.settings) != before


async def test_what_was_granted_and_has_not_begun_is_taken_back_by_a_lowered_cap(tmp_path: Path) -> None:
    """Between the grant and the first octet: waiting for its task, for its pace, or for a connection."""
    source = Gate()
    extra = "bulk: {refusal_delay: 0s, queue_time: 20s, pools: {base: {slots: 4, rate: 4/s}}}\n"
    async with (
        raw_server(source.answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream="call_timeout: 30s, hold: 30s") as run,
    ):
        slots = run.gateway.slots

        async def paced() -> None:
            async with slots.slot(frozenset({"bcss"}), "a") as slot:
                assert slot.may_start(run.clock.boot()), "the first of each limiter is not made to wait"
                slot.settle()

        for _ in range(4):
            await paced()  # each limiter has been used: the next start in it waits a second
        calls = [asyncio.ensure_future(run.ask(post("/bulk/x", envelope()), timeout=20)) for _ in range(6)]
        await until(lambda: slots.statistics().pools["base"].in_use == 4)
        assert source.working == 0
        rewrite(run, "slots: 4", "slots: 1")
        assert await reloaded(run) == ()
        await until(lambda: source.working == 1)
        await asyncio.sleep(1.2)  # by now all four would have begun
        assert source.peak == 1
        source.may_answer.set()
        answers = await asyncio.gather(*calls)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert source.peak == 1
        assert slots.statistics().violations == 0


async def test_a_grant_whose_task_has_not_run_yet_is_taken_back(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        slots, base = run.gateway.slots, frozenset({"bcss"})
        configuration = run.gateway._configuration
        began: list[int] = []

        async def call(number: int) -> None:
            async with slots.slot(base, "a"):
                began.append(number)
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            async with slots.slot(base, "a"), slots.slot(base, "a"), slots.slot(base, "a"), slots.slot(base, "a"):
                for number in range(4):
                    tasks.create_task(call(number))
                await until(lambda: slots.statistics().pools["base"].waiting == 4)
            # All four were granted as the block ended, and none of their tasks has run.
            assert began == []
            pools = [
                replace(pool, slots=1) if pool.name == "base" else pool for pool in configuration.layout.pools.values()
            ]
            slots.adopt(Layout(pools), configuration.calendar, terms_of(configuration.settings), shared=False)
            assert slots.statistics().pools["base"].waiting == 3
        assert began == [0, 1, 2, 3]
        assert slots.statistics().violations == 0


async def test_a_reload_that_closes_the_window_refuses_who_waits(tmp_path: Path) -> None:
    source = Gate()
    extra = "windows: {holidays: open}\nbulk: {refusal_delay: 0s, queue_time: 20s}\n"
    async with (
        raw_server(source.answer) as server,
        gateway_over(tmp_path, server.url, extra=extra, upstream="call_timeout: 30s, hold: 30s") as run,
    ):
        calls = [asyncio.ensure_future(run.ask(post("/bulk/x", envelope()), timeout=20)) for _ in range(6)]
        await until(lambda: source.working == 4 and run.gateway.slots.statistics().pools["base"].waiting == 2)
        rewrite(run, "holidays: open", f"closed_dates: ['{run.clock.wall():%Y-%m-%d}']")
        assert await reloaded(run) == ()
        await until(lambda: sum(call.done() for call in calls) == 2)
        assert all(b"<reason>office_hours</reason>" in call.result() for call in calls if call.done())
        source.may_answer.set()
        await asyncio.gather(*calls)
        assert source.peak == 4
        assert run.gateway.slots.statistics().office_hours_starts == 0


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b"a: [", b"&a [*a]", b"[" * 20_000, b"!!python/object:x {}", None]
)
async def test_whatever_the_file_holds_the_gateway_goes_on(tmp_path: Path, content: bytes | None) -> None:
    extra = "watch_files: 20ms\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra) as run:
        path = run.gateway._configuration.path
        whole = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        await until(lambda: not run.gateway._reload_ok)
        assert (await run.ask(post("/x", envelope()))).startswith(b"HTTP/1.1 200")
        path.write_bytes(whole)
        await until(lambda: run.gateway._reload_ok)
