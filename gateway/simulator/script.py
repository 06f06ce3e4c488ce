"""What goes wrong at the stand-in, and when: rules in the order in which they are tried; the first that matches a
call decides.

A rule in text form (`bcss-gateway simulate --fault`):

    [every=N] [service=NAME] [source=NAME] [class=bulk|realtime] [latency=TIME] [KIND]

`every=50` matches each 50th call that the other conditions match; NAME matches a beginning. KIND is one of
`fault` (a SOAP fault, HTTP 500), `business=CODE` (a status inside an HTTP 200; `business=VALUE/CODE` says both parts
of it, either of which may be empty), `status=502` (any HTTP status, answered before the body is read), `reset` (RST
instead of an answer), `truncated` (half an answer, then the end), `slow` (the answer drips, a tenth of it every
latency), `garbage` (not HTTP). Without KIND the rule only says how long such calls take.

Rules that always hold: chance comes from a generator that is passed in; the same seed and calls give the same script.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = ("fault", "business", "status", "reset", "truncated", "slow", "garbage")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")


class ScriptError(ValueError):
    """A rule or a time that cannot be read; the text says how to write it."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long calls take, seconds: evenly spread between two bounds."""

    least: float
    most: float

    def drawn(self, dice: Random) -> float:
        """Return one latency."""
        return self.least if self.least == self.most else dice.uniform(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. An empty condition matches everything."""

    kind: str = ""
    value: str = ""  #: of `business` and `status`
    every: int = 1
    service: str = ""
    source: str = ""
    traffic: str = ""
    latency: Latency | None = None

    def matches(self, services: Sequence[str], sources: Sequence[str], traffic: str) -> bool:
        """Say whether the conditions, `every` aside, fit a call."""
        return (
            (not self.traffic or self.traffic == traffic)
            and (not self.service or any(one.startswith(self.service) for one in services))
            and (not self.source or self.source in sources)
        )


class Script:
    """Rules, and how often each has matched."""

    def __init__(self, rules: Sequence[Rule] = (), latency: Latency = Latency(0.0, 0.0), seed: int = 1) -> None:
        self.rules = tuple(rules)
        self.latency = latency
        self._dice = Random(seed)  # noqa: S311  # a rehearsal, no secret
        self._matched = [0] * len(self.rules)

    def decide(self, services: Sequence[str], sources: Sequence[str], traffic: str) -> tuple[Rule, float]:
        """Return the rule for a call, and how long it takes, seconds."""
        for number, rule in enumerate(self.rules):
            if rule.matches(services, sources, traffic):
                self._matched[number] += 1
                if self._matched[number] % rule.every == 0:
                    return rule, (rule.latency or self.latency).drawn(self._dice)
        return Rule(), self.latency.drawn(self._dice)


def parse_latency(text: str) -> Latency:
    """Read `50ms`, `2s` or `20ms-200ms`.

    Raises:
        ScriptError: it is none of these.
    """
    bounds = [_TIME.fullmatch(part.strip()) for part in text.split("-")]
    seconds = [float(bound[1]) / (1000 if bound[2] == "ms" else 1) for bound in bounds if bound is not None]
    if len(seconds) != len(bounds) or len(seconds) not in (1, 2) or seconds[0] > seconds[-1]:
        raise ScriptError(f'"{text}" is no latency; write 50ms, 2s or 20ms-200ms')
    return Latency(seconds[0], seconds[-1])


def parse_rule(text: str) -> Rule:
    """Read a rule in text form (see the head of this file).

    Raises:
        ScriptError: a word is not understood.
    """
    kind = value = ""
    conditions = {"every": "1", "service": "", "source": "", "class": "", "latency": ""}
    for word in text.split():
        name, _, given = word.partition("=")
        if name in conditions and given:
            conditions[name] = given
        elif name in KINDS and bool(given) == (name in ("business", "status")):
            kind, value = name, given
        else:
            raise ScriptError(
                f'"{word}" is not understood; conditions: every=, service=, source=, class=, latency=; '
                "kinds: fault, business=CODE, status=NUMBER, reset, truncated, slow, garbage"
            )
    if not conditions["every"].isdecimal() or int(conditions["every"]) < 1:
        raise ScriptError(f"every={conditions['every']}: write a whole number from 1 on")
    if kind == "status" and not re.fullmatch(r"[2-5]\d\d", value):
        raise ScriptError(f"status={value}: write an HTTP status")
    latency = parse_latency(conditions["latency"]) if conditions["latency"] else None
    return Rule(
        kind, value, int(conditions["every"]), conditions["service"], conditions["source"], conditions["class"], latency
    )
