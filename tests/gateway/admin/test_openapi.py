"""The API against its own description: schemathesis, from outside, over TCP."""

import asyncio
import json
import sys
from pathlib import Path

from gateway.admin.openapi import document
from gateway.admin.pace import Paces
from gateway.admin.routes import operations
from tests.conftest import JumpingClock
from tests.gateway.admin.conftest import OPERATOR, Api


def described(api: Api) -> dict[str, object]:
    paces = Paces(lambda: api.store, JumpingClock(), lambda: True)
    return document(operations(paces), "0.1.0")


async def test_what_is_served_is_what_is_described(api: Api) -> None:
    async with api.client() as asking, asking.get("/api/v1/openapi.json") as answer:
        served = await answer.json()
    assert served == json.loads(json.dumps(described(api)))
    paths = served["paths"]
    assert set(paths["/runs/{run}"]) == {"get", "patch"}
    assert {"results", "rejects", "doubts", "ready", "pause", "resume", "cancel", "purge", "retry"} <= {
        path.rpartition("/")[2] for path in paths
    }


async def test_schemathesis_finds_nothing(api: Api, tmp_path: Path) -> None:
    """Requests as described and otherwise: no server error, no undescribed status or body, nothing wrong accepted, and
    no operation without its token."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(Path(__file__).parent / "schemathesis.toml"),
        "run",
        f"{api.served.address}/api/v1/openapi.json",
        "--header",
        f"Authorization: Bearer {OPERATOR}",
        "--max-examples=8",
        "--seed=1",
        "--no-shrink",
        "--generation-database=:memory:",
        "--suppress-health-check=all",
        "--phases=examples,coverage,fuzzing",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
    )
    try:
        async with asyncio.timeout(90):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()[-6000:]
    assert "Tested: 24" in said.decode()
