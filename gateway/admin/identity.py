"""Who asks: the user at the other end of the socket, or the name of a bearer token; and what they may do.

Rules that always hold:
- On the socket (mode 0600) the kernel says who it is (SO_PEERCRED); no token is looked at, and the peer may do all.
- Nobody has the name under which the gateway itself writes in the books.
- Over TCP, without a token in the configuration, nobody may do anything.
- Tokens are compared by their SHA-256, all of them, in constant time; what was sent is never kept or told.
- A request whose Host is not ours is not answered: a page in somebody's browser, whose name was made to lead here
  (DNS rebinding), sends its own.
"""

import hashlib
import hmac
import os
import pwd
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from gateway.admin.problems import ProblemError
from gateway.config import Administration, Token
from gateway.records import GATEWAY

Role = Literal["viewer", "operator"]
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks."""

    name: str  #: the author of what is done
    role: Role

    def must_be(self, role: Role) -> None:
        """Raise unless this role's work may be done."""
        if role == "operator" and self.role != "operator":
            raise ProblemError(
                403,
                f'"{self.name}" is a viewer, and this needs an operator.',
                "Use a token whose `role` is operator (administration.tokens), or the CLI on the gateway's host.",
            )


def asker_of(request: web.Request, administration: Administration) -> Asker:
    """Return who asks. Raises ProblemError for whoever may not."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the caller is gone")
    connection = transport.get_extra_info("socket")
    if connection.family == socket.AF_UNIX:
        return Asker(_of_person(peer_user(connection.fileno())), "operator")
    check_host(request.headers.get("Host", ""), connection.getsockname()[:2], administration.hosts)
    return _of_token(request, administration.tokens)


def peer_user(descriptor: int) -> str:
    """Return the name of the user at the other end of a Unix socket."""
    with socket.socket(fileno=os.dup(descriptor)) as own:
        sent = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(sent)[1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container often has no name for its user
        return f"uid {uid}"


def check_host(host: str, listening: Sequence[object], allowed: Sequence[str]) -> None:
    """Raise unless a request's Host is the address that it came to, localhost, or configured."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    name = name.strip("[]").lower().rstrip(".")
    known = {str(listening[0]).lower(), "localhost", "127.0.0.1", "::1", *(one.lower().rstrip(".") for one in allowed)}
    if name not in known:
        raise ProblemError(
            421,
            "The request's Host is not a name of this gateway.",
            "Ask by its address, or add the name to `administration.hosts`.",
        )


def _of_token(request: web.Request, tokens: Sequence[Token]) -> Asker:
    if not tokens:
        raise ProblemError(
            403,
            "The API is closed over TCP: no token is configured.",
            "Make one with `bcss-gateway token`, and write the lines that it prints under `administration.tokens`. On "
            "the gateway's host, the CLI needs none.",
        )
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    # All are compared, whichever fits: how long it takes says nothing.
    fitting = [one for one in tokens if hmac.compare_digest(one.sha256, digest)]
    if scheme.lower() != "bearer" or not fitting:
        raise ProblemError(
            401,
            "A bearer token is needed, and none that is known was sent.",
            "Send `Authorization: Bearer TOKEN`; `bcss-gateway token` makes one.",
            headers={"WWW-Authenticate": 'Bearer realm="bcss-gateway"'},
        )
    return Asker(_of_person(fitting[0].name), fitting[0].role)


def _of_person(name: str) -> str:
    return name if name != GATEWAY else f"{name} (a person)"
