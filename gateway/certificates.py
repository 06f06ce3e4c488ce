"""TLS material of the configuration: the listeners' contexts, and when certificates expire.

Rules that always hold: TLS 1.2 at least; a client certificate, where one is asked for, is verified against
`client_ca` before anything looks at its subject. Upstreams' contexts are made by `gateway.upstream`.

Never logs a key, and never goes on without a certificate that the configuration names.
"""

import hashlib
import ssl
from collections.abc import Iterable
from pathlib import Path

from gateway.config import ListenerTls, Settings


def server_context(tls: ListenerTls) -> ssl.SSLContext:
    """Make a listener's context. Raises OSError or ssl.SSLError when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.certificate, tls.key, password=tls.password)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        required = tls.client_certificate == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


class ListenerContext:
    """A listener's TLS, whose certificate and CAs can be exchanged while it listens: connections stay as they are."""

    def __init__(self, tls: ListenerTls) -> None:
        self.context = self._current = server_context(tls)
        self.context.sni_callback = self._choose  # called for each handshake, with or without a name

    def adopt(self, context: ssl.SSLContext) -> None:
        """Use another context, made by `server_context`, from the next handshake on."""
        self._current = context

    def _choose(self, session: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        session.context = self._current


def fingerprint(paths: Iterable[Path | None]) -> tuple[bytes, ...]:
    """Return what changes when one of these files does. Raises OSError when one cannot be read."""
    return tuple(hashlib.sha256(path.read_bytes()).digest() if path is not None else b"" for path in paths)


def expiries(settings: Settings) -> dict[str, float]:
    """Return when each certificate that the configuration names expires, in Unix seconds, by the place that names
    it."""
    named: dict[str, Path] = {}
    for number, listener in enumerate(settings.listeners):
        if listener.tls is not None:
            named[f"listeners.{number}"] = listener.tls.certificate
    for name, upstream in settings.upstreams.items():
        if upstream.certificate is not None:
            named[f"upstreams.{name}"] = upstream.certificate
    return {place: _expiry(path) for place, path in named.items()}


def _expiry(path: Path) -> float:
    from cryptography import x509  # late: 30 ms that a gateway without TLS does not need

    return min(c.not_valid_after_utc for c in x509.load_pem_x509_certificates(path.read_bytes())).timestamp()
