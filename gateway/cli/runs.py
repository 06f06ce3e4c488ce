"""`bcss-gateway runs`: mass runs on the gateway of this host.

Every command asks the running gateway over its socket; the user who runs it is the author of what it does.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli import showing
from gateway.cli.asking import BrokenOffError, Gateway
from gateway.cli.keeping import NotWholeError, keep

app = typer.Typer(name="runs", help="Mass runs: submit, follow, steer, fetch what came of them.", no_args_is_help=True)
DEFAULT_CONFIG = Path("config.yaml")

Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="BCSS_GATEWAY_CONFIG", help="The gateway's configuration.")
]
Socket = Annotated[
    Path | None,
    typer.Option(
        envvar="BCSS_GATEWAY_SOCKET", help="The gateway's socket. Default: admin.sock in the configuration's data_dir."
    ),
]
RunId = Annotated[
    str, typer.Argument(metavar="ID", help="The run's id; its first characters do, where no other run's are the same.")
]
Reason = Annotated[str, typer.Option(help="Why: goes into the books, so no personal data.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_PAGE = 1000


def reach(config: Path, socket: Path | None) -> Gateway:
    """Return the gateway of a configuration, or of a socket."""
    if socket is None:
        from gateway.cli.commands import load

        socket = load(config).settings.data_dir / "admin.sock"
    return Gateway(socket)


def pages(gateway: Gateway, name: str, *parts: str, **query: object) -> list[dict[str, Any]]:
    """Return all rows of a list."""
    found: list[dict[str, Any]] = []
    after: object = None
    while True:
        page = gateway.get(*parts, after=after, limit=_PAGE, **query)
        found += page[name]
        after = page["next"]
        if after is None:
            return found


def whole_id(gateway: Gateway, run: str) -> str:
    """Return a run's id from its first characters, or say why not and leave with status 2."""
    if len(run) == 32:
        return run
    fitting = [one["id"] for one in pages(gateway, "runs", "runs") if one["id"].startswith(run)]
    if len(fitting) == 1:
        return str(fitting[0])
    what = "No run's id begins so" if not fitting else f"{len(fitting)} runs' ids begin so"
    print(f"{what}. `bcss-gateway runs list` shows them.", file=sys.stderr)
    raise typer.Exit(2)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="NDJSON, TAR, ZIP or CSV; .gz too.")],
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    path: Annotated[
        str, typer.Option("--path", "--route", help="Where items go that do not say so: a path, as a client asks it.")
    ] = "",
    form: Annotated[str, typer.Option("--format", help="ndjson, tar, zip or csv. Default: by the file's name.")] = "",
    template: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV: the envelope, with {{column}} in it.")
    ] = None,
    key_column: Annotated[str, typer.Option(help="CSV: the column of the client key.")] = "",
    ssin_column: Annotated[
        list[str] | None, typer.Option(help="CSV: a column of national numbers, to be checked. May be repeated.")
    ] = None,
    soap_action: Annotated[str, typer.Option(help="SOAPAction of items that do not say so.")] = "",
    content_type: Annotated[str, typer.Option(help="Content-Type of items that do not say so.")] = "",
    name: Annotated[str, typer.Option(help="For people; no personal data.")] = "",
    priority: Annotated[int, typer.Option(min=0, max=9, help="Lower goes first.")] = 5,
    not_before: Annotated[str, typer.Option(help='Nothing is sent before: "2026-11-24T20:00", Brussels time.')] = "",
    max_attempts: Annotated[int | None, typer.Option(min=1, max=100, help="Calls for one item at the most.")] = None,
    go_on: Annotated[bool, typer.Option("--go-on", help="Leave faulty entries out.")] = False,
    start: Annotated[bool, typer.Option(help="Have it begin.")] = True,
    check: Annotated[bool, typer.Option(help="Check the whole file before anything is stored.")] = True,
    resume: Annotated[str, typer.Option(metavar="ID", help="Go on with an upload that broke off.")] = "",
    idempotency_key: Annotated[str, typer.Option(help="The same key again finds the same run.")] = "",
) -> None:
    """Make a run of a file. Prints the run's id."""
    from gateway.cli.commands import load
    from gateway.cli.submitting import Wanted, WrongUseError, form_of, instant
    from gateway.cli.submitting import submit as run

    try:
        kind = form_of(file, form)
        given = {
            "format": "tar" if kind == "zip" else kind,
            "path": path,
            "template": template.read_text("utf-8") if template else "",
            "keyColumn": key_column,
            "ssinColumns": ssin_column or [],
            "soapAction": soap_action,
            "contentType": content_type,
            "name": name or file.name,
            "priority": priority,
            "notBefore": instant(not_before) if not_before else "",
            "maxAttempts": max_attempts,
            "goOn": go_on,
        }
        parameters = {key: value for key, value in given.items() if value not in ("", None, [])}
        gateway = reach(config, socket)
        configuration = None if socket else load(config)
        resume = whole_id(gateway, resume) if resume else ""
        wanted = Wanted(file, kind, parameters, configuration, start, check, go_on, resume, idempotency_key)
        status = run(gateway, wanted)
    except UnicodeDecodeError:
        print(f"{template}: the template is not UTF-8. Write it in UTF-8.", file=sys.stderr)
        raise typer.Exit(2) from None
    except WrongUseError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(status)


@app.command("list")
def list_(
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    state: Annotated[list[str] | None, typer.Option(help="Only runs in this state. May be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs."""
    found = pages(reach(config, socket), "runs", "runs", state=state or ())
    if as_json:
        showing.print_json(found)
    else:
        showing.runs(found)


@app.command()
def show(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, as_json: AsJson = False) -> None:
    """Show a run: state, counts, pace, expected end, what its items need."""
    gateway = reach(config, socket)
    found = gateway.get("runs", whole_id(gateway, run))
    if as_json:
        showing.print_json(found)
    else:
        showing.run(found)


@app.command()
def watch(
    run: RunId,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Follow a run until it ends: live on a terminal, a line for each change when piped. Status 1 if it did not
    complete."""
    from gateway.cli.watching import watch as follow

    gateway = reach(config, socket)
    run = whole_id(gateway, run)
    raise typer.Exit(follow(lambda: gateway.get("runs", run), every))


def _step(run: str, step: str, reason: str, config: Path, socket: Path | None) -> None:
    gateway = reach(config, socket)
    body = {"reason": reason} if reason else {}
    print(showing.line(gateway.send("POST", "runs", whole_id(gateway, run), step, body=body)))


@app.command()
def ready(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, reason: Reason = "") -> None:
    """Let a run that is loading begin."""
    _step(run, "ready", reason, config, socket)


@app.command()
def pause(run: RunId, reason: Reason, config: Config = DEFAULT_CONFIG, socket: Socket = None) -> None:
    """Stop a run until somebody resumes it."""
    _step(run, "pause", reason, config, socket)


@app.command()
def resume(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, reason: Reason = "") -> None:
    """Let a paused run go on."""
    _step(run, "resume", reason, config, socket)


@app.command()
def cancel(run: RunId, reason: Reason, config: Config = DEFAULT_CONFIG, socket: Socket = None) -> None:
    """End a run; what was settled stays."""
    _step(run, "cancel", reason, config, socket)


@app.command()
def complete(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, reason: Reason = "") -> None:
    """Say that a client-driven run is done."""
    _step(run, "complete", reason, config, socket)


@app.command()
def priority(
    run: RunId,
    value: Annotated[int, typer.Argument(min=0, max=9, help="0 to 9; lower goes first.")],
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
) -> None:
    """Change whose turn it is first."""
    gateway = reach(config, socket)
    changed = gateway.send("PATCH", "runs", whole_id(gateway, run), body={"priority": value})
    print(f"priority {changed['priority']}")


@app.command()
def purge(
    run: RunId,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop an ended run's key, items and answers for ever. Counts and audit rows stay."""
    if not yes:
        if not sys.stdin.isatty():
            print("This cannot be undone. Say --yes.", file=sys.stderr)
            raise typer.Exit(2)
        typer.confirm("Its items and answers will be gone for ever. Purge?", abort=True)
    _step(run, "purge", "", config, socket)


@app.command()
def results(
    run: RunId,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; default: standard output.")] = None,
    form: Annotated[str, typer.Option("--format", help="ndjson or zip.")] = "ndjson",
    state: Annotated[
        list[str] | None, typer.Option(help="done, rejected, failed or in_doubt. May be repeated.")
    ] = None,
    after: Annotated[
        int, typer.Option(help="Only items with a larger sequence number; with --output, added to the file.")
    ] = -1,
) -> None:
    """Fetch what was settled so far, with the answers byte for byte. They are personal data: mind where they go."""
    if form == "zip" and output is not None and after >= 0 and output.exists():
        print(f"{output}: nothing can be added to a ZIP. Name another file.", file=sys.stderr)
        raise typer.Exit(2)
    if form == "zip" and output is None and sys.stdout.isatty():
        print("A ZIP is nothing for a terminal. Say --output FILE.", file=sys.stderr)
        raise typer.Exit(2)
    gateway = reach(config, socket)
    parts = gateway.download(
        "runs", whole_id(gateway, run), "results", format=form, state=state or (), after=after if after >= 0 else None
    )
    try:
        if output is None:
            for octets in parts:
                sys.stdout.buffer.write(octets)
            sys.stdout.buffer.flush()
        else:
            keep(parts, output, adds=after >= 0, lines=form == "ndjson")
    except NotWholeError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except BrokenOffError:
        print(
            "The answer broke off: its last line may not be whole. Ask again with --after, and the `seq` of the last "
            "whole one.",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None


def _listed(name: str, run: str, config: Path, socket: Path | None, as_json: bool, empty: str) -> None:
    gateway = reach(config, socket)
    found = pages(gateway, name, "runs", whole_id(gateway, run), name)
    if as_json:
        for one in found:
            showing.print_json(one)
    else:
        showing.items(found, empty)


@app.command()
def rejects(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, as_json: AsJson = False) -> None:
    """List items that were rejected or failed: code and meaning. --json: a line for each."""
    _listed("rejects", run, config, socket, as_json, "Nothing was rejected, and nothing failed.")


@app.command()
def doubts(run: RunId, config: Config = DEFAULT_CONFIG, socket: Socket = None, as_json: AsJson = False) -> None:
    """List items of which nobody knows whether they reached the source."""
    _listed("doubts", run, config, socket, as_json, "Nothing is in doubt.")


@app.command()
def decide(
    run: RunId,
    seq: Annotated[int, typer.Argument(min=0, help="The item's number, as `doubts` shows it.")],
    decision: Annotated[str, typer.Argument(help="repeat, accept (it was done) or fail.")],
    reason: Reason,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
) -> None:
    """Settle an item in doubt."""
    gateway = reach(config, socket)
    body = {"decision": decision, "reason": reason}
    print(showing.line(gateway.send("POST", "runs", whole_id(gateway, run), "doubts", str(seq), body=body)))


@app.command()
def retry(
    run: RunId,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    state: Annotated[list[str] | None, typer.Option(help="rejected or failed; default: both.")] = None,
    start: Annotated[bool, typer.Option(help="Have it begin.")] = True,
) -> None:
    """Make a new run of just the items that were rejected or failed."""
    gateway = reach(config, socket)
    body: dict[str, Any] = {"start": start, **({"states": state} if state else {})}
    made = gateway.send("POST", "runs", whole_id(gateway, run), "retry", body=body)
    print(made["id"])
    print(showing.line(made), file=sys.stderr)


@app.command("open")
def open_(
    client: Annotated[str, typer.Option(help="Its name in the configuration, certificate subject or address.")],
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
    name: Annotated[str, typer.Option(help="For people; no personal data.")] = "",
    priority: Annotated[int, typer.Option(min=0, max=9, help="Lower goes first.")] = 5,
) -> None:
    """Open a run for a client that loops by itself: counted, paused and held like others."""
    body = {"client": client, "name": name, "priority": priority}
    made = reach(config, socket).send("POST", "runs", body=body)
    print(made["id"])
    print(
        f"The client sends `X-Bulk-Run: {made['id']}` with each call. When it is done: "
        f"bcss-gateway runs complete {made['id']}",
        file=sys.stderr,
    )
