"""`bcss-gateway simulate`: runs the stand-in for the BCSS's web services until it is interrupted."""

import asyncio
import signal
import sys

from gateway.simulator import Script, ScriptError, parse_latency, parse_rule
from gateway.simulator import simulate as run


def simulate(address: str, port: int, latency: str, faults: tuple[str, ...], seed: int) -> int:
    """Run the stand-in; return the exit status."""
    try:
        script = Script([parse_rule(fault) for fault in faults], parse_latency(latency), seed)
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        asyncio.run(_until_interrupted(address, port, script))
    except OSError as error:
        print(f"{address}:{port}: {error.strerror or error}; take another --port.", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        pass
    return 0


async def _until_interrupted(address: str, port: int, script: Script) -> None:
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    await run(address, port, script, lambda url: print(f"The stand-in listens on {url} (not the BCSS).", flush=True))
