"""`bcss-gateway check`: what a configuration means, its JSON Schema, and whether several gateways share the caps
soundly.

Rules that always hold: nothing is started or written. Status 2 when shares of one pool add up to more than its cap,
since together the gateways would then exceed it.
"""

import json
import sys
from collections.abc import Sequence

from gateway.app import SystemClock
from gateway.config import Configuration, describe, schema


def check(configurations: Sequence[Configuration]) -> int:
    """Describe each configuration; with several, check that their shares add up. Return the exit status."""
    now = SystemClock().wall()
    for number, configuration in enumerate(configurations):
        if number:
            print()
        print(describe(configuration, now))
    faults = shared_faults(configurations) if len(configurations) > 1 else []
    for fault in faults:
        print(fault, file=sys.stderr)
    return 2 if faults else 0


def shared_faults(configurations: Sequence[Configuration]) -> list[str]:
    """Return what is wrong with gateways that are to keep the caps together, without a common store."""
    faults = [
        f"{one.path}: has no `share:`, so it would use every cap whole. Give each gateway its part."
        for one in configurations
        if one.settings.bulk.share is None
    ]
    pools = sorted({pool for one in configurations for pool in one.layout.pools})
    for pool in pools:
        whole = min(_whole_cap(one, pool) for one in configurations if pool in one.layout.pools)
        parts = {str(one.path): (one.settings.bulk.share or {}).get(pool, 0) for one in configurations}
        if sum(parts.values()) > whole:
            each = ", ".join(f"{path} {part}" for path, part in parts.items() if part)
            faults.append(
                f'pool "{pool}": the shares ({each}) add up to {sum(parts.values())}, above its cap of {whole}.'
            )
    return faults


def _whole_cap(configuration: Configuration, pool: str) -> int:
    own = configuration.settings.bulk.pools.get(pool)
    if own is not None and own.slots is not None:
        return own.slots
    return configuration.layout.pools[pool].recommended


def print_schema() -> None:
    """Print the JSON Schema of the configuration."""
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
