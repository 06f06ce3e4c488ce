"""Who may ask, and by which name; holds, interruptions, audit and status."""

import asyncio
import gc
import getpass
import io
import stat
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector

from gateway.admin.identity import check_host
from gateway.admin.problems import ProblemError
from gateway.admin.server import short
from tests.gateway.admin.conftest import CONFIG, OPERATOR, VIEWER, Api, api_in


async def test_on_the_socket_the_peer_is_the_author_and_nobody_else_may_connect(api: Api) -> None:
    assert stat.S_IMODE(api.desk.socket.stat().st_mode) == 0o600
    async with api.client() as asking:
        async with asking.put("/api/v1/holds/all", json={"reason": "drill"}) as answer:
            [hold] = (await answer.json())["holds"]
        assert hold["author"] == getpass.getuser()


async def test_over_tcp_a_tokens_name_is_the_author_and_its_role_bounds_it(api: Api) -> None:
    async with api.client(OPERATOR) as asking:
        async with asking.put("/api/v1/holds/source:onss", json={"reason": "asked by the ONSS"}) as answer:
            [hold] = (await answer.json())["holds"]
        assert (hold["scope"], hold["author"]) == ("source:onss", "olga")
    async with api.client(VIEWER) as asking:
        async with asking.get("/api/v1/holds") as answer:
            assert answer.status == 200
        for refused in (
            asking.put("/api/v1/holds/all", json={"reason": "x"}),
            asking.post("/api/v1/runs", json={}),
            asking.get("/api/v1/runs/0/results"),
            asking.get("/api/v1/runs/0/rejects"),
        ):
            async with refused as answer:
                assert answer.status == 403
                assert "needs an operator" in (await answer.json())["detail"]


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", f"Basic {OPERATOR}", f"Bearer {OPERATOR}x"])
async def test_without_a_known_token_nothing_is_answered(api: Api, sent: str) -> None:
    async with ClientSession(api.served.address, headers={"Authorization": sent} if sent else {}) as asking:
        for path in ("/status", "/openapi.json", "/nowhere"):
            async with asking.get(f"/api/v1{path}") as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                assert "wrong" not in await answer.text()


async def test_without_tokens_the_api_is_closed_over_tcp_and_says_how_to_open_it(tmp_path: Path) -> None:
    async with api_in(tmp_path, CONFIG.partition("  tokens")[0]) as api:
        async with api.client(OPERATOR) as asking, asking.get("/api/v1/status") as answer:
            assert answer.status == 403
            assert "bcss-gateway token" in (await answer.json())["remedy"]
        async with api.client() as asking, asking.get("/api/v1/status") as answer:
            assert answer.status == 200


async def test_a_name_that_leads_here_by_rebinding_is_not_answered(api: Api) -> None:
    async with api.client(OPERATOR) as asking:
        for host, status in (("evil.example", 421), ("gateway.example:8081", 200), ("localhost:1", 200)):
            async with asking.get("/api/v1/status", headers={"Host": host}) as answer:
                assert answer.status == status


@pytest.mark.parametrize("host", ["10.0.0.7", "10.0.0.7:8081", "[::1]:8081", "LOCALHOST.", "a.example"])
def test_its_own_names_are_known(host: str) -> None:
    check_host(host, ("10.0.0.7", 8081), ("A.example.",))


@pytest.mark.parametrize("host", ["", "10.0.0.8", "a.example.evil", "[::2]:1", "x:y:z"])
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(ProblemError):
        check_host(host, ("10.0.0.7", 8081), ("a.example",))


async def test_what_is_not_there_and_what_is_not_done_are_told_as_problems(api: Api) -> None:
    async with api.client() as asking:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("DELETE", "/runs", 405),
            ("GET", f"/runs/{'0' * 32}", 404),
        ):
            async with asking.request(method, f"/api/v1{path}") as answer:
                assert answer.status == status
                assert answer.content_type == "application/problem+json"
                assert (await answer.json())["remedy"]
        async with asking.post("/api/v1/runs", data=b"{", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
        async with asking.post("/api/v1/runs", data=b"<x/>", headers={"Content-Type": "text/xml"}) as answer:
            assert answer.status == 415
        async with asking.get("/api/v1/runs", params={"limit": "0"}) as answer:
            assert answer.status == 400
        async with asking.get("/api/v1/runs", params={"lim": "5"}) as answer:
            assert "Known: after, limit, state" in (await answer.json())["detail"]
        big = b'{"name": "' + b"x" * 5_000_000 + b'"}'
        async with asking.post(
            "/api/v1/runs", data=io.BytesIO(big), headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 413


async def test_holds_are_made_listed_and_ended(api: Api) -> None:
    async with api.client() as asking:
        async with asking.put("/api/v1/holds/source:onsss", json={"reason": "x"}) as answer:
            assert answer.status == 404
            assert "Did you mean source:onss?" in (await answer.json())["remedy"]
        async with asking.put("/api/v1/holds/source:onss", json={}) as answer:
            assert answer.status == 400
        async with asking.put("/api/v1/holds/source:onss", json={"reason": "first"}) as answer:
            assert answer.status == 200
        async with asking.put("/api/v1/holds/source:onss", json={"reason": "second"}) as answer:
            assert answer.status == 200
        async with asking.get("/api/v1/holds") as answer:
            assert [one["reason"] for one in (await answer.json())["holds"]] == ["second"]
        async with asking.delete("/api/v1/holds/source:onss", params={"reason": "over"}) as answer:
            assert (await answer.json())["holds"] == []
        async with asking.delete("/api/v1/holds/source:onss") as answer:
            assert answer.status == 409
        async with asking.get("/api/v1/audit", params={"limit": 1}) as answer:
            page = await answer.json()
        async with asking.get("/api/v1/audit", params={"after": page["next"]}) as answer:
            assert len((await answer.json())["audit"]) == 2
    assert len(api.woken) == 3


async def test_a_person_ends_a_cool_down_early_with_a_reason(api: Api) -> None:
    await api.store.interrupt("onss", reason="5 technical faults", cool_s=300)
    async with api.client() as asking:
        async with asking.get("/api/v1/interruptions") as answer:
            [one] = (await answer.json())["interruptions"]
        assert (one["source"], one["coolDown"]) == ("onss", 300)
        assert 299 <= one["remaining"] <= 300
        async with asking.post("/api/v1/interruptions/bcss/resume", json={"reason": "x"}) as answer:
            assert answer.status == 404
        async with asking.post("/api/v1/interruptions/onss/resume", json={"reason": "the ONSS is back"}) as answer:
            [one] = (await answer.json())["interruptions"]
        assert (one["remaining"], one["skippedBy"]) == (0, getpass.getuser())


async def test_the_status_shows_window_pools_holds_and_store(api: Api) -> None:
    await api.store.hold("all", author="anna", reason="drill")
    async with api.client(VIEWER) as asking, asking.get("/api/v1/status") as answer:
        shown = await answer.json()
    assert shown["window"]["open"] is True
    assert shown["pools"]["base"]["cap"] == 4
    assert shown["holds"][0]["scope"] == "all"
    assert shown["store"] == {"engine": "sqlite", "up": True}


async def test_a_store_that_is_gone_is_a_503_and_the_status_says_so(tmp_path: Path) -> None:
    async with api_in(tmp_path) as api:
        await api.store.close()
        async with api.client() as asking:
            async with asking.get("/api/v1/runs") as answer:
                assert answer.status == 503, await answer.text()
                assert answer.headers["Retry-After"]
            async with asking.get("/api/v1/status") as answer:
                assert (await answer.json())["store"]["up"] is False


async def test_a_port_that_is_taken_leaves_the_socket_working(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with api_in(tmp_path, CONFIG.replace("port: 0", f"port: {port}")) as api:
            assert api.served.address == ""
            async with api.client() as asking, asking.get("/api/v1/status") as answer:
                assert answer.status == 200
    assert "no API over TCP" in (tmp_path / "log.jsonl").read_text()


async def test_a_socket_works_in_a_folder_with_a_long_name_and_replaces_a_stale_one(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    (folder / "admin.sock").write_text("stale")
    async with api_in(folder) as api:
        assert short(api.desk.socket, 9) == "/proc/self/fd/9/admin.sock"
        link = tmp_path / "l"
        link.symlink_to(folder)
        async with (
            ClientSession("http://localhost", connector=UnixConnector(str(link / "admin.sock"))) as asking,
            asking.get("/api/v1/status") as answer,
        ):
            assert answer.status == 200
    assert not (folder / "admin.sock").exists()


async def test_a_stop_while_the_api_starts_leaves_nothing_open(tmp_path: Path) -> None:
    """Whenever the stop comes: what is left open is an error of the test run."""
    for turns in range(12):
        folder = tmp_path / str(turns)
        folder.mkdir()

        async def begin(where: Path = folder) -> None:
            async with api_in(where):
                await asyncio.sleep(60)

        async with asyncio.TaskGroup() as tasks:
            beginning = tasks.create_task(begin())
            while not (folder / "admin.sock").exists() and not beginning.done():
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            beginning.cancel()
        assert not (folder / "admin.sock").exists()
    gc.collect()
