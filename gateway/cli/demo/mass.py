"""The demo's last part: a mass run from its file to its results, with a kill -9 in the middle.

The gateway of this part is a process of its own, since it is killed. How many calls were at the source at once, whom
they were about, and how often, is the stand-in's own count.
"""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession, ClientTimeout, UnixConnector
from rich.table import Table

from gateway.cli.demo.calls import CONSULT, message
from gateway.cli.demo.clock import HandClock
from gateway.cli.demo.process import GatewayProcess
from gateway.cli.demo.stage import Stage
from gateway.simulator import StandIn

PERSONS = 240
BESIDE = 16
KILLED_AT = 80
LONGEST_S = 30.0
LOOKS_EVERY_S = 0.05
SOURCE = "national-register"
_SSIN = re.compile(rb"<ssin>(\d{11})</ssin>")
_ASKS = f"--template template.xml --path {CONSULT} --key-column file --ssin-column ssin"


class MassRun:
    """One run, and who looks at it."""

    def __init__(
        self,
        stage: Stage,
        client: ClientSession,
        stand_in: StandIn,
        process: GatewayProcess,
        clock: HandClock,
        zone: tzinfo,
        folder: Path,
    ) -> None:
        self._stage = stage
        self._client = client
        self._stand_in = stand_in
        self._process = process
        self._clock = clock
        self._zone = zone
        self._folder = folder
        self._api = ClientSession(
            "http://localhost",
            connector=UnixConnector(str(process.socket), force_close=True),
            timeout=ClientTimeout(total=20),
        )
        self._run_id = ""
        self._location = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def shown(self) -> None:
        """Show it all; a step that failed ends it, being what the next ones stand on."""
        self._stand_in.counts.peak.clear()
        self._stand_in.received.clear()
        for step in (self._submitted, self._stored, self._executed, self._killed, self._resumed, self._fetched):
            if not await step():
                return

    # By day.

    async def _submitted(self) -> bool:
        self._stage.title(f"4. {self._now():%A %H:%M}, office hours: {PERSONS} persons are submitted as a mass run")
        persons = [f"{number:09d}{97 - number % 97:02d}" for number in range(PERSONS)]
        rows = [f"FILE-{number:03d},{ssin}" for number, ssin in enumerate(persons)]
        (self._folder / "persons.csv").write_text("\n".join(["file,ssin", *rows]) + "\n")
        (self._folder / "template.xml").write_text(message(CONSULT).replace("00000000097", "{{ssin}}"))
        self._stage.line("operator", f"bcss-gateway runs submit persons.csv {_ASKS}")
        status, out, err = await self._command("submit", "persons.csv", *_ASKS.split(), "--name", "demo")
        self._stage.line("", "\n".join([*err.splitlines(), *out.splitlines()]))
        if not self._stage.check(status == 0, "the run was not submitted"):
            return False
        self._run_id = out.strip()
        run = await self._run()
        ends = datetime.fromisoformat(run["endsAt"]).astimezone(self._zone) if run["endsAt"] else None
        expected = f"{ends:%A %H:%M:%S}, if a call takes a second" if ends else "not known"
        self._stage.line(
            "the run", f"{run['state']}: {run['counts']['waiting']} wait for 17:00; expected end: {expected}"
        )
        self._stage.line("", f"announcement: {run['announcement']}")
        self._stage.check(run["state"] == "ready" and run["counts"]["waiting"] == PERSONS, "the run does not wait")
        self._stage.check(ends is not None and ends.hour >= 17, "the expected end is not in the evening")
        return self._stage.check(not self._stand_in.received, "something was sent in office hours")

    async def _stored(self) -> bool:
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""', "Prefer": "respond-async"}
        url = f"{self._process.traffic}/bulk{CONSULT}"
        async with self._client.post(url, data=message(CONSULT), headers=headers) as answer:
            status, self._location = answer.status, answer.headers.get("Location", "")
        self._stage.line("a caller", "one more bulk call, with Prefer: respond-async")
        self._stage.line("", f"HTTP {status}, Location: {self._location}")
        if not self._stage.check(status == 202 and bool(self._location), "the call was not stored for later"):
            return False
        early, _ = await self._answer()
        self._stage.line("", f"asked there at once: HTTP {early}, not answered yet")
        return self._stage.check(early == 202, "a stored call was answered in office hours")

    # In the evening.

    async def _executed(self) -> bool:
        self._clock.skip_to(self._now().replace(hour=17, minute=0, second=1))
        self._stage.title(f"5. {self._now():%A %H:%M}, the window opens: the run goes on, synchronous bulk beside it")
        if not await self._until(self._has_settled(8), "the run did not begin after 17:00"):
            return False
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._bulk()) for _ in range(BESIDE)]
        passed = sum(task.result() == 200 for task in beside)
        if not await self._until(self._has_settled(KILLED_AT), "the run did not go on"):
            return False
        most = self._stand_in.counts.highest(SOURCE, "unknown")
        table = Table("source", "the run", "synchronous bulk", "cap", "most at once, as the stand-in saw it")
        settled = PERSONS - (await self._run())["counts"]["waiting"]
        table.add_row("National Register", f"{settled} of {PERSONS} settled", f"{passed} of {BESIDE}", "4", str(most))
        self._stage.show(table)
        self._stage.check(passed == BESIDE, "not every synchronous call passed beside the run")
        return self._stage.check(most == 4, "the National Register did not see exactly 4 at once")

    async def _killed(self) -> bool:
        self._stage.title("6. kill -9, in the middle of the run, and a new start")
        await self._process.kill()
        await asyncio.sleep(0.5)  # what it had sent ends at the source
        asked = len(self._stand_in.received)
        await self._process.start()
        [interruption] = (await self._said("/interruptions"))["interruptions"] or [{"reason": "", "remaining": 0.0}]
        remaining = float(interruption["remaining"])
        run = await self._run()
        self._stage.line("the run", f"{run['state']}: {run['counts']['done']} done, {run['counts']['waiting']} wait")
        self._stage.line("bulk", f"interrupted: {interruption['reason']}; cools down for {remaining / 60:.1f} min")
        self._stage.check(remaining > 60, "an unclean restart was no interruption")
        await asyncio.sleep(1.5)
        still = len(self._stand_in.received) == asked
        self._stage.line("", "in these minutes the stand-in sees no bulk call")
        self._stage.check(still, "bulk went on in the cool-down")
        self._stand_in.counts.peak.clear()
        self._clock.skip_to(self._now() + timedelta(seconds=remaining))
        if not await self._until(lambda: self._more_than(asked + 3), "the run did not go on after the cool-down"):
            return False
        most = self._stand_in.counts.highest(SOURCE, "unknown")
        self._stage.line("", f"{self._now():%H:%M}, the cool-down is over: it goes on, {most} at a time at first")
        return self._stage.check(most == 1, "it did not come back one at a time")

    async def _resumed(self) -> bool:
        self._clock.skip_to(self._now() + timedelta(minutes=4))
        if not await self._until(self._is_in("completed", "paused"), "the run did not end"):
            return False
        run = await self._run()
        counts = run["counts"]
        asked = self._asked()
        twice = sum(number == 2 for number in asked.values())
        self._stage.line(
            "the run",
            f"{run['state']}: {counts['done']} done, {counts['rejected']} rejected, {counts['failed']} failed, "
            f"{counts['inDoubt']} in doubt",
        )
        self._stage.line(
            "", f"{twice} persons were asked twice: their calls were under way at the kill (a read may be)"
        )
        most = self._stand_in.counts.highest(SOURCE, "unknown")
        self._stage.check(most <= 4, "the cap was exceeded after the restart")
        self._stage.check(run["state"] == "completed", "the run did not complete")
        self._stage.check(counts["done"] + counts["rejected"] == PERSONS, "an item is lost")
        self._stage.check(len(asked) == PERSONS, "somebody was not asked, or nobody knows whom")
        return self._stage.check(max(asked.values()) <= 2 and twice <= 20, "persons were asked more often than needed")

    # What came of it.

    async def _fetched(self) -> bool:
        self._stage.title("7. What came of it")
        self._stage.line("operator", "bcss-gateway runs rejects")
        status, out, _ = await self._command("rejects", self._run_id)
        shown = out.splitlines()
        self._stage.line("", "\n".join(shown[:4] + ([f"… {len(shown) - 4} more"] if len(shown) > 4 else [])))
        rejected = (await self._run())["counts"]["rejected"]
        self._stage.check(status == 0 and out.count("MSG00012") == rejected > 0, "the rejects are not listed")
        status, out, _ = await self._command("results", self._run_id)
        self._stage.line("operator", f"bcss-gateway runs results: {len(out.splitlines())} lines of NDJSON")
        self._stage.check(status == 0 and len(out.splitlines()) == PERSONS, "the results are not all there")
        code, body = await self._answer()
        self._stage.line("a caller", f"GET {self._location}: HTTP {code}, {len(body)} octets, as the source answered")
        return self._stage.check(code == 200 and b"00000000097" in body, "the stored call's answer is not there")

    # Asking.

    def _now(self) -> datetime:
        return self._clock.wall().astimezone(self._zone)

    async def _said(self, path: str) -> dict[str, Any]:
        async with self._api.get(f"/api/v1{path}") as answer:
            said: dict[str, Any] = await answer.json()
            return said

    async def _run(self) -> dict[str, Any]:
        return await self._said(f"/runs/{self._run_id}")

    async def _answer(self) -> tuple[int, bytes]:
        async with self._client.get(f"{self._process.traffic}{self._location}") as answer:
            return answer.status, await answer.read()

    async def _bulk(self) -> int:
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
        url = f"{self._process.traffic}/bulk{CONSULT}"
        async with self._client.post(url, data=message(CONSULT), headers=headers) as answer:
            await answer.read()
            return answer.status

    async def _command(self, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "runs", *arguments, "--socket", str(self._process.socket)),
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    def _asked(self) -> Counter[bytes]:
        """Return how often each person of the run was asked about; callers beside it ask about the first one."""
        bodies = [one.body for one in self._stand_in.received]
        found = Counter(match[1] for body in bodies if (match := _SSIN.search(body)) is not None)
        found[b"00000000097"] -= BESIDE + 1
        return found

    async def _more_than(self, number: int) -> bool:
        return len(self._stand_in.received) > number

    def _has_settled(self, number: int) -> Callable[[], Awaitable[bool]]:
        async def has() -> bool:
            return bool(PERSONS - (await self._run())["counts"]["waiting"] >= number)

        return has

    def _is_in(self, *states: str) -> Callable[[], Awaitable[bool]]:
        async def is_in() -> bool:
            return (await self._run())["state"] in states

        return is_in

    async def _until(self, is_so: Callable[[], Awaitable[bool]], wrong: str) -> bool:
        for _ in range(round(LONGEST_S / LOOKS_EVERY_S)):
            if await is_so():
                return True
            await asyncio.sleep(LOOKS_EVERY_S)
        return self._stage.check(False, wrong)
