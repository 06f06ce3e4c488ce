"""The configuration: YAML in, frozen settings and everything that follows from them out.

`load` reads the file that an operator wrote, the shipped policies (`policies/*.yaml`) and a site's own catalogue, and
returns one `Configuration`. `describe` says what it means to the operator; `schema` tells editors what may be written.

Rules that always hold:
- A configuration is taken whole or not at all, and every fault is told at once, with file, line, column and remedy.
- What was read is never changed afterwards; what has a clock's sense in it (is bulk open?) is asked of `calendar`.
- A secret stands in a file or in the environment, and in no message, representation or description.

Nothing here listens, connects, writes a file or logs.

The rooms: `values` (durations, sizes, paths, secrets), `endpoints` and `settings` (every key, with meaning and
default), `document` (YAML with positions), `faults` (the words), `validation` (values, one by one), `checks` and
`tlsfiles` (what must agree between keys), `notices` (what is allowed and yet worth a warning), `policy` (the shipped
policies and the site's), `load` (all together), `explain` (`describe`, `schema`).
"""

from gateway.config.endpoints import Client, Credentials, Endpoint, Listener, ListenerTls, Route, UpstreamSettings
from gateway.config.explain import describe, schema
from gateway.config.faults import ConfigError, Fault
from gateway.config.load import Configuration, load
from gateway.config.settings import (
    Administration,
    Answers,
    Bulk,
    Limits,
    Observe,
    OpenSpan,
    PoolSettings,
    Settings,
    SuspicionSettings,
    Token,
    Windows,
)

__all__ = [
    "Administration",
    "Answers",
    "Bulk",
    "Client",
    "ConfigError",
    "Configuration",
    "Credentials",
    "Endpoint",
    "Fault",
    "Limits",
    "Listener",
    "ListenerTls",
    "Observe",
    "OpenSpan",
    "PoolSettings",
    "Route",
    "Settings",
    "SuspicionSettings",
    "Token",
    "UpstreamSettings",
    "Windows",
    "describe",
    "load",
    "schema",
]
