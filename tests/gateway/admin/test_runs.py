"""Runs over the API: made, filled, steered, read."""

import base64
import io
import json
import zipfile

import pytest

from gateway.records import RunRecord
from policies.model import ItemState, RunState
from tests.conftest import envelope
from tests.gateway.admin.conftest import Api

SECRET_KEY = "00000000097"


def entry(key: str = "") -> bytes:
    """Return a line of NDJSON."""
    return (
        json.dumps({"key": key, "body": envelope().decode()} if key else {"body": envelope().decode()}).encode() + b"\n"
    )


async def made(api: Api, **given: object) -> RunRecord:
    async with api.client() as asking, asking.post("/api/v1/runs", json={"path": "/SOA/x", **given}) as answer:
        assert answer.status == 201, await answer.text()
        shown = await answer.json()
        assert answer.headers["Location"] == f"/api/v1/runs/{shown['id']}"
    run = await api.store.run(shown["id"])
    assert run is not None
    return run


async def test_a_run_is_made_filled_and_made_ready(api: Api) -> None:
    run = await made(api, name="yearly check", priority=2, notBefore="2026-12-01T17:00:00+01:00", maxAttempts=3)
    assert (run.route, run.priority, run.max_attempts) == ("/SOA", 2, 3)
    lines = entry("a") + entry("b") + entry("a")
    async with api.client() as asking:
        headers = {"Content-Type": "application/x-ndjson"}
        async with asking.post(f"/api/v1/runs/{run.public_id}/items", data=lines, headers=headers) as answer:
            assert answer.status == 200
            taken = await answer.json()
        assert (taken["received"], taken["added"], taken["duplicates"], taken["problems"]) == (3, 2, 1, [])
        async with asking.post(f"/api/v1/runs/{run.public_id}/ready", json={}) as answer:
            assert (await answer.json())["state"] == "ready"
        async with asking.get(f"/api/v1/runs/{run.public_id}") as answer:
            shown = await answer.json()
    assert shown["counts"] == {"waiting": 2, "done": 0, "rejected": 0, "failed": 0, "inDoubt": 0}
    assert shown["announcement"] == "not checked"
    assert shown["notBefore"] == "2026-12-01T16:00:00.000+00:00"
    assert shown["lanes"][0] | {"unclaimed": 2, "total": 2, "sources": ["bcss"]} == shown["lanes"][0]
    assert api.woken


async def test_an_upload_goes_on_where_it_was_cut_off_and_adds_nothing_twice(api: Api) -> None:
    run = await made(api)
    path, headers = f"/api/v1/runs/{run.public_id}/items", {"Content-Type": "application/x-ndjson"}
    lines = [entry()] * 6
    async with api.client() as asking:
        async with asking.post(path, data=b"".join(lines[:4]), headers=headers) as answer:
            assert (await answer.json())["received"] == 4
        async with asking.post(path, data=b"".join(lines), headers=headers) as answer:
            assert (await answer.json())["added"] == 2
        async with asking.post(path, data=b"".join(lines), headers={**headers, "Upload-Offset": "7"}) as answer:
            assert answer.status == 409
            assert (await answer.json())["received"] == 6
        async with asking.post(path, data=lines[0], headers={**headers, "Upload-Offset": "6"}) as answer:
            assert (await answer.json())["received"] == 7
    run = await api.store.run(run.public_id) or run
    assert (run.received, run.total) == (7, 7)


async def test_a_faulty_entry_is_told_by_its_line_and_the_run_stays_loading(api: Api) -> None:
    run = await made(api)
    async with api.client() as asking:
        async with asking.post(
            f"/api/v1/runs/{run.public_id}/items",
            data=entry() + b"00000000097\n",
            headers={"Content-Type": "application/x-ndjson"},
        ) as answer:
            assert answer.status == 422
            told = await answer.json()
        [problem] = told["problems"]
        assert problem["line"] == 2
        assert "00000000097" not in problem["what"]
        assert told["complete"] is False
        async with asking.get(f"/api/v1/runs/{run.public_id}") as answer:
            assert (await answer.json())["state"] == "loading"


async def test_one_request_makes_a_whole_run_and_has_it_begin(api: Api) -> None:
    async with api.client(**{"Content-Type": "application/x-ndjson"}) as asking:
        query = {"path": "/SOA/x", "name": "short", "priority": "3"}
        async with asking.post("/api/v1/runs", params=query, data=entry()) as answer:
            assert answer.status == 201, await answer.text()
            shown = await answer.json()
            assert (shown["state"], shown["total"], shown["added"], shown["priority"]) == ("ready", 1, 1, 3)
        async with asking.post("/api/v1/runs", params=query, data=b"no json\n") as answer:
            assert answer.status == 422
            faulty = await answer.json()
        run = await api.store.run(faulty["id"])
        assert run is not None
        assert (run.state, run.reason) == ("cancelled", "a faulty entry")
        async with asking.post("/api/v1/runs", params={**query, "start": "false"}, data=entry()) as answer:
            assert (await answer.json())["state"] == "loading"


async def test_the_same_idempotency_key_finds_the_same_run(api: Api) -> None:
    async with api.client(**{"Idempotency-Key": "night-1"}) as asking:
        ids = []
        for _ in range(2):
            async with asking.post("/api/v1/runs", json={"path": "/SOA/x"}) as answer:
                ids.append((await answer.json())["id"])
        assert ids[0] == ids[1]
        async with asking.post("/api/v1/runs", json={"path": "/SOA/x", "priority": 1}) as answer:
            assert answer.status == 409, "something else is asked"
        async with asking.post(f"/api/v1/runs/{ids[0]}/cancel", json={"reason": "wrong file"}) as answer:
            assert answer.status == 200


async def test_a_cancelled_run_is_not_told_as_the_success_of_a_request_that_is_repeated(api: Api) -> None:
    query = {"path": "/SOA/x", "start": "false"}
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "night-2"}
    async with api.client(**headers) as asking:
        async with asking.post("/api/v1/runs", params=query, data=entry()) as answer:
            run_id = (await answer.json())["id"]
        async with asking.post(
            f"/api/v1/runs/{run_id}/cancel", json={"reason": "x"}, headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 200, await answer.text()
        async with asking.post("/api/v1/runs", params=query, data=entry()) as answer:
            assert answer.status == 409
            assert "another key" in (await answer.json())["remedy"]


async def test_a_template_is_stored_sealed(api: Api) -> None:
    run = await made(
        api, format="csv", template=envelope().decode().replace("hello", "visible {{ssin}}"), keyColumn="ssin"
    )
    assert "visible" not in json.dumps(dict(run.options))
    assert "template" in run.options


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"path": "/nowhere"}, "No route leads"),
        ({"path": "/SOA/x", "priority": 10}, "Priority must be 9 at most."),
        ({"path": "/SOA/x", "prioritty": 1}, "holds a member that is not known"),
        ({"path": "/SOA/x", "name": "a\nb"}, "Name must be one line"),
        ({"path": "/SOA/x", "soapAction": "a\r\nX: y"}, "SoapAction must be printable ASCII"),
        ({"path": "/SOA/x", "notBefore": "tomorrow"}, "must be an instant"),
        ({"path": "/SOA/x", "format": "csv"}, "CSV needs a template"),
        ({"client": "batch", "path": "/SOA/x"}, "stores no items"),
        ([], "must be object"),
    ],
)
async def test_what_is_not_as_described_is_refused_with_a_remedy(api: Api, given: object, says: str) -> None:
    async with api.client() as asking, asking.post("/api/v1/runs", json=given) as answer:
        assert answer.status in (400, 422)
        assert answer.content_type == "application/problem+json"
        problem = await answer.json()
    assert says in problem["detail"]
    assert problem["remedy"]
    assert not await api.store.runs()


async def test_a_name_that_holds_a_national_number_is_withheld(api: Api) -> None:
    run = await made(api, name="for 00.00.00-000.97 only")
    assert run.name == "for (withheld) only"


async def test_a_client_driven_run_is_ready_at_once_and_completed_by_a_person(api: Api) -> None:
    async with api.client() as asking:
        async with asking.post("/api/v1/runs", json={"client": "batch", "name": "own loop"}) as answer:
            shown = await answer.json()
        assert (shown["state"], shown["kind"], shown["client"]) == ("ready", "client", "batch")
        async with asking.post(f"/api/v1/runs/{shown['id']}/complete") as answer:
            assert (await answer.json())["state"] == "completed"
        run = await made(api)
        async with asking.post(f"/api/v1/runs/{run.public_id}/complete") as answer:
            assert answer.status == 409


async def test_a_run_is_paused_resumed_and_cancelled_with_author_and_reason(api: Api) -> None:
    run = await made(api)
    async with api.client() as asking:

        async def step(name: str, body: object = None) -> tuple[int, dict[str, object]]:
            async with asking.post(f"/api/v1/runs/{run.public_id}/{name}", json=body) as answer:
                return answer.status, await answer.json()

        assert (await step("pause", {"reason": "x"}))[0] == 409  # it is still loading
        assert (await step("ready", {}))[0] == 200
        assert (await step("ready", {}))[0] == 409
        assert (await step("pause", {}))[0] == 400  # a reason is needed
        status, shown = await step("pause", {"reason": "the source asked for it"})
        assert (status, shown["state"], shown["reason"]) == (200, "paused", "the source asked for it")
        assert shown["changedBy"]
        assert (await step("pause", {"reason": "me too"}))[0] == 409
        assert (await step("resume", {}))[1]["state"] == "ready"
        await api.store.change_state(run.id, RunState.PAUSED, author="gateway", reason="in doubt")
        assert (await step("pause", {"reason": "and I say so"}))[1]["reason"] == "and I say so"
        assert (await step("cancel", {"reason": "wrong list"}))[1]["state"] == "cancelled"
        assert (await step("resume", {}))[0] == 409
        assert (await step("purge", {}))[1]["purged"] is True
        async with asking.get(f"/api/v1/runs/{run.public_id}/results") as answer:
            assert answer.status == 410
        async with asking.get("/api/v1/audit") as answer:
            rows = (await answer.json())["audit"]
    assert all(any(reason in row["detail"] for row in rows) for reason in ("the source asked for it", "wrong list"))


async def test_priority_changes_whose_turn_it_is(api: Api) -> None:
    run = await made(api)
    async with api.client() as asking, asking.patch(f"/api/v1/runs/{run.public_id}", json={"priority": 0}) as answer:
        assert (await answer.json())["priority"] == 0


async def test_runs_are_listed_by_page_and_by_state(api: Api) -> None:
    made_runs = [await made(api, name=f"n{number}") for number in range(5)]
    async with api.client() as asking:
        seen, after = [], 0
        while True:
            async with asking.get("/api/v1/runs", params={"limit": 2, "after": after}) as answer:
                page = await answer.json()
            seen += [run["id"] for run in page["runs"]]
            if page["next"] is None:
                break
            after = page["next"]
        assert seen == [run.public_id for run in made_runs]
        async with asking.get("/api/v1/runs", params={"state": "ready,paused"}) as answer:
            assert (await answer.json())["runs"] == []


ENDS = [
    ("k0", ItemState.DONE, "MSG00000"),
    (SECRET_KEY, ItemState.REJECTED, "MSG00012"),
    ("k2", ItemState.FAILED, "upstream_timeout"),
    ("k3", ItemState.IN_DOUBT, ""),
]


async def test_results_come_byte_for_byte_as_ndjson_and_as_zip(api: Api) -> None:
    run = await made(api)
    body = b"\xef\xbb\xbf<answer>\r\n\xe9\x00</answer> "
    await api.filled(run, ENDS, body)
    async with api.client() as asking:
        async with asking.get(f"/api/v1/runs/{run.public_id}/results") as answer:
            assert answer.content_type == "application/x-ndjson"
            lines = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert [line["key"] for line in lines] == ["k0", SECRET_KEY, "k2", "k3"]
        assert base64.b64decode(lines[0]["body"]) == body
        assert "body" not in lines[3]
        async with asking.get(f"/api/v1/runs/{run.public_id}/results", params={"state": "done", "after": -1}) as answer:
            assert len((await answer.read()).splitlines()) == 1
        headers = {"Accept": "application/zip"}
        async with asking.get(f"/api/v1/runs/{run.public_id}/results", headers=headers) as answer:
            assert answer.content_type == "application/zip"
            archive = zipfile.ZipFile(io.BytesIO(await answer.read()))
    assert archive.testzip() is None
    assert archive.read("000000000.xml") == body
    index = [json.loads(line) for line in archive.read("index-000000.ndjson").splitlines()]
    assert [(one["key"], one.get("file")) for one in index][1] == (SECRET_KEY, "000000001.xml")


async def test_rejects_tell_code_and_meaning_and_make_a_run_of_their_own(api: Api) -> None:
    run = await made(api, name="first")
    await api.filled(run, ENDS)
    async with api.client() as asking:
        async with asking.get(f"/api/v1/runs/{run.public_id}/rejects") as answer:
            page = await answer.json()
        assert [(one["key"], one["code"], one["meaning"]) for one in page["rejects"]] == [
            (SECRET_KEY, "MSG00012", "meaning of MSG00012"),
            ("k2", "upstream_timeout", "meaning of upstream_timeout"),
        ]
        async with asking.post(f"/api/v1/runs/{run.public_id}/retry", json={}) as answer:
            assert answer.status == 409  # it still runs
        async with asking.post(f"/api/v1/runs/{run.public_id}/cancel", json={"reason": "enough"}) as answer:
            assert answer.status == 200
        keyed = {"Idempotency-Key": "again"}
        ids = set()
        for _ in range(2):
            async with asking.post(f"/api/v1/runs/{run.public_id}/retry", headers=keyed, json={}) as answer:
                assert answer.status == 201, await answer.text()
                again = await answer.json()
                ids.add(again["id"])
        assert len(ids) == 1
    assert (again["state"], again["total"], again["name"]) == ("ready", 2, "first (again)")
    fresh = await api.store.run(again["id"])
    assert fresh is not None
    [(lane, total)] = await api.store.lanes(fresh.id)
    assert (lane.key.service, total) == ("TestConnectionServiceService/v1", 2)
    batch = await api.store.claim(lane.lane_id, "me", size=5, window=5)
    assert batch is not None
    key = api.ring.unwrap(fresh.wrapped_key or b"")
    items = await api.store.fetch(batch)
    assert [item.seq for item in items] == [1, 2], "the numbers that they have in the old run"
    opened = [key.unseal("request", fresh.public_id, item.seq, item.sealed) for item in items]
    assert [octets[-16:] for octets in opened] == [b"<asked seq='1'/>", b"<asked seq='2'/>"]


async def test_a_person_decides_what_is_in_doubt(api: Api) -> None:
    run = await made(api)
    await api.filled(run, ENDS)
    async with api.client() as asking:
        async with asking.get(f"/api/v1/runs/{run.public_id}/doubts") as answer:
            [doubt] = (await answer.json())["doubts"]
        assert (doubt["seq"], doubt["key"]) == (3, "k3")
        path, body = f"/api/v1/runs/{run.public_id}/doubts/3", {"decision": "accept", "reason": "seen at the source"}
        async with asking.post(path, json=body) as answer:
            assert (await answer.json())["counts"]["done"] == 2
        async with asking.post(path, json=body) as answer:
            assert answer.status == 409
        async with asking.post(f"/api/v1/runs/{run.public_id}/doubts/x", json=body) as answer:
            assert answer.status == 404


async def test_client_keys_stand_in_no_list_no_log_and_no_audit_row(api: Api) -> None:
    run = await made(api)
    await api.filled(run, ENDS)
    async with api.client() as asking:
        async with asking.get(f"/api/v1/runs/{run.public_id}/results") as answer:
            assert SECRET_KEY in await answer.text()
        for path in ("/runs", f"/runs/{run.public_id}", "/audit", "/status"):
            async with asking.get(f"/api/v1{path}") as answer:
                assert answer.status == 200
                assert SECRET_KEY not in await answer.text()
        async with asking.get("/api/v1/audit") as answer:
            assert "results read" in {row["action"] for row in (await answer.json())["audit"]}
    assert SECRET_KEY not in api.log.read_text()


async def test_a_zip_over_its_bound_is_refused_with_a_way_out(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admin.uploads.ZIP_LIMIT", 1000)
    run = await made(api)
    headers = {"Content-Type": "application/zip"}
    async with (
        api.client() as asking,
        asking.post(f"/api/v1/runs/{run.public_id}/items", data=b"P" * 2000, headers=headers) as answer,
    ):
        assert answer.status == 413
        assert "TAR or NDJSON" in (await answer.json())["remedy"]
