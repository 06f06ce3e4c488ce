"""The long drill: two gateways on one PostgreSQL under load, and everything that can go wrong there, again and again.

    make drill            all of it, some 20 minutes
    python -m benchmarks.drill --quick [--only NAME]

Real processes, a real PostgreSQL, the stand-in as source. Each scenario has a database of its own and goes on with runs
of 500 items, synchronous bulk and real-time beside them. Times are short (`tests/e2e/sharing.py`: T 2 s, L 3.7 s); one
call in sixty takes longer than the gateways wait. A scenario holds when all of this is true, and it is looked at for
every run: no source saw more calls at once than its cap; each acknowledged item is settled once, or in doubt if it is
a write; no write was called twice, no read more often than attempts are allowed; counters equal rows, no batch,
no orphan and no stuck run is left; and real-time was answered by each gateway that was alive, all the time.

Its results stand in `benchmarks/DRILL.md`, between two marks. Exit status 1 when a scenario does not hold.
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from tests.e2e.sharing import AWAY, LEASE_S, Load, Shared, World, world
from tests.e2e.world import CONSULT, DECISION, EMPLOYERS, POOLS, until
from tests.gateway.store.postgres_server import EmbeddedServer, embedded_server

PAGE = Path(__file__).with_name("DRILL.md")
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
SIZE = {CONSULT: 340, EMPLOYERS: 80, DECISION: 80}
STRICT = ", reading: strict"

Round = Callable[[World, Load, Random, int], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One kind of trouble. `rounds`: in the long drill, and in the quick one."""

    name: str
    what: str
    rounds: tuple[int, int]
    once: Round


@dataclass
class Outcome:
    """What a scenario came to."""

    scenario: Scenario
    rounds: int
    seconds: float
    tally: dict[str, int]
    most: dict[str, int]
    why: str = ""


async def kill(here: World, load: Load, dice: Random, number: int) -> None:
    """Kill one in mid-call; start it again before or after its lease has run out."""
    await asyncio.sleep(dice.uniform(0.5, 2))
    await here.kill(dice.choice(here.gateways), away_s=dice.choice([0.0, 1.0, LEASE_S + 1]))


async def freeze(here: World, load: Load, dice: Random, number: int) -> None:
    """Stop one in whatever it does for longer than its lease."""
    await asyncio.sleep(dice.uniform(0.1, 1.5))
    await here.freeze(here.gateways[number % 2], seconds=LEASE_S + dice.uniform(0.2, 1.5))


async def freeze_shortly(here: World, load: Load, dice: Random, number: int) -> None:
    """Stop one for about as long as a call, a renewal or a guard has time."""
    await asyncio.sleep(dice.uniform(0.05, 0.5))
    await here.freeze(dice.choice(here.gateways), seconds=dice.choice([0.3, 1.0, 1.7, 2.2, LEASE_S]))


async def kill_database(here: World, load: Load, dice: Random, number: int) -> None:
    """Kill the database, for a moment or until bulk has stopped."""
    await asyncio.sleep(dice.uniform(0.5, 2))
    await here.kill_database(away_s=(0.0, LEASE_S + 2)[number % 2])


async def swallow(here: World, load: Load, dice: Random, number: int) -> None:
    """Have nothing get through to the database, for a moment or until bulk has stopped."""
    await asyncio.sleep(dice.uniform(0.5, 2))
    await here.swallow(seconds=(dice.uniform(0.5, 2), LEASE_S + dice.uniform(0, 3))[number % 2])


async def clocks(here: World, load: Load, dice: Random, number: int) -> None:
    """Step the database's clock and one host's an hour either way."""
    await here.step_clock(hours=(1, 0, -1, 0)[number % 4])
    dice.choice(here.gateways).clock.step(hours=(-1, 1)[number // 2 % 2])
    await asyncio.sleep(dice.uniform(1, 3))


async def pause(here: World, load: Load, dice: Random, number: int) -> None:
    """Pause the latest run at one gateway, and resume it at another; now and then hold everything."""
    await asyncio.sleep(dice.uniform(0.2, 1))
    one, other = dice.sample(here.gateways, 2)
    if number % 3 == 2:
        await steadily(here, one, "PUT", "/holds/all")
        await asyncio.sleep(dice.uniform(0.5, 1.5))
        await steadily(here, other, "DELETE", "/holds/all")
        return
    run_id = list(load.runs)[-1] if load.runs else ""
    if run_id and await steadily(here, one, "POST", f"/runs/{run_id}/pause"):
        await asyncio.sleep(dice.uniform(0.2, 1.5))
        await steadily(here, other, "POST", f"/runs/{run_id}/resume")


async def steadily(here: World, gateway: Shared, method: str, path: str) -> bool:
    """Ask a gateway, or another, until one has an answer; return whether it was granted."""
    while True:
        for one in (gateway, *here.gateways):
            if one in here.well():
                try:
                    status, _ = await asyncio.wait_for(here.api(one).ask(method, path, {"reason": "a drill"}), 5)
                except AWAY:
                    continue
                if status != 503:
                    return status < 300
        await asyncio.sleep(0.2)


async def stop(here: World, load: Load, dice: Random, number: int) -> None:
    """Stop one in order, and start it again: a rolling update."""
    gateway = here.gateways[number % 2]
    await asyncio.sleep(dice.uniform(0.5, 2))
    async with here.ailing(gateway):
        assert await gateway.stop() == 0
        await asyncio.sleep(dice.uniform(0, 1))
        await gateway.start()


async def pools(here: World, load: Load, dice: Random, number: int) -> None:
    """Lower a cap, raise it, rename pools: by changed files, one gateway after the other."""
    usual = "margin_max: 1s"
    changes = (f"{usual}, pools: {{base: {{slots: 2}}}}", f"{usual}, reading: split", f"{usual}{STRICT}", usual)
    before, after = changes[number % 4 - 1], changes[number % 4]
    for gateway in here.gateways:
        seen = len(gateway.events("reloaded"))
        gateway.configure(before, after)
        await until(lambda gateway=gateway, seen=seen: len(gateway.events("reloaded")) > seen, 10, gateway.log)
        await asyncio.sleep(dice.uniform(0, 1))
    calls = here.bulk_calls
    await until(lambda: here.bulk_calls > calls + 20, 4 * LEASE_S, gateway.log)


async def layouts(here: World, load: Load, dice: Random, number: int) -> None:
    """Restart one with another layout: it waits until the other is gone, which comes back with the new one."""
    usual = "margin_max: 1s"
    before, after = (usual, usual + STRICT) if number % 2 == 0 else (usual + STRICT, usual)
    first, last = here.gateways
    for gateway in (first, last):
        async with here.ailing(gateway):
            assert await gateway.stop() == 0
            gateway.configure(before, after)
            await gateway.start()
        if gateway is first:
            await until(lambda: first.events("layout conflict"), 10, first.log)
            await asyncio.sleep(dice.uniform(0, 2))
    calls = here.bulk_calls
    await until(lambda: here.bulk_calls > calls + 20, 4 * LEASE_S, first.log)


async def anything(here: World, load: Load, dice: Random, number: int) -> None:
    """Two troubles at once, whichever, while somebody pauses and resumes."""
    deeds = dice.sample([kill, freeze, freeze_shortly, kill_database, swallow, clocks], 2)
    async with asyncio.TaskGroup() as tasks:
        for deed in (*deeds, pause):
            tasks.create_task(deed(here, load, dice, number))


SCENARIOS = (
    Scenario("kill", "kill -9 of one of two, in mid-call", (12, 1), kill),
    Scenario("freeze", "SIGSTOP for longer than the lease, in random phase", (25, 2), freeze),
    Scenario("blink", "SIGSTOP for 0.3 to 3.7 s, in random phase", (40, 3), freeze_shortly),
    Scenario("database", "PostgreSQL killed and restarted", (8, 2), kill_database),
    Scenario("partition", "PostgreSQL black-holed and healed", (10, 2), swallow),
    Scenario("clocks", "clock of the database and of a host an hour either way", (12, 4), clocks),
    Scenario("pause", "runs paused and resumed, everything held", (15, 3), pause),
    Scenario("stop", "orderly stops, one after the other", (10, 2), stop),
    Scenario("pools", "cap lowered and raised, pools renamed, by changed files", (8, 2), pools),
    Scenario("layouts", "two layouts; the second waits for the first to go", (4, 1), layouts),
    Scenario("anything", "two of the first six at once, pauses beside them", (20, 2), anything),
)


async def drilled(scenario: Scenario, rounds: int, server: EmbeddedServer, seed: int) -> Outcome:
    """Carry out one scenario."""
    loop, dice = asyncio.get_running_loop(), Random(seed)
    began, made, load, why = loop.time(), None, None, ""
    folder = Path(tempfile.mkdtemp(prefix=f"drill-{scenario.name}-"))
    try:
        async with world(folder, server, "a", "b") as made:
            load = Load(made, at_once=2, seed=seed, size=SIZE)
            async with load.going_on(bulk=3):
                await until(lambda: made.bulk_calls > 50, 30)
                for number in range(rounds):
                    await scenario.once(made, load, dice, number)
                    print(f"\r{scenario.name}: {number + 1} of {rounds} ", end="", flush=True)
                await made.step_clock()
                await asyncio.sleep(1)
    except Exception as error:  # noqa: BLE001  # a scenario that does not hold is a result
        why = traceback.format_exc()
        print(f"\n{why}\nlogs: {folder}", file=sys.stderr)
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        if server_is_down(server):
            await asyncio.to_thread(server.start)
    tally = dict(load.tally()) if load is not None else {}
    counts = made.source.stand_in.counts if made is not None else None
    most = {source: counts.highest(source, "unknown") for source in POOLS} if counts is not None else {}
    return Outcome(scenario, rounds, loop.time() - began, tally, most, why)


def server_is_down(server: EmbeddedServer) -> bool:
    """Say whether a scenario that broke off has left the database server killed."""
    return server._process is None


def table(outcomes: Sequence[Outcome]) -> str:
    """Return results as Markdown."""
    head = "| what | rounds | runs | items | calls | called again | in doubt | synchronous | real-time "
    lines = [head + "| most at once (cap 4, 2, 2) | seconds | |", "|---|" + "---|" * 11]
    for one in outcomes:
        of = one.tally
        keys = ("runs", "items", "calls", "repeated", "in doubt", "synchronous", "real-time")
        most = ", ".join(str(one.most.get(source, 0)) for source in ("national-register", "onss", "spp-is"))
        figures = " | ".join(f"{of.get(key, 0):,}" for key in keys)
        verdict = "holds" if not one.why else f"**does not hold**: {one.why}"
        lines.append(f"| {one.scenario.what} | {one.rounds} | {figures} | {most} | {one.seconds:.0f} | {verdict} |")
    return "\n".join(lines) + "\n"


def write(outcomes: Sequence[Outcome], *, quick: bool, seed: int) -> None:
    """Write results into the page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    head = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit.stdout.strip() or 'unknown'}, {os.cpu_count()} CPUs, "
        f"{platform.machine()}, Python {platform.python_version()}, seed {seed}"
        f"{', quick' if quick else ''}.\n\n"
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + head + table(outcomes) + "\n" + END + after)


async def drill(*, quick: bool, only: str, seed: int) -> Sequence[Outcome]:
    """Carry out all scenarios."""
    outcomes = []
    with embedded_server(durable=True) as server:
        for number, scenario in enumerate(SCENARIOS):
            if only in ("", scenario.name):
                outcome = await drilled(scenario, scenario.rounds[quick], server, seed + number)
                print(f"\r{scenario.name}: {outcome.why or 'holds'}, {outcome.seconds:.0f} s", flush=True)
                outcomes.append(outcome)
    return outcomes


def main() -> int:
    """Drill; return the exit status."""
    parser = argparse.ArgumentParser(description="Everything that can go wrong with two gateways on one PostgreSQL.")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each: three minutes")
    parser.add_argument("--only", default="", choices=["", *(one.name for one in SCENARIOS)], help="one scenario")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    outcomes = asyncio.run(drill(quick=given.quick, only=given.only, seed=given.seed))
    print(table(outcomes))
    if not given.only:
        write(outcomes, quick=given.quick, seed=given.seed)
    return 1 if any(one.why for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
