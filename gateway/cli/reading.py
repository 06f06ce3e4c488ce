"""Reads the configuration for a command, or says all that is wrong with it on standard error."""

import os
import sys
from pathlib import Path

from gateway.config import ConfigError, Configuration
from gateway.config import load as load_configuration


def load(path: Path) -> Configuration | None:
    """Return the configuration; None: it has faults, which were said."""
    try:
        return load_configuration(path, os.environ)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        number = len(error.faults)
        print(f"{path}: {number} {'fault' if number == 1 else 'faults'}; nothing was started.", file=sys.stderr)
        return None
