"""A site: a directory with a configuration, as an operator has one."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.config import ConfigError, Configuration, load

NOW = datetime(2026, 11, 24, 5, 0, tzinfo=UTC)  #: a Tuesday, 06:00 in Brussels: open until 08:00
LEAST = "upstreams: {bcss: {url: 'http://127.0.0.1:1'}}\nroutes: [{prefix: /, upstream: bcss}]\n"


@dataclass
class Site:
    """Writes configurations and reads them, at a fixed instant."""

    directory: Path
    environ: dict[str, str] = field(default_factory=dict)
    now: datetime = NOW

    def write(self, text: str, name: str = "config.yaml") -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, text: str) -> Configuration:
        return load(self.write(text), self.environ, now=self.now)

    def more(self, text: str) -> Configuration:
        """Load the least configuration with something more."""
        return self.load(LEAST + text)

    def faults(self, text: str) -> list[str]:
        """Return what is wrong, each without the directory in front."""
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        return [str(fault).removeprefix(f"{self.directory}/") for fault in caught.value.faults]

    def fault(self, text: str) -> str:
        """Return the only thing that is wrong."""
        [fault] = self.faults(text)
        return fault

    def fault_of_more(self, text: str) -> str:
        """Return the only thing that is wrong with the least configuration and something more."""
        return self.fault(LEAST + text)
