"""What a person holds is held after a restart too, from the first call on."""

import asyncio
from pathlib import Path

from gateway.simulator import standing_in
from tests.conftest import envelope
from tests.gateway.runner.making import opened, patient

BODY = envelope("RetrieveTIGroupsService/v2", "retrieveTIGroupsRequest")
CALL = (
    b"POST /bulk/RetrieveTIGroupsService/v2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


async def test_a_call_right_after_a_restart_meets_the_hold_that_was_there_before(tmp_path: Path) -> None:
    async with standing_in() as stand_in:
        async with patient(tmp_path, stand_in.url) as run:
            mass = await opened(run)
            await mass.store.hold("all", author="anna", reason="they asked")
        async with patient(tmp_path, stand_in.url) as run:
            assert b"held" in await run.ask(CALL)
            mass = await opened(run)
            await mass.store.unhold("all", author="anna", reason="done")
            mass.runner.steered()
            async with asyncio.timeout(5):
                while mass.runner.interruptions.standing.held:
                    await asyncio.sleep(0.01)
            assert (await run.ask(CALL)).startswith(b"HTTP/1.1 200")
    assert stand_in.counts.calls.total() == 1
