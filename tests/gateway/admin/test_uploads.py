"""Uploads that meet trouble: cut off, twice at once, not what they say they are."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from policies.model import RunState
from tests.gateway.admin.conftest import Api
from tests.gateway.admin.test_runs import entry, made

LINES = entry() * 20


async def cut_off(api: Api, path: str, *fields: str, framed: bytes) -> None:
    """Begin an upload, and hang up in the middle."""
    _, writer = await asyncio.open_unix_connection(str(api.desk.socket))
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/x-ndjson", *fields]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + framed)
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    await writer.wait_closed()


CHUNKED = ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n" % (len(LINES), LINES))
COUNTED = (f"Content-Length: {len(LINES) + 100}", LINES)


@pytest.mark.parametrize(("field", "framed"), [CHUNKED, COUNTED], ids=["chunked", "counted"])
async def test_an_upload_that_is_cut_off_leaves_the_run_loading_and_can_be_sent_again(
    api: Api, field: str, framed: bytes
) -> None:
    run = await made(api)
    path = f"/api/v1/runs/{run.public_id}/items"
    await cut_off(api, path, field, framed=framed)
    await asyncio.sleep(0.3)
    record = await api.store.run(run.public_id) or run
    assert record.state is RunState.LOADING
    assert record.total == record.received
    headers = {"Content-Type": "application/x-ndjson"}
    async with api.client() as asking, asking.post(path, data=LINES, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert (await answer.json())["received"] == 20
    assert (await api.store.run(run.public_id) or run).total == 20


async def test_a_whole_run_that_is_cut_off_is_cancelled_unless_it_can_be_sent_again(api: Api) -> None:
    field, framed = COUNTED
    await cut_off(api, "/api/v1/runs?path=/SOA/x", field, framed=framed)
    await asyncio.sleep(0.3)
    [first] = await api.store.runs()
    assert (first.state, first.reason) == (RunState.CANCELLED, "its upload broke off")
    await cut_off(api, "/api/v1/runs?path=/SOA/x", field, "Idempotency-Key: k1", framed=framed)
    await asyncio.sleep(0.3)
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "k1"}
    async with api.client() as asking:
        for status in (201, 200):  # made, and found
            async with asking.post("/api/v1/runs?path=/SOA/x", data=LINES, headers=headers) as answer:
                assert answer.status == status, await answer.text()
                shown = await answer.json()
                assert (shown["state"], shown["total"]) == ("ready", 20)
    assert len(await api.store.runs()) == 2


async def test_a_second_upload_at_the_same_time_is_refused(api: Api) -> None:
    run = await made(api)
    path, headers = f"/api/v1/runs/{run.public_id}/items", {"Content-Type": "application/x-ndjson"}
    refused = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield LINES
        await asyncio.wait_for(refused.wait(), 10)

    async def first() -> int:
        async with api.client() as asking, asking.post(path, data=slow(), headers=headers) as answer:
            return answer.status

    async with asyncio.TaskGroup() as tasks:
        going = tasks.create_task(first())
        await asyncio.sleep(0.3)
        async with api.client() as asking, asking.post(path, data=LINES, headers=headers) as answer:
            assert answer.status == 409
            assert "under way" in (await answer.json())["detail"]
        refused.set()
    assert going.result() == 200
    assert (await api.store.run(run.public_id) or run).total == 20


async def test_what_is_not_what_it_says_it_is_is_told(api: Api) -> None:
    run = await made(api)
    async with api.client() as asking:
        for step in ("items", "check"):
            for media_type in ("application/zip", "application/x-tar"):
                async with asking.post(
                    f"/api/v1/runs/{run.public_id}/{step}", data=b"x" * 600, headers={"Content-Type": media_type}
                ) as answer:
                    assert answer.status == 422
                    assert (await answer.json())["remedy"]
            async with asking.post(
                f"/api/v1/runs/{run.public_id}/{step}", data=b"a,b\n", headers={"Content-Type": "text/csv"}
            ) as answer:
                assert "CSV needs a template" in (await answer.json())["detail"]
        async with asking.post("/api/v1/runs", json={"client": "batch"}) as answer:
            own = (await answer.json())["id"]
        for other, says in ((own, "kind client"), (run.public_id, "takes no more items")):
            if other == run.public_id:
                async with asking.post(f"/api/v1/runs/{other}/cancel", json={"reason": "x"}) as answer:
                    assert answer.status == 200
            headers = {"Content-Type": "application/x-ndjson"}
            async with asking.post(f"/api/v1/runs/{other}/items", data=LINES, headers=headers) as answer:
                assert answer.status == 409
                assert says in (await answer.json())["detail"]
    assert (await api.store.run(run.public_id) or run).total == 0
