"""Whether certificates, keys and CA files can be used, found out before anything is started.

They are loaded as the gateway will load them, into a context that is then thrown away, so that a key that does not fit
or a wrong password is a fault of the configuration and not of the first call.

Rules that always hold: files that are missing or unreadable were told before, by their own key, and are not tried; no
message holds anything of a file's content or of a password; `ssl` is imported only where TLS is configured, since it
costs every start some 15 ms.

Never looks at dates (a certificate that expires is watched while the gateway runs), and never connects.
"""

from collections.abc import Iterator
from pathlib import Path

from gateway.config.endpoints import ListenerTls, UpstreamSettings
from gateway.config.faults import Fault, KeyPath
from gateway.config.validation import Found


def loadable(found: Found) -> Iterator[Fault]:
    """Yield a fault for each certificate, key or CA file that cannot be used."""
    for index, listener in enumerate(found.settings.listeners):
        if listener.tls is not None:
            path: KeyPath = ("listeners", index, "tls")
            yield from _pair(found, path, listener.tls)
            yield from _authorities(found, (*path, "client_ca"), listener.tls.client_ca)
    for name, upstream in found.settings.upstreams.items():
        if upstream.uses_tls:
            yield from _pair(found, ("upstreams", name), upstream)
            yield from _authorities(found, ("upstreams", name, "ca"), upstream.ca)


def _pair(found: Found, path: KeyPath, holder: ListenerTls | UpstreamSettings) -> Iterator[Fault]:
    # A key or password that was written and is not here was faulty: what is wrong with it was told.
    lost = any(found.has(*path, key) and getattr(holder, key) is None for key in ("key", "key_password"))
    if holder.certificate is None or lost:
        return
    import ssl

    secret = holder.key_password.get_secret_value() if holder.key_password is not None else ""
    asked = False

    def password() -> str:
        # Without a callback OpenSSL would ask at the terminal; an empty password fails instead.
        nonlocal asked
        asked = True
        return secret

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(holder.certificate, holder.key, password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        key = "key" if holder.key is not None else "certificate"
        if not _holds(holder.certificate, b"-----BEGIN CERTIFICATE-----"):
            yield found.fault(
                (*path, "certificate"), "holds no certificate in PEM form", "PEM is text; name that file."
            )
        elif not _holds(holder.key or holder.certificate, b"PRIVATE KEY-----"):
            yield found.fault((*path, key), "holds no private key in PEM form", "Name the key's file in `key`.")
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            remedy = "Name the key that the certificate was requested with."
            yield found.fault((*path, key), "does not belong to the certificate", remedy)
        elif asked and not secret:
            remedy = "Add `key_password: {file: ...}` or `{env: ...}`."
            yield found.fault((*path, key), "needs a password", remedy)
        elif asked:
            remedy = "Check the file or variable that `key_password` names."
            yield found.fault((*path, key), "does not open with `key_password`", remedy)
        else:
            remedy = "`openssl x509 -noout -in` and `openssl pkey -noout -in` say what is wrong with each."
            yield found.fault((*path, key), "is damaged, or the certificate is", remedy)


def _holds(file: Path, mark: bytes) -> bool:
    """Say whether a PEM file has a block of a kind; OpenSSL's error does not tell which file it could not read."""
    return mark in file.read_bytes()


def _authorities(found: Found, path: KeyPath, authorities: Path | None) -> Iterator[Fault]:
    if authorities is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(authorities)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        yield found.fault(path, "holds no certificates of CAs", "Name a PEM file with at least one.")
