"""The command `bcss-gateway`, and its short way in for the one start that people wait for.

`serve`, with nothing but `--config`, is how containers and units start: it goes straight to the server, without the
machinery of the other commands (typer and rich, a sixth of the time until the gateway is ready). All else, and whatever
is not written exactly so, is `gateway.cli.commands`.
"""

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line."""
    # The gateway has no use for pydantic's plugins, and looking for them costs every start 15 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    # A second series for each, of when it began, is half of what a scrape would carry.
    os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "true")
    match sys.argv[1:]:
        case ["serve"]:
            _serve(os.environ.get("BCSS_GATEWAY_CONFIG") or "config.yaml")
        case ["serve", "--config" | "-c", path] if not path.startswith("-"):
            _serve(path)
        case _:
            from gateway.cli.commands import app

            app()


def _serve(path: str) -> None:
    gc.disable()  # until the gateway is ready: what is imported stays, and looking through it costs 7 % of the start
    from gateway.cli.reading import load
    from gateway.cli.serve import serve

    configuration = load(Path(path))
    sys.exit(2 if configuration is None else serve(configuration))
