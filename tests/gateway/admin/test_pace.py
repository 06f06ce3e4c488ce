"""How fast runs go and when they end; what codes mean; downloads of what goes away."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError

from gateway.admin import results
from gateway.admin.meanings import meaning_of
from gateway.admin.pace import Paces, assumed
from gateway.config import load
from gateway.records import LaneKey, LaneWork, Result, RunRecord, Settlement
from gateway.store.interface import Store
from policies.model import ItemState, Reason, RunState
from policies.pools import Layout
from tests.gateway.admin.conftest import Api
from tests.gateway.admin.test_runs import made


class Going:
    """A run of 100 items of which some are settled each time."""

    def __init__(self, api: Api, run: RunRecord) -> None:
        self._api = api
        self._run = run

    async def begin(self) -> None:
        await self._api.filled(self._run, [(f"k{number}", ItemState.WAITING, "") for number in range(100)])
        [(lane, _)] = await self._api.store.lanes(self._run.id)
        self._lane, self._at = lane.lane_id, 0

    async def settle(self, number: int) -> None:
        [batch] = await self._api.store.batches()
        ended = [
            Result(batch.batch_id, self._lane, position, 1, ItemState.DONE, 200, "MSG00000", 20)
            for position in range(self._at, self._at + number)
        ]
        self._at += number
        await self._api.store.settle(Settlement("me", ended))

    async def now(self) -> RunRecord:
        run = await self._api.store.run(self._run.public_id)
        assert run is not None
        return run


async def test_a_pace_is_told_from_samples_and_the_end_from_the_pace(api: Api) -> None:
    going = Going(api, await made(api))
    await going.begin()
    clock, is_open = api.desk.clock, [True]
    paces = Paces(lambda: api.store, clock, lambda: is_open[0])
    calendar = api.desk.configuration().calendar
    await paces.sample()
    assert paces.rate(await going.now(), clock.boot()) is None
    for _ in range(3):
        clock.skip(seconds=10)  # type: ignore[attr-defined]  # a JumpingClock
        await going.settle(10)
        await paces.sample()
    run = await going.now()
    rate = paces.rate(run, clock.boot())
    assert rate == pytest.approx(1.0, rel=0.05)
    end = paces.ends_at(run, rate, calendar, clock.wall())
    assert end is not None
    assert (end - clock.wall()).total_seconds() == pytest.approx(70, rel=0.05)
    # The window closes: nothing is sent, which is no slowness; the end is still foreseen.
    is_open[0] = False
    await paces.sample()
    assert paces.rate(run, clock.boot()) is None
    assert paces.known(run) == pytest.approx(rate, rel=0.1)
    paused = await api.store.change_state(run.id, RunState.PAUSED, author="anna", reason="x")
    assert paces.ends_at(paused, rate, calendar, clock.wall()) is None


async def test_a_run_that_has_not_run_yet_ends_as_if_a_call_took_a_second(api: Api) -> None:
    run = await made(api)
    await api.filled(run, [(f"k{number}", ItemState.WAITING, "") for number in range(80)])
    record = await api.store.run(run.public_id)
    assert record is not None
    layout = api.desk.configuration().layout
    key = LaneKey("/", ("bcss",), True, "")
    lanes = [(LaneWork(1, 1, "", key, 5, 50, 10, 0), 80), (LaneWork(2, 1, "", key, 5, 20, 0, 0), 80)]
    assert assumed(record, lanes, layout) == 4.0  # 80 left, 4 slots of one pool for both lanes
    unknown = [(LaneWork(1, 1, "", LaneKey("/", (), True, ""), 5, 80, 0, 0), 80)]
    assert assumed(record, unknown, layout) == 2.0
    assert assumed(record, [], layout) is None
    stopped = Layout([replace(pool, slots=0) for pool in layout.pools.values()])
    assert assumed(record, lanes, stopped) is None
    async with api.client() as asking, asking.get(f"/api/v1/runs/{run.public_id}") as answer:
        shown = await answer.json()
    assert shown["endsAt"] is None or shown["endIsAssumed"]


async def test_a_store_that_is_gone_costs_a_sample(api: Api) -> None:
    paces = Paces(lambda: api.store, api.desk.clock, lambda: True)
    await api.store.close()
    await paces.sample()


async def test_whatever_a_sample_meets_sampling_goes_on_and_says_so(api: Api) -> None:
    met: list[BaseException] = []

    def broken() -> Store:
        raise ValueError("nobody foresaw it")

    paces = Paces(broken, api.desk.clock, lambda: True, met.append)
    async with asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(paces.sample_for_ever())
        for _ in range(100):
            if met:
                break
            await asyncio.sleep(0.01)
        assert not sampling.done()
        sampling.cancel()
    assert [type(error) for error in met] == [ValueError]


def test_codes_have_meanings(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("upstreams: {a: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /, upstream: a}]\n")
    statuses = load(config, {}).statuses
    assert "does not exist" in meaning_of("MSG00005", statuses)
    assert meaning_of("HTTP 503", statuses)
    assert meaning_of("fault Server", statuses)
    assert meaning_of("unreadable", statuses)
    assert meaning_of("NEVER0001", statuses) == ""
    for reason in Reason:
        assert meaning_of(str(reason), statuses)


async def test_a_download_of_a_run_that_is_purged_meanwhile_does_not_end_as_if_it_were_whole(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE", 5)
    run = await made(api)
    body = bytes(range(256)) * 4000  # more than the sockets hold, so that the reader keeps the writer back
    await api.filled(run, [(f"k{number}", ItemState.DONE, "") for number in range(40)], body)
    async with api.client() as asking:
        async with asking.post(f"/api/v1/runs/{run.public_id}/cancel", json={"reason": "over"}) as answer:
            assert answer.status == 200
        async with asking.get(f"/api/v1/runs/{run.public_id}/results") as answer:
            await answer.content.readany()
            async with api.client() as other, other.post(f"/api/v1/runs/{run.public_id}/purge") as purged:
                assert purged.status == 200
            with pytest.raises(ClientPayloadError):
                async with asyncio.timeout(20):
                    await answer.read()
