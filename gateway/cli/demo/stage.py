"""Where the demo is seen: what it says, and what it found not to be as it should.

Rules that always hold: nothing is taken for markup; what went wrong is said at the end, and makes the status 1.
"""

from collections.abc import Sequence

from rich.console import Console, RenderableType


class Stage:
    """Prints, and remembers what went wrong."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, width=110)
        self._wrong: list[str] = []

    def open(self, gateway: str, text: str) -> None:
        """Say what is to be seen."""
        self._console.print(f"[bold]The gateway[/] listens on {gateway}; {text}")

    def title(self, text: str) -> None:
        """Begin a part."""
        self._console.print(f"\n[bold cyan]{text}[/]")

    def line(self, who: str, text: str) -> None:
        """Say what somebody saw."""
        lines: Sequence[str] = text.splitlines() or [""]
        for number, line in enumerate(lines):
            self._console.print(f"   {who if number == 0 else '':<10} {line}", markup=False, soft_wrap=True)

    def plain(self, text: str) -> None:
        """Print a line as it is."""
        self._console.print(f"   {text}", markup=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Print a table."""
        self._console.print(what)

    def check(self, held: bool, wrong: str) -> bool:
        """Note what is wrong, unless it held; return whether it held."""
        if not held:
            self._wrong.append(wrong)
        return held

    def ended(self) -> int:
        """Say how it went; return the exit status."""
        for wrong in self._wrong:
            self._console.print(f"[bold red]Not as it should be:[/] {wrong}")
        if not self._wrong:
            self._console.print("\n[bold green]All as it should be.[/] README.md says how to go on.")
        return 1 if self._wrong else 0
