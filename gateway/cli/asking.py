"""How a command asks the gateway that runs on this host: HTTP over `data_dir/admin.sock`.

The standard library's client, since it streams both ways and costs a command nothing to import. Rules that always hold:
what the gateway says is wrong is printed with its remedy, and ends the command with status 1; where no gateway answers,
the command says how to start one.
"""

import http.client
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import typer

PREFIX = "/api/v1"
TIMEOUT_S = 60.0
_LONGEST_PATH = 100
_PART = 256 * 1024

Json = dict[str, Any]


class BrokenOffError(Exception):
    """The connection ended before the answer was whole."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; by its open folder, where its path is too long for an address."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        if len(os.fsencode(self._path)) <= _LONGEST_PATH:
            self.sock.connect(str(self._path))
            return
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


class Gateway:
    """The gateway at the other end of a socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, *parts: str, **query: object) -> Json:
        """Return what a GET answers."""
        return self._said("GET", parts, query, None)

    def send(
        self,
        method: str,
        *parts: str,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        **query: object,
    ) -> Json:
        """Send JSON, or nothing, and return what is answered."""
        return self._said(method, parts, query, {} if body is None else body, headers)

    def _said(
        self,
        method: str,
        parts: tuple[str, ...],
        query: Mapping[str, object],
        body: Json | None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        sent = None if body is None or method == "DELETE" else json.dumps(body).encode()
        fields = {"Content-Type": "application/json", **(headers or {})} if sent is not None else dict(headers or {})
        with closing(_Connection(self._path)) as connection:
            try:
                connection.request(method, _target(parts, query), sent, fields)
                answer = connection.getresponse()
                octets = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._not_there(error)
        return _checked(answer.status, octets)

    def upload(self, *parts: str, octets: Iterable[bytes], media_type: str, headers: Mapping[str, str]) -> Json:
        """Stream a body, and return what is answered: also a 422, which tells of faulty entries.

        Raises BrokenOffError when the connection ends midway.
        """
        fields = {"Content-Type": media_type, **headers}
        with closing(_Connection(self._path)) as connection:
            try:
                connection.connect()
            except OSError as error:
                self._not_there(error)
            try:
                connection.request("POST", _target(parts, {}), octets, fields, encode_chunked=True)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it answered before it had all: what it said is read below
            except OSError as error:
                raise BrokenOffError(str(error)) from error
            try:
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOffError(str(error)) from error
        if answer.status == 422 and b'"problems"' in said:
            return dict(json.loads(said))
        return _checked(answer.status, said)

    def download(self, *parts: str, **query: object) -> Iterator[bytes]:
        """Yield an answer as it comes. Raises BrokenOffError when it ends before it is whole."""
        with closing(_Connection(self._path)) as connection:
            try:
                connection.request("GET", _target(parts, query))
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._not_there(error)
            if answer.status != 200:
                _checked(answer.status, answer.read())
            try:
                while part := answer.read1(_PART):
                    yield part
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOffError(str(error)) from error

    def _not_there(self, error: Exception) -> NoReturn:
        if isinstance(error, PermissionError):
            print(
                f"{self._path}: this user may not ask. Run the command as the gateway's user, or use the API over TCP "
                "with a token.",
                file=sys.stderr,
            )
        elif isinstance(error, FileNotFoundError | ConnectionRefusedError):
            print(
                f"{self._path}: no gateway answers there. Start one with `bcss-gateway serve` (same --config), or name "
                "its socket with --socket.",
                file=sys.stderr,
            )
        else:
            print(
                f"{self._path}: the gateway did not answer ({type(error).__name__}). See its log; what was asked may "
                "or may not have happened: look before you repeat it.",
                file=sys.stderr,
            )
        raise typer.Exit(1)


def _target(parts: Iterable[str], query: Mapping[str, object]) -> str:
    path = PREFIX + "".join(f"/{quote(part, safe=':')}" for part in parts)
    given = {name: _text(value) for name, value in query.items() if value not in (None, "", ())}
    return f"{path}?{urlencode(given)}" if given else path


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _checked(status: int, octets: bytes) -> Json:
    try:
        said = json.loads(octets) if octets else {}
    except ValueError:
        said = {}
    if status < 300 and isinstance(said, dict):
        return said
    told = said if isinstance(said, dict) else {}
    print(told.get("detail", f"The gateway answered {status}."), file=sys.stderr)
    for fault in told.get("faults", [])[1:]:
        print(fault, file=sys.stderr)
    print(told.get("remedy", "See its log."), file=sys.stderr)
    raise typer.Exit(2 if status in (400, 415) else 1)
