"""One exchange with a source: a lean HTTP/1.1 connection pool of our own.

Of our own, because here the guard stands before the write, a slot outlives a vanished client, nothing is invented in a
header, and aiohttp's ClientSession is 58 % of a proxy's CPU (measured). `exchange` is the door; `connection`,
`answer`, `tls` and `troubles` are behind it.
"""

from gateway.upstream.answer import SMALL, Answer
from gateway.upstream.connection import Connection
from gateway.upstream.exchange import Exchange, Outbound
from gateway.upstream.pool import ConnectionStatistics, Upstream, UpstreamTarget, target_of
from gateway.upstream.tls import client_context
from gateway.upstream.troubles import (
    BrokenAnswerError,
    GuardClosedError,
    TlsError,
    UnreachableError,
    UpstreamError,
    UpstreamTimeoutError,
)

__all__ = [
    "SMALL",
    "Answer",
    "BrokenAnswerError",
    "Connection",
    "ConnectionStatistics",
    "Exchange",
    "GuardClosedError",
    "Outbound",
    "TlsError",
    "UnreachableError",
    "Upstream",
    "UpstreamError",
    "UpstreamTarget",
    "UpstreamTimeoutError",
    "client_context",
    "target_of",
]
