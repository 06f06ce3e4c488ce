"""TLS to an upstream as a function of bytes: what came in, what goes out.

Both event loops have TLS transports, but they keep ciphertext in buffers that nobody can see, and uvloop sends them
at the end of its turn: the guard could not stand immediately before the kernel's send. So TLS runs here in memory
(`ssl.MemoryBIO`), and `gateway.upstream.connection` moves its bytes.

Rules that always hold: TLS 1.2 at least; the server's certificate and name are verified; an end without close_notify is
told apart from an orderly one, since a body that ends with the connection may then be cut.
"""

import ssl
from pathlib import Path

_PIECE = 65_536


class Tls:
    """One TLS session, client side. Not usable after an `ssl.SSLError` from any of its methods."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.established = False
        self.closed_in_order = False  #: the peer's close_notify has come

    def handshake(self, received: bytes | memoryview = b"") -> bytes:
        """Take the handshake a step further; return what is to be sent. Raises ssl.SSLError."""
        self._incoming.write(received)
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            self.established = True
        return self._outgoing.read()

    def pending(self) -> bytes:
        """Return what TLS itself wants to send: alerts, key updates."""
        return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return the records that carry `data`."""
        self._session.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes | memoryview) -> bytes:
        """Return what has arrived in the clear. Raises ssl.SSLError."""
        self._incoming.write(received)
        parts: list[bytes] = []
        try:
            while part := self._session.read(_PIECE):
                parts.append(part)
            self.closed_in_order = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed_in_order = True
        return b"".join(parts)


def client_context(
    *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None, password: str | None = None
) -> ssl.SSLContext:
    """Make the context for an upstream. Raises OSError or ssl.SSLError when a file cannot be used."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate, key, password=password)
    return context
