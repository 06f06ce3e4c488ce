"""A stand-in for the BCSS's web services: for tests, rehearsals and the demo. `standin` is the door."""

from gateway.simulator.script import Latency, Rule, Script, ScriptError, parse_latency, parse_rule
from gateway.simulator.standin import Counts, Received, StandIn, simulate, standing_in

__all__ = [
    "Counts",
    "Latency",
    "Received",
    "Rule",
    "Script",
    "ScriptError",
    "StandIn",
    "parse_latency",
    "parse_rule",
    "simulate",
    "standing_in",
]
