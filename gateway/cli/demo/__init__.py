"""`bcss-gateway demo`: the gateway at work, for somebody who sees it for the first time.

It runs the real gateway on the given configuration, on free ports, with the stand-in behind it; only the clock is
moved, so that office hours and the evening both happen, and call timeout and hold are 1 s, so that nobody waits out T.
What it shows of simultaneous calls is what the stand-in counted. Status 1 when something did not happen as it should.
"""

import asyncio
import sys
import tempfile
from datetime import datetime, time, timedelta
from pathlib import Path
from random import Random

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from gateway.app import SystemClock, running
from gateway.cli.demo.calls import Calls
from gateway.cli.demo.clock import HandClock
from gateway.cli.demo.mass import MassRun
from gateway.cli.demo.process import GatewayProcess, StartError, moved
from gateway.cli.demo.stage import Stage
from gateway.config import Configuration
from gateway.log import LineWriter
from gateway.simulator import Latency, Rule, Script, StandIn, standing_in

__all__ = ["demo"]

LATENCY_S = 0.1
SCRIPT = Script(
    [
        # Of what comes by way of a run, each fortieth person is not known to the institution: a reject.
        Rule("business", "MSG00012", every=40, traffic="unknown", latency=Latency(LATENCY_S, LATENCY_S)),
        Rule(latency=Latency(LATENCY_S, LATENCY_S)),
    ]
)


def demo(configuration: Configuration) -> int:
    """Run the demo; return the exit status."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log.jsonl").open("w") as out:
        lines = LineWriter(out)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_demo(configuration, Path(folder), lines))
        except StartError as error:
            print(f"The gateway did not start. It said:\n{error}", file=sys.stderr)
            return 1
        finally:
            lines.close()


async def _demo(configuration: Configuration, folder: Path, lines: LineWriter) -> int:
    stage = Stage()
    zone = configuration.calendar.zone
    today = SystemClock().wall().astimezone(zone).date()
    working_day = next(
        day
        for day in (today + timedelta(days=offset) for offset in range(1, 30))
        if not configuration.calendar.is_open(datetime.combine(day, time(10, 30), zone))
    )
    clock = HandClock(folder / "clock")
    clock.set(datetime.combine(working_day, time(10, 30), zone))
    timeout = ClientTimeout(total=20)
    async with (
        standing_in(SCRIPT, record=True) as stand_in,
        ClientSession(connector=TCPConnector(limit=0), timeout=timeout) as client,
    ):
        here = moved(configuration, stand_in.url, folder / "state")
        dice = Random(1)  # noqa: S311  # jitter, no secret
        async with running(here, clock=clock, lines=lines, dice=dice) as gateway:
            stage.open(
                gateway.addresses.traffic[0],
                f"behind it, a stand-in for the BCSS on {stand_in.url}.\n"
                f"Each call takes the stand-in {LATENCY_S * 1000:.0f} ms. Its log is not shown.",
            )
            calls = Calls(stage, client, gateway, stand_in)
            alone = await calls.office_hours(clock.wall().astimezone(zone))
            clock.skip_to(datetime.combine(working_day, time(17, 5), zone))
            await calls.evening(clock.wall().astimezone(zone), alone)
            await calls.metrics()
        await _mass_run(configuration, folder, stage, client, stand_in, clock)
    return stage.ended()


async def _mass_run(
    configuration: Configuration, folder: Path, stage: Stage, client: ClientSession, stand_in: StandIn, clock: HandClock
) -> None:
    zone = configuration.calendar.zone
    evening = clock.wall().astimezone(zone)
    next_day = next(
        day
        for day in (evening.date() + timedelta(days=offset) for offset in range(1, 30))
        if not configuration.calendar.is_open(datetime.combine(day, time(10, 45), zone))
    )
    clock.skip_to(datetime.combine(next_day, time(10, 45), zone))
    process = GatewayProcess(configuration.path, folder, stand_in.url)
    await process.start()
    try:
        async with MassRun(stage, client, stand_in, process, clock, zone, folder) as run:
            await run.shown()
    finally:
        await process.stop()
