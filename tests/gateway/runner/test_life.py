"""Runs from birth to purge: empty ones, async ones over midnight, those a reload takes the route from, defects."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gateway.runner.runner as runner_room
from gateway.packing import pack_request
from gateway.records import GATEWAY, LaneKey
from gateway.runner.judging import UNREADABLE
from gateway.simulator import Latency, Script, standing_in
from policies.model import ItemState, RunKind, RunState
from tests.conftest import JumpingClock
from tests.gateway.runner.making import (
    BASE,
    WRITES,
    items,
    nothing_in_hand,
    opened,
    patient,
    request,
    sealed,
    submit,
    until,
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due every half a minute or hour is due at once."""
    monkeypatch.setattr(runner_room, "REST_EVERY_S", 0.2)
    monkeypatch.setattr(runner_room, "PURGE_EVERY_S", 0.2)


async def test_a_run_of_nothing_is_completed(tmp_path: Path) -> None:
    async with patient(tmp_path, "http://127.0.0.1:9") as run:
        mass = await opened(run)
        record = await submit(mass, 0)
        await until(mass, record, RunState.COMPLETED)


async def test_an_async_run_of_today_grows_and_ends_after_midnight(tmp_path: Path) -> None:
    clock = JumpingClock()  # Tuesday 20:00
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        key, wrapped = mass.keys.new_key()
        day = {"day": "2026-11-24"}
        record = await submit(mass, 0, ready=False, kind=RunKind.ASYNC, options=day, wrapped_key=wrapped)
        octets = pack_request(request())
        for number in range(3):
            await mass.store.add_items(
                record.id, sealed(key, record, range(number, number + 1), octets, BASE), received=None
            )
            mass.runner.wake()
            await until(mass, record, lambda one, settled=number + 1: one.counts.done == settled)  # type: ignore[misc]  # bound now
            await until(mass, record, RunState.READY)
        await asyncio.sleep(0.5)
        await until(mass, record, RunState.READY)
        clock.skip(hours=5)
        await until(mass, record, RunState.COMPLETED)


async def test_a_purge_is_made_when_its_time_has_come(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        record = await submit(mass, 5, options={"retention_s": 3600.0})
        await until(mass, record, RunState.COMPLETED)
        await asyncio.sleep(0.5)
        await until(mass, record, lambda one: one.wrapped_key is not None)
        clock.skip(hours=2)
        purged = await until(mass, record, lambda one: one.wrapped_key is None)
    assert purged.counts.done == 5


async def test_an_upload_that_nobody_completes_is_given_up_after_the_retention(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with patient(tmp_path, "http://127.0.0.1:9", clock=clock) as run:
        mass = await opened(run)
        record = await submit(mass, 3, ready=False)
        await asyncio.sleep(0.5)
        await until(mass, record, RunState.LOADING)
        clock.skip(days=31)
        given_up = await until(mass, record, RunState.CANCELLED)
    assert (given_up.changed_by, given_up.reason) == (GATEWAY, "its upload was never completed")


async def test_a_run_whose_route_is_gone_waits_and_says_so(tmp_path: Path) -> None:
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 10, LaneKey("/elsewhere", ("national-register",), True))
        await asyncio.sleep(1.5)
        waits = await mass.store.run(record.public_id)
        assert waits is not None
        assert waits.state is RunState.READY
        assert stand_in.counts.calls.total() == 0
    told = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["route"] for line in told if line["event"] == "run waits for a route"] == ["/elsewhere"]


async def test_a_route_that_a_reload_takes_away_puts_no_write_in_doubt(tmp_path: Path) -> None:
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 200, WRITES)
        await until(mass, record, lambda one: one.counts.done >= 20)
        config = tmp_path / "config.yaml"
        before = config.read_text()
        config.write_text(before.replace("{prefix: /, ", "{prefix: /other, "))
        run.gateway.ask_reload()
        await asyncio.sleep(0.5)
        await nothing_in_hand(mass)
        paused = await mass.store.run(record.public_id)
        assert paused is not None
        assert paused.counts.settled == paused.counts.done < 200
        config.write_text(before)
        run.gateway.ask_reload()
        done = await until(mass, record, RunState.COMPLETED)
    assert done.counts.done == 200
    assert stand_in.counts.calls.total() == 200


async def test_what_cannot_be_opened_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        key, wrapped = mass.keys.new_key()
        record = await submit(mass, 0, ready=False, wrapped_key=wrapped)
        octets = pack_request(request())
        many = sealed(key, record, range(10), octets, BASE)
        damaged = [item for item in many if item.seq != 3]
        damaged[3:3] = sealed(mass.keys.new_key()[0], record, range(3, 4), octets, BASE)
        await mass.store.add_items(record.id, damaged, received=10)
        await mass.store.change_state(record.id, RunState.READY, author="anna", reason="")
        done = await until(mass, record, RunState.COMPLETED)
        failed = await items(mass, record, ItemState.FAILED)
    assert done.counts.done == 9
    assert {seq: one.code for seq, one in failed.items()} == {3: UNREADABLE}


async def test_a_run_under_another_institutions_key_is_held_for_a_person(tmp_path: Path) -> None:
    from gateway.sealing import KeyRing

    _, foreign = KeyRing(b"another key of thirty-two octets").new_key()
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url) as run:
        mass = await opened(run)
        record = await submit(mass, 5, wrapped_key=foreign)
        held = await until(mass, record, RunState.PAUSED)
    assert held.changed_by == GATEWAY
    assert "key" in held.reason


async def test_a_purge_that_a_backup_delays_is_no_outage_and_is_tried_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_room, "PURGE_EVERY_S", 3.0)
    clock = JumpingClock()
    async with standing_in() as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        record = await submit(mass, 5)
        await until(mass, record, RunState.COMPLETED)
        with closing(sqlite3.connect(tmp_path / "state" / "store.sqlite", isolation_level=None)) as backup:
            backup.execute("begin")
            backup.execute("select count(*) from run").fetchall()
            clock.skip(days=31)
            monkeypatch.setattr(runner_room, "PURGE_AGAIN_S", 0.2)
            async with asyncio.timeout(20):
                while run.log.read_text().count('"event":"purge delayed"') < 3:
                    await asyncio.sleep(0.05)
            assert not mass.runner.is_down
        async with asyncio.timeout(20):
            while await mass.store.to_purge(clock.wall()):
                await asyncio.sleep(0.05)
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["again_in_s"] for line in lines if line["event"] == "purge delayed"][:3] == [0.2, 0.4, 0.8]
    assert "store down" not in {line["event"] for line in lines}


async def test_a_defect_ends_one_lane_for_a_while_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    clock = JumpingClock()
    script = Script(latency=Latency(0.02, 0.02))
    async with standing_in(script) as stand_in, patient(tmp_path, stand_in.url, clock=clock) as run:
        mass = await opened(run)
        bad = await submit(mass, 100)
        await until(mass, bad, lambda one: one.counts.done >= 10)
        (lane,) = mass.runner.lanes().values()
        lane.feed.put_back(SimpleNamespace(request=None))  # type: ignore[arg-type]  # what no test can foresee
        good = await submit(mass, 20, WRITES)
        await until(mass, good, RunState.COMPLETED)
        clock.skip(seconds=61)
        done = await until(mass, bad, RunState.COMPLETED)
        assert b"store_up" in await _metrics(run)
        assert mass.runner._executor._room.taken == 0
    assert done.counts.done == 100
    events = [json.loads(line)["event"] for line in run.log.read_text().splitlines()]
    assert events.count("defect") == 1


async def _metrics(run: Any) -> bytes:
    from tests.conftest import closed, whole_answer

    reader, writer = await asyncio.open_connection("127.0.0.1", run.telemetry)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = await whole_answer(reader)
    await closed(writer)
    return text
