"""A gateway process of which the tests hold the clocks: `python -m tests.e2e.replica CONFIG CLOCK [R MARGIN]`.

It is `bcss-gateway serve` in all else: the same configuration, signals and exit statuses. The clocks are the machine's,
moved by what stands in a small file that both processes map, so that a test can step them while the gateway runs.
R and MARGIN, seconds, make leases of shared slots short (design, section 5).
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gateway.cli.demo.clock import HandClock
from policies.leases import Times

__all__ = ["HandClock"]


def main() -> int:
    """Run a gateway; return the exit status."""
    from gateway.cli.reading import load
    from gateway.cli.serve import serve

    configuration = load(Path(sys.argv[1]))
    if configuration is None:
        return 2
    times: Callable[[float], Times] = Times
    if len(sys.argv) > 3:
        renew_s, margin_s = map(float, sys.argv[3:])
        times = partial(Times, renew_s=renew_s, margin_s=margin_s)
    return serve(configuration, HandClock(Path(sys.argv[2])), times)


if __name__ == "__main__":
    sys.exit(main())
