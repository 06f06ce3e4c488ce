"""HTTP/1.1 towards clients: what they send, octet for octet, and the way back. `listener` is the door."""

from gateway.inbound.acceptor import Acceptor, listening_on
from gateway.inbound.listener import Handler, Listener
from gateway.inbound.reading import MOST_REMEMBERED
from gateway.inbound.request import (
    HIGH_WATER,
    BodyTooLargeError,
    BrokenBodyError,
    ClientGoneError,
    Head,
    Inbound,
    SlowBodyError,
)
from gateway.inbound.turns import Turns

__all__ = [
    "HIGH_WATER",
    "MOST_REMEMBERED",
    "Acceptor",
    "BodyTooLargeError",
    "BrokenBodyError",
    "ClientGoneError",
    "Handler",
    "Head",
    "Inbound",
    "Listener",
    "SlowBodyError",
    "Turns",
    "listening_on",
]
