"""What the image and the systemd unit install is whole: a wheel, by itself, serves and carries out a run."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.store.postgres_server import embedded_server
from tests_ops.world import OPEN, ROOT, World, eventually


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as the Dockerfile does, installed into a directory of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    installed = folder / "installed"
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(built)], check=True, timeout=120)
    return installed


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_the_wheel_by_itself_carries_out_a_run(wheel: Path, tmp_path: Path, engine: str) -> None:
    # -P: not from the directory it is started in, which is the working copy.
    program = ["env", f"PYTHONPATH={wheel}", sys.executable, "-P", "-c", "from gateway.cli import main; main()"]
    where = [*program[:-1], "import gateway, policies; print(gateway.__file__, policies.__file__)"]
    said = subprocess.run(where, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout
    assert said.count(str(wheel)) == 2
    with ExitStack() as stack:
        world = World(tmp_path, stack)
        world.start_stand_in("10ms")
        store = {}
        if engine == "postgres":
            store = {"store": {"url": world.secret("url", stack.enter_context(embedded_server()).url)}}
        gateway = world.gateway("packed", program, windows=OPEN, **store)
        eventually("the store is open", lambda: gateway.shows("bcss_gateway_store_up 1.0"))
        run = gateway.submit("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest", 20)
        eventually("the run has ended", lambda: "completed: 20 done" in gateway.runs("runs", "show", run))
        assert len(gateway.runs("runs", "results", run).splitlines()) == 20
