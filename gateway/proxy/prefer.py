"""`Prefer: respond-async` (RFC 7240): whether a caller would rather fetch its answer later, and what is passed on.

Rules that always hold:
- Names of preferences are compared without regard to case; several may share a field, or come in several fields.
- A call that is stored has had its preference: `respond-async`, and the `wait` that goes with it, are not passed on, or
  the upstream would answer a stored call with a promise of its own. What else is preferred passes as it was written.

Never waits for `wait`: it says for how long a caller would wait for more than a promise, and the promise is at hand.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.packing import Fields

APPLIED = b"Preference-Applied: respond-async"
_PREFERENCE = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^,"])+')
_OURS = frozenset({b"respond-async", b"wait"})


def prefers_async(values: Iterable[bytes]) -> bool:
    """Say whether the values of Prefer ask for an answer later."""
    return any(_name(one) == b"respond-async" for value in values for one in _PREFERENCE.findall(value))


def without_async(headers: Iterable[tuple[bytes, bytes]]) -> "Fields":
    """Return a header without the preference that was applied."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.lower() != b"prefer":
            kept.append((name, value))
            continue
        preferences = _PREFERENCE.findall(value)
        others = [one for one in preferences if _name(one) not in _OURS]
        if len(others) == len(preferences):
            kept.append((name, value))
        elif others:
            kept.append((name, b",".join(others).strip()))
    return tuple(kept)


def _name(preference: bytes) -> bytes:
    """Return a preference's name, without its value and parameters."""
    return preference.partition(b";")[0].partition(b"=")[0].strip().lower()
