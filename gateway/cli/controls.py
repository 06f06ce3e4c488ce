"""`bcss-gateway hold`, `audit`, `token`, `store`: what stands against bulk, who did what, and what is set up once."""

import asyncio
import hashlib
import secrets
import sys
from typing import Annotated

import typer

from gateway.cli import showing
from gateway.cli.runs import DEFAULT_CONFIG, AsJson, Config, Reason, Socket, pages, reach

hold = typer.Typer(name="hold", help="Stop bulk by hand; above every automatic resumption.", no_args_is_help=True)
store = typer.Typer(name="store", help="Where runs are kept.", no_args_is_help=True)
Scope = Annotated[str, typer.Argument(help="all, or a source's name.")]


def _scope(text: str) -> str:
    return text if text == "all" or ":" in text else f"source:{text}"


@hold.command()
def add(scope: Scope, reason: Reason, config: Config = DEFAULT_CONFIG, socket: Socket = None) -> None:
    """Stop bulk for a source, or for everything. Real-time goes on."""
    reach(config, socket).send("PUT", "holds", _scope(scope), body={"reason": reason})
    print(f"held: {_scope(scope)}")


@hold.command()
def remove(scope: Scope, config: Config = DEFAULT_CONFIG, socket: Socket = None, reason: Reason = "") -> None:
    """End a hold."""
    reach(config, socket).send("DELETE", "holds", _scope(scope), reason=reason)
    print(f"released: {_scope(scope)}")


@hold.command("list")
def list_(config: Config = DEFAULT_CONFIG, socket: Socket = None, as_json: AsJson = False) -> None:
    """List holds, and what has interrupted sources by itself."""
    gateway = reach(config, socket)
    found = {**gateway.get("holds"), **gateway.get("interruptions")}
    if as_json:
        showing.print_json(found)
        return
    held = [(one["scope"], one["author"], showing.moment(one["since"]), one["reason"]) for one in found["holds"]]
    showing.table(("held", "by", "since", "reason"), held, "Nothing is held.")
    rows = [
        (one["source"], one["reason"], f"{one['remaining']:.0f} s", one["skippedBy"]) for one in found["interruptions"]
    ]
    showing.table(("interrupted", "reason", "cools for", "skipped by"), rows, "Nothing is interrupted.")


@hold.command()
def skip(
    source: Annotated[str, typer.Argument(help="The interrupted source, or all.")],
    reason: Reason,
    config: Config = DEFAULT_CONFIG,
    socket: Socket = None,
) -> None:
    """End a cool-down early; the ramp from one slot follows."""
    reach(config, socket).send("POST", "interruptions", source, "resume", body={"reason": reason})
    print(f"cool-down skipped: {source}")


def audit(config: Config = DEFAULT_CONFIG, socket: Socket = None, as_json: AsJson = False) -> None:
    """List who changed what, oldest first."""
    found = pages(reach(config, socket), "audit", "audit")
    if as_json:
        for one in found:
            showing.print_json(one)
        return
    rows = [(showing.moment(one["at"]), one["author"], one["action"], one["subject"], one["detail"]) for one in found]
    showing.table(("at", "author", "action", "subject", "detail"), rows, "Nothing was changed yet.")


def token(
    name: Annotated[str, typer.Argument(help="Shown as the author of what is done with it.")] = "operator",
    role: Annotated[str, typer.Option(help="viewer or operator.")] = "operator",
) -> None:
    """Make a token for the API over TCP: prints it once, and the lines for the configuration."""
    if role not in ("viewer", "operator"):
        print("--role is viewer or operator.", file=sys.stderr)
        raise typer.Exit(2)
    made = secrets.token_urlsafe(32)
    print(made)
    print(
        "This is the token: it is shown once. Lines for the configuration:\n\nadministration:\n  tokens:\n"
        f"    - {{name: {name}, role: {role}, sha256: {hashlib.sha256(made.encode()).hexdigest()}}}",
        file=sys.stderr,
    )


@store.command()
def migrate(config: Config = DEFAULT_CONFIG) -> None:
    """Bring the store's schema to what this program knows; `serve` does it too."""
    from gateway.cli.commands import load
    from gateway.cli.migrating import migrate as run

    raise typer.Exit(asyncio.run(run(load(config))))
