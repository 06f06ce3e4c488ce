"""The demo's gateway as a process, which can be killed: `python -m gateway.cli.demo.process CONFIG FOLDER URL`.

It is `bcss-gateway serve` with the given configuration, moved to free ports, a folder of its own and the stand-in, and
with clocks that the demo holds.
"""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from gateway.cli.demo.clock import HandClock
from gateway.config import Configuration
from gateway.config.settings import StoreSettings

LONGEST_START_S = 30.0


class StartError(Exception):
    """The process did not come up. The message says what it said."""


def moved(configuration: Configuration, url: str, data_dir: Path) -> Configuration:
    """Return a configuration on free ports, with the stand-in behind it; call timeout and hold are 1 s."""
    settings = configuration.settings
    short = {"url": url, "call_timeout": 1.0, "hold": 1.0}
    return replace(
        configuration,
        settings=settings.model_copy(
            update={
                "data_dir": data_dir,
                "listeners": tuple(one.model_copy(update={"port": 0}) for one in settings.listeners),
                "administration": settings.administration.model_copy(update={"port": 0}),
                "telemetry": settings.telemetry.model_copy(update={"address": "127.0.0.1", "port": 0}),
                "upstreams": {name: one.model_copy(update=short) for name, one in settings.upstreams.items()},
                "store": StoreSettings(),
            }
        ),
    )


class GatewayProcess:
    """The process, as the demo sees it."""

    def __init__(self, config: Path, folder: Path, url: str) -> None:
        self._command = (sys.executable, "-m", "gateway.cli.demo.process", str(config), str(folder), url)
        self._log = folder / "run.jsonl"
        self._read = 0
        self._process: asyncio.subprocess.Process | None = None
        self.socket = folder / "run" / "admin.sock"
        self.traffic = ""

    async def start(self) -> None:
        """Start it, and wait until it listens and its API is there.

        Raises:
            StartError: it ended, or took too long.
        """
        with self._log.open("ab") as out:
            self._read = out.tell()
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=out, stderr=out)
        try:
            async with asyncio.timeout(LONGEST_START_S):
                while not self._is_there():
                    if self._process.returncode is not None:
                        raise StartError(self._said()[-2000:])
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StartError(self._said()[-2000:]) from None

    def _said(self) -> str:
        with self._log.open() as lines:
            lines.seek(self._read)
            return lines.read()

    def _is_there(self) -> bool:
        events = set()
        for line in self._said().splitlines():
            if line.startswith("{") and line.endswith("}"):
                said = json.loads(line)
                events.add(said.get("event"))
                if said.get("event") == "ready":
                    self.traffic = said["traffic"][0]
        return {"ready", "store open", "administration"} <= events

    async def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> int:
        """End it in order; return its status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.terminate()
        return await self._process.wait()


def main() -> int:
    """Run the gateway; return the exit status."""
    from gateway.cli.reading import load
    from gateway.cli.serve import serve

    config, folder, url = sys.argv[1:]
    configuration = load(Path(config))
    if configuration is None:
        return 2
    return serve(moved(configuration, url, Path(folder) / "run"), HandClock(Path(folder) / "clock"))


if __name__ == "__main__":
    sys.exit(main())
