"""`runs`, `hold`, `audit` and `token` as a person runs them, against an API at work."""

import asyncio
import hashlib
import io
import json
import os
import pty
import stat
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli.commands import app
from gateway.cli.submitting import WrongUseError, form_of, instant, tar_of
from policies.model import ItemState, RunState
from tests.gateway.admin.conftest import Api, api_in
from tests.gateway.admin.test_runs import ENDS, entry, made


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_in(tmp_path) as serving:
        yield serving
    assert "defect" not in (tmp_path / "log.jsonl").read_text()


async def run(api: Api, *arguments: str) -> tuple[int, str, str]:
    """Run a command in a thread, the API being served by this loop."""
    command = [*arguments, "--socket", str(api.desk.socket)]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def ndjson(folder: Path, *keys: str) -> str:
    file = folder / "items.ndjson"
    file.write_bytes(b"".join(map(entry, keys)))
    return str(file)


async def test_a_file_is_submitted_and_its_id_is_all_on_standard_output(api: Api, tmp_path: Path) -> None:
    file = ndjson(tmp_path, "a", "b", "a")
    status, out, err = await run(
        api, "runs", "submit", file, "--path", "/SOA/x", "--name", "night", "--not-before", "2026-12-01T17:00"
    )
    assert status == 0, err
    assert "3 entries read, 2 items added, 1 known already" in err
    record = await api.store.run(out.strip())
    assert record is not None
    assert (record.state, record.name, record.total) == (RunState.READY, "night", 2)
    assert record.not_before is not None
    assert record.not_before.isoformat() == "2026-12-01T16:00:00+00:00"


async def test_faults_are_told_by_line_before_anything_is_stored(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(entry() + b"00000000097\n" + entry())
    status, out, err = await run(api, "runs", "submit", str(file), "--path", "/SOA/x")
    assert (status, out) == (1, "")
    assert "line 2: " in err
    assert "00000000097" not in err
    [record] = await api.store.runs()
    assert (record.state, record.total) == (RunState.CANCELLED, 0)
    status, out, err = await run(api, "runs", "submit", str(file), "--path", "/SOA/x", "--go-on", "--no-start")
    assert status == 0, err
    record = await api.store.run(out.strip()) or record
    assert (record.state, record.total, record.received) == (RunState.LOADING, 2, 3)


async def test_an_upload_that_broke_off_is_taken_up(api: Api, tmp_path: Path) -> None:
    loading = await made(api)
    async with api.client() as asking:
        headers = {"Content-Type": "application/x-ndjson"}
        path = f"/api/v1/runs/{loading.public_id}/items"
        async with asking.post(path, data=entry(), headers=headers) as answer:
            assert answer.status == 200
    file = ndjson(tmp_path, "", "")
    status, out, err = await run(api, "runs", "submit", file, "--resume", loading.public_id[:8])
    assert (status, out.strip()) == (0, loading.public_id), err
    assert (await api.store.run(loading.public_id) or loading).total == 2
    assert (await run(api, "runs", "submit", file, "--resume", loading.public_id))[0] == 1


async def test_the_same_idempotency_key_submits_once(api: Api, tmp_path: Path) -> None:
    file = ndjson(tmp_path, "")
    arguments = ("runs", "submit", file, "--path", "/SOA/x", "--idempotency-key", "night-1")
    first, second = await run(api, *arguments), await run(api, *arguments)
    assert first[1] == second[1]
    assert "submitted before" in second[2]
    assert len(await api.store.runs()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--format", "xml"), "--format is one of"),
        (("--not-before", "tomorrow"), "is not a time"),
        (("--path", "/nowhere"), "No route leads"),
        (("--path", "no-slash"), "Path must be a path"),
    ],
)
async def test_wrong_use_is_told(api: Api, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    status, out, err = await run(api, "runs", "submit", ndjson(tmp_path, ""), *arguments)
    assert status in (1, 2)
    assert out == ""
    assert says in err
    assert not await api.store.runs()


async def test_runs_are_listed_shown_and_steered(api: Api) -> None:
    record = await made(api, name="yearly")
    short = record.public_id[:10]
    assert "yearly" in (await run(api, "runs", "list"))[1]
    assert json.loads((await run(api, "runs", "list", "--json"))[1])[0]["id"] == record.public_id
    assert "There are no runs." in (await run(api, "runs", "list", "--state", "paused"))[1]
    assert (await run(api, "runs", "ready", short))[1].startswith("ready")
    assert "paused (a test, by" in (await run(api, "runs", "pause", short, "--reason", "a test"))[1]
    status, _, err = await run(api, "runs", "pause", short, "--reason", "again")
    assert status == 1
    assert "paused" in err
    assert (await run(api, "runs", "resume", short))[0] == 0
    assert (await run(api, "runs", "priority", short, "1"))[1] == "priority 1\n"
    shown = (await run(api, "runs", "show", short))[1]
    assert "announcement: not checked" in shown
    assert "priority:     1" in shown
    assert (await run(api, "runs", "cancel", short, "--reason", "over"))[0] == 0
    assert (await run(api, "runs", "purge", short))[0] == 2
    assert (await run(api, "runs", "purge", short, "--yes"))[0] == 0
    assert (await run(api, "runs", "rejects", short))[0] == 1
    assert (await run(api, "runs", "show", "ffff"))[0] == 2


async def test_results_rejects_and_doubts(api: Api, tmp_path: Path) -> None:
    record = await made(api)
    await api.filled(record, ENDS)
    run_id = record.public_id
    status, out, _ = await run(api, "runs", "results", run_id)
    assert status == 0
    assert len(out.splitlines()) == 4
    target = tmp_path / "out.zip"
    assert (await run(api, "runs", "results", run_id, "--format", "zip", "-o", str(target)))[0] == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert "000000000.xml" in archive.namelist()
    assert "meaning of MSG00012" in (await run(api, "runs", "rejects", run_id))[1]
    assert len((await run(api, "runs", "rejects", run_id, "--json"))[1].splitlines()) == 2
    assert "k3" in (await run(api, "runs", "doubts", run_id))[1]
    assert (await run(api, "runs", "decide", run_id, "3", "perhaps", "--reason", "x"))[0] == 2
    assert (await run(api, "runs", "decide", run_id, "3", "fail", "--reason", "not there"))[0] == 0
    assert "Nothing is in doubt." in (await run(api, "runs", "doubts", run_id))[1]
    await run(api, "runs", "cancel", run_id, "--reason", "end")
    status, out, err = await run(api, "runs", "retry", run_id, "--no-start")
    assert status == 0, err
    again = await api.store.run(out.strip())
    assert again is not None
    assert (again.state, again.total) == (RunState.LOADING, 3)


async def test_watch_ends_with_the_run_and_prints_a_line_for_each_change(api: Api) -> None:
    record = await made(api)
    await api.filled(record, [("a", ItemState.DONE, ""), ("b", ItemState.WAITING, "")])
    watching = asyncio.ensure_future(run(api, "runs", "watch", record.public_id, "--every", "0.1"))
    await asyncio.sleep(0.5)
    await api.store.change_state(record.id, RunState.CANCELLED, author="anna", reason="enough")
    status, out, _ = await asyncio.wait_for(watching, 10)
    lines = out.splitlines()
    assert status == 1
    assert lines[0].startswith("running: 1 done, 1 waiting of 2, 50.0 %")
    assert lines[-1].startswith("cancelled (enough, by anna)")
    assert len(lines) == 2


async def test_watch_is_live_on_a_terminal(api: Api) -> None:
    record = await made(api)
    await api.filled(record, [("a", ItemState.DONE, ""), ("b", ItemState.WAITING, "")])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gateway.cli", "runs", "watch", record.public_id, "--every", "0.1"]
    watching = await asyncio.create_subprocess_exec(
        *command,
        "--socket",
        str(api.desk.socket),
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    async with asyncio.timeout(20):
        while b"1 done, 1 waiting" not in shown:
            shown += await asyncio.to_thread(os.read, ours, 65536)
        await api.store.change_state(record.id, RunState.CANCELLED, author="anna", reason="enough")
        while b"cancelled (enough, by anna)" not in shown:
            shown += await asyncio.to_thread(os.read, ours, 65536)
        assert await watching.wait() == 1
    os.close(ours)
    assert "━".encode() in shown


async def test_a_client_driven_run_is_opened_and_completed(api: Api) -> None:
    status, out, err = await run(api, "runs", "open", "--client", "batch", "--name", "own loop")
    assert status == 0
    assert f"X-Bulk-Run: {out.strip()}" in err
    assert (await run(api, "runs", "complete", out.strip()))[1].startswith("completed")


async def test_holds_are_added_listed_and_removed_and_are_in_the_audit(api: Api) -> None:
    assert (await run(api, "hold", "add", "onss", "--reason", "asked by the ONSS"))[1] == "held: source:onss\n"
    assert "asked by the ONSS" in (await run(api, "hold", "list"))[1]
    await api.store.interrupt("bcss", reason="5 technical faults", cool_s=300)
    shown = json.loads((await run(api, "hold", "list", "--json"))[1])
    assert [one["source"] for one in shown["interruptions"]] == ["bcss"]
    assert (await run(api, "hold", "skip", "bcss", "--reason", "it is back"))[0] == 0
    assert (await run(api, "hold", "remove", "onss", "--reason", "over"))[0] == 0
    assert (await run(api, "hold", "remove", "onss"))[0] == 1
    assert (await run(api, "hold", "add", "onsss", "--reason", "x"))[0] == 1
    assert "asked by the ONSS" in (await run(api, "audit"))[1]
    assert all(json.loads(line)["author"] for line in (await run(api, "audit", "--json"))[1].splitlines())


def test_without_a_gateway_the_command_says_how_to_start_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["runs", "list", "--socket", str(tmp_path / "admin.sock")])
    assert result.exit_code == 1
    assert "Start one with `bcss-gateway serve`" in result.stderr


def test_a_token_is_printed_once_with_its_line_for_the_configuration() -> None:
    result = CliRunner().invoke(app, ["token", "olga", "--role", "viewer"])
    assert result.exit_code == 0
    lines = yaml.safe_load(result.stderr.partition("\n\n")[2])
    [line] = lines["administration"]["tokens"]
    assert line == {
        "name": "olga",
        "role": "viewer",
        "sha256": hashlib.sha256(result.stdout.strip().encode()).hexdigest(),
    }
    assert CliRunner().invoke(app, ["token", "--role", "king"]).exit_code == 2


def test_a_zip_becomes_a_tar_byte_for_byte(tmp_path: Path) -> None:
    contents = {"a.xml": b"<a/>", "dir/b\u00e9.xml": b"x" * 1000, "c.xml": b"", "d.xml": b"y" * 512}
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dir/", b"")
        for name, content in contents.items():
            archive.writestr(name, content)
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_of(tmp_path / "z.zip")))) as tar:
        found = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar.getmembers()}
    assert found == contents
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(WrongUseError, match="cannot be read"):
        list(tar_of(tmp_path / "bad.zip"))


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.ndjson", "ndjson"), ("a.csv.gz", "csv"), ("a.tgz", "tar"), ("A.ZIP", "zip"), ("a.tar.gz", "tar")],
)
def test_the_format_follows_from_the_name(name: str, form: str) -> None:
    assert form_of(Path(name), "") == form


def test_a_time_without_offset_is_in_brussels() -> None:
    assert instant("2026-07-01T17:00") == "2026-07-01T17:00:00+02:00"
    assert instant("2026-07-01T17:00Z") == "2026-07-01T17:00:00+00:00"
    with pytest.raises(WrongUseError):
        form_of(Path("a.txt"), "")
