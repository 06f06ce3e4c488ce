"""`bcss-gateway store migrate`: the one command besides `serve` that opens the store.

Rules that always hold: a file's store is one process's, so it is refused while a gateway runs with this `data_dir`; a
database's is changed under a lock of its own. Forward only; nothing is done twice.
"""

import sys
from contextlib import AsyncExitStack

from gateway.app import SystemClock
from gateway.config import Configuration
from gateway.occupancy import Occupancy, OccupiedError, boot_id
from gateway.store.interface import Store, StoreError
from policies.model import StoreDownError


async def migrate(configuration: Configuration) -> int:
    """Migrate; return the exit status."""
    settings = configuration.settings
    occupancy = Occupancy(settings.data_dir, boot_id())
    try:
        async with AsyncExitStack() as stack:
            if settings.store.url is None:
                occupancy.acquire()
                stack.callback(occupancy.release)
            store = await _opened(configuration)
            stack.push_async_callback(store.close)
            before, after = await store.migrate()
    except (OccupiedError, StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except StoreDownError as error:
        print(f"The store does not answer: {error}. See `store.url`, and whether its server runs.", file=sys.stderr)
        return 1
    print(f"schema {after}" if before == after else f"schema {before} -> {after}")
    return 0


async def _opened(configuration: Configuration) -> Store:
    settings = configuration.settings
    if settings.store.url is None:
        from gateway.store.sqlite import open_sqlite

        return await open_sqlite(settings.data_dir / "store.sqlite", SystemClock())
    from gateway.store.postgres import open_postgres

    return await open_postgres(settings.store.url.get_secret_value(), SystemClock(), settings.store.timeout)
