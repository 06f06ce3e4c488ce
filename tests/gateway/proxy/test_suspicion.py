"""An untagged batch is found, shown and, where the configuration says so, treated as bulk; people are not."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.conftest import JumpingClock, Running, envelope, gateway_over, post, raw_server
from tests.gateway.proxy.test_limits import scraped

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def loop(run: Running, calls: int, *fields: str, gap: float = 1.2) -> list[bytes]:
    """Call as a job does that sleeps a second after each answer."""
    answers = []
    for _ in range(calls):
        answers.append(await run.ask(post("/x", envelope(), *fields)))
        run.clock.skip(seconds=gap)
    return answers


async def test_a_loop_is_found_within_a_minute_and_named_once(tmp_path: Path) -> None:
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        answers = await loop(run, 55)  # 66 seconds
        text = (await scraped(run.telemetry, "/metrics")).decode()
        assert "bcss_gateway_suspected_clients 1.0" in text
    assert all(answer.endswith(b"ok") for answer in answers), "shown, and no more"
    [line] = [line for line in text.splitlines() if line.startswith('bcss_gateway_suspected_bulk_total{source="bcss"}')]
    assert 0 < float(line.split()[1]) < 55
    found = [json.loads(line) for line in run.log.read_text().splitlines() if '"event":"suspected bulk"' in line]
    assert [(one["flow"], one["source"], one["level"]) for one in found] == [("127.0.0.1", "bcss", "warning")]


async def test_a_person_is_not(tmp_path: Path) -> None:
    dice = Random(1)
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url) as run:
        for _ in range(12):  # a dossier is opened, read, and the next one
            for _ in range(5):
                await run.ask(post("/x", envelope()))
                run.clock.skip(seconds=dice.uniform(0.2, 2))
            run.clock.skip(seconds=dice.uniform(15, 90))
        assert "bcss_gateway_suspected_clients 0.0" in (await scraped(run.telemetry, "/metrics")).decode()
    assert "suspected bulk" not in run.log.read_text()


async def test_by_configuration_a_suspect_is_bulk_until_it_is_calm(tmp_path: Path, morning: JumpingClock) -> None:
    extra = "suspicion: {action: bulk, calm: 2min}\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        answers = await loop(run, 70)
        refused = [b"<reason>office_hours</reason>" in answer for answer in answers]
        assert not refused[0]
        assert refused[-1]
        run.clock.skip(minutes=4)
        assert (await run.ask(post("/x", envelope()))).endswith(b"ok")
    assert '"rule":"suspected"' in run.log.read_text()


@pytest.mark.parametrize(("may_declare", "is_refused"), [("true", False), ("false", True)])
async def test_who_is_known_and_may_may_declare_itself_real_time(
    tmp_path: Path, morning: JumpingClock, may_declare: str, is_refused: bool
) -> None:
    extra = "suspicion: {action: bulk}\n"
    extra += f"clients: [{{name: app, networks: [127.0.0.1], may_declare_realtime: {may_declare}}}]\n"
    async with raw_server(OK) as server, gateway_over(tmp_path, server.url, extra=extra, clock=morning) as run:
        answers = await loop(run, 70, "X-Traffic-Class: realtime")
    assert (b"<reason>office_hours</reason>" in answers[-1]) == is_refused
