"""The commands of `bcss-gateway`: reads its arguments, calls the room that does the work, says how it ended.

Exit status: 0 it worked; 1 it failed; 2 wrong use, or a configuration that is not valid. What a command needs is
imported when it runs, so that `--help` and `check` do not pay for the server.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import controls, runs

if TYPE_CHECKING:
    from gateway.config import Configuration

app = typer.Typer(
    name="bcss-gateway",
    help="A reverse proxy that keeps mass calls to the BCSS/KSZ within its five recommendations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigFile = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="BCSS_GATEWAY_CONFIG", help="The configuration, YAML.", show_default=True),
]
_DEFAULT = Path("config.yaml")


def load(path: Path) -> "Configuration":
    """Load a configuration, or say all that is wrong with it and leave with status 2."""
    from gateway.cli.reading import load as read

    configuration = read(path)
    if configuration is None:
        raise typer.Exit(2)
    return configuration


@app.command()
def serve(config: ConfigFile = _DEFAULT) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second signal ends it at once."""
    from gateway.cli.serve import serve as run

    raise typer.Exit(run(load(config)))


@app.command()
def check(
    configs: Annotated[list[Path] | None, typer.Argument(help="Configurations to check; default: --config.")] = None,
    config: ConfigFile = _DEFAULT,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the configuration.")] = False,
) -> None:
    """Say what a configuration means, or everything that is wrong with it. Several: also whether their shares add
    up."""
    from gateway.cli.check import check as run
    from gateway.cli.check import print_schema

    if schema:
        print_schema()
        return
    raise typer.Exit(run([load(path) for path in configs or [config]]))


@app.command()
def explain(
    files: Annotated[list[Path], typer.Argument(help="Messages, as they would be sent; - reads standard input.")],
    config: ConfigFile = _DEFAULT,
    path: Annotated[str, typer.Option(help="The request's path, with /bulk/ where it would be tagged.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help='A header field, "Name: value".')] = None,
    address: Annotated[str, typer.Option(help="The client's address.")] = "127.0.0.1",
    listener: Annotated[int, typer.Option(help="Which listener takes it, counted from 0.")] = 0,
    at: Annotated[str, typer.Option(help='When, in Brussels time: "2026-11-24T09:30". Default: now.')] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a message.")] = False,
) -> None:
    """Say how messages would be classified, by which rule, and what would happen to them. Sends nothing."""
    from gateway.cli.explain import Question
    from gateway.cli.explain import explain as run

    question = Question(path=path, headers=tuple(header or ()), address=address, listener=listener, at=at)
    raise typer.Exit(run(load(config), files, question, as_json=as_json))


@app.command()
def simulate(
    address: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8479,
    latency: Annotated[str, typer.Option(help="How long each call takes: 50ms, or 20ms-200ms.")] = "50ms",
    fault: Annotated[
        list[str] | None,
        typer.Option(help='What goes wrong when, e.g. "every=50 service=RetrieveTIGroups reset". May be repeated.'),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes what is left to chance the same every time.")] = 1,
) -> None:
    """Run the stand-in for the BCSS's web services: for tests, rehearsals and the demo."""
    from gateway.cli.simulate import simulate as run

    raise typer.Exit(run(address, port, latency, tuple(fault or ()), seed))


@app.command()
def demo(config: ConfigFile = Path("config.example.yaml")) -> None:
    """Show the gateway at work: starts it with the stand-in behind it, on free ports, and sends calls through it."""
    from gateway.cli.demo import demo as run

    raise typer.Exit(run(load(config)))


app.add_typer(runs.app)
app.add_typer(controls.hold)
app.add_typer(controls.store)
app.command()(controls.audit)
app.command()(controls.token)


@app.command()
def version() -> None:
    """Print the version."""
    from gateway import __version__

    print(__version__)
