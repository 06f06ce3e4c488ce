"""What became of a run's items: answers, rejects, doubts; while the run goes on.

Rules that always hold:
- Answers are streamed, a page at a time, byte for byte as the source sent them; the pages are opened in a thread.
- A stream shows what was settled when it came by. It does not wait for more: ask again with `after`.
- What is read here is personal data, so it needs an operator, and that it was read is in the audit rows.
- Client keys are in bodies of answers only.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from aiohttp import web

from gateway.admin.operations import BEGAN, Call, answered
from gateway.admin.problems import NOTHING_IS_KEPT, ProblemError
from gateway.admin.runs import find, key_of
from gateway.admin.shapes import SETTLED, shown_instant, shown_run
from gateway.admin.zipping import ZipWriter
from gateway.packing import StoredAnswer, unpack_answer
from gateway.records import ItemRecord, RunRecord
from gateway.sealing import RunKey
from policies.model import ItemState

PAGE = 200
"""Items at a time: 50 MB of memory should their answers be 256 KiB each."""
INDEX_EVERY = 10_000
"""Items that one index file of a ZIP tells of, so that none grows with the run."""
NDJSON = "application/x-ndjson"
ZIP = "application/zip"


def opened_key(key: RunKey, run: RunRecord, item: ItemRecord) -> str:
    """Return the client's own key of an item; empty: it gave none."""
    if not item.sealed_key:
        return ""
    return key.unseal("key", run.public_id, item.seq, item.sealed_key).decode()


def opened_answer(key: RunKey, run: RunRecord, item: ItemRecord) -> StoredAnswer | None:
    """Return an item's answer; None: there is none."""
    if not item.sealed_answer:
        return None
    return unpack_answer(key.unseal("answer", run.public_id, item.seq, item.sealed_answer))


def shown_item(key: RunKey, run: RunRecord, item: ItemRecord, meaning: Callable[[str], str]) -> dict[str, Any]:
    """Return how an item ended, without its answer."""
    return {
        "seq": item.seq,
        "key": opened_key(key, run, item),
        "state": item.state.value,
        "status": item.status,
        "code": item.code,
        "meaning": meaning(item.code) if item.code else "",
        "service": item.service,
        "attempts": item.attempts,
        "tookMs": item.took_ms,
        "at": shown_instant(item.at),
    }


def _with_answer(key: RunKey, run: RunRecord, item: ItemRecord, meaning: Callable[[str], str]) -> dict[str, Any]:
    answer = opened_answer(key, run, item)
    shown = shown_item(key, run, item, meaning)
    if answer is not None:
        shown["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]
        shown["body"] = base64.b64encode(answer.body).decode("ascii")
    return shown


async def results(call: Call) -> web.StreamResponse:
    """Stream answers as NDJSON, or as a ZIP where the caller accepts that and not NDJSON."""
    run = await find(call)
    key = key_of(call.desk, run)
    states = [ItemState(one) for one in call.query.get("state", ())] or SETTLED
    form = call.query.get("format") or ("zip" if _wants_zip(call.request) else "ndjson")
    await call.desk.store.note(call.author, "results read", run.public_id, f"{form}, {', '.join(states)}")
    pages = _pages(call, run, states, call.query.get("after", -1))
    if form == "zip":
        return await _send(call, _zip(call, key, run, pages), ZIP, f"run-{run.public_id}.zip")
    return await _send(call, _ndjson(call, key, run, pages), NDJSON, "")


def _wants_zip(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "")
    return ZIP in accepted and NDJSON not in accepted


async def _pages(
    call: Call, run: RunRecord, states: Sequence[ItemState], after: int
) -> AsyncIterator[Sequence[ItemRecord]]:
    while True:
        page = await call.desk.store.items(run.id, states, after=after, limit=PAGE, bodies=True)
        if page:
            yield page
            after = page[-1].seq
        if len(page) < PAGE:
            break
    now = await call.desk.store.run(run.public_id)
    if now is None or now.wrapped_key is None:
        # Its items went while they were read: what came must not pass for all there was.
        raise ProblemError(410, "The run was purged meanwhile.", "Its counts and audit rows remain.")


async def _ndjson(
    call: Call, key: RunKey, run: RunRecord, pages: AsyncIterator[Sequence[ItemRecord]]
) -> AsyncIterator[bytes]:
    def lines(page: Sequence[ItemRecord]) -> bytes:
        shown = (_with_answer(key, run, item, call.desk.meaning) for item in page)
        return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in shown)

    async for page in pages:
        yield await asyncio.to_thread(lines, page)


async def _zip(
    call: Call, key: RunKey, run: RunRecord, pages: AsyncIterator[Sequence[ItemRecord]]
) -> AsyncIterator[bytes]:
    told: list[bytes] = []
    with ZipWriter() as archive:

        def members(page: Sequence[ItemRecord]) -> bytes:
            return b"".join(_members(archive, told, page))

        def _members(archive: ZipWriter, told: list[bytes], page: Sequence[ItemRecord]) -> Iterator[bytes]:
            for item in page:
                shown = shown_item(key, run, item, call.desk.meaning)
                answer = opened_answer(key, run, item)
                if answer is not None:
                    shown["file"] = f"{item.seq:09}.xml"
                    shown["headers"] = [[one.decode("latin-1") for one in pair] for pair in answer.headers]
                    yield archive.member(shown["file"], answer.body)
                told.append(json.dumps(shown, ensure_ascii=False).encode() + b"\n")

        indexes = 0
        async for page in pages:
            yield await asyncio.to_thread(members, page)
            if len(told) >= INDEX_EVERY:
                yield archive.member(f"index-{indexes:06}.ndjson", b"".join(told))
                indexes += 1
                told.clear()
        if told or not indexes:
            yield archive.member(f"index-{indexes:06}.ndjson", b"".join(told))
        for octets in archive.end():
            yield octets


async def _send(call: Call, parts: AsyncIterator[bytes], media_type: str, name: str) -> web.StreamResponse:
    headers = {**NOTHING_IS_KEPT, "Content-Type": media_type}
    if name:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response = web.StreamResponse(headers=headers)
    call.request[BEGAN] = True
    await response.prepare(call.request)
    async for octets in parts:
        await response.write(octets)
    await response.write_eof()
    return response


class Listing:
    """Operations that answer a page of settled items without their answers."""

    def __init__(self, states: Sequence[ItemState], name: str) -> None:
        self._states = states
        self._name = name

    async def __call__(self, call: Call) -> web.Response:
        """Answer the page."""
        run = await find(call)
        key = key_of(call.desk, run)
        states = [ItemState(one) for one in call.query.get("state", ())] or self._states
        limit, after = call.query.get("limit", 100), call.query.get("after", -1)
        await call.desk.store.note(call.author, f"{self._name} read", run.public_id, f"after {after}")
        page = await call.desk.store.items(run.id, states, after=after, limit=limit)
        shown = await asyncio.to_thread(lambda: [shown_item(key, run, item, call.desk.meaning) for item in page])
        return answered({self._name: shown, "next": page[-1].seq if len(page) == limit else None})


REJECTS = Listing((ItemState.REJECTED, ItemState.FAILED), "rejects")
DOUBTS = Listing((ItemState.IN_DOUBT,), "doubts")


async def decide(call: Call) -> web.Response:
    """Settle an item in doubt by a person's word."""
    run = await find(call)
    if not call.part("seq").isascii() or not call.part("seq").isdecimal() or len(call.part("seq")) > 18:
        raise ProblemError(404, "There is no such item.", "GET /api/v1/runs/{run}/doubts lists those in doubt.")
    run = await call.desk.store.decide(
        run.id, int(call.part("seq")), call.body["decision"], author=call.author, reason=call.reason
    )
    call.desk.changed()
    return answered(shown_run(run))
