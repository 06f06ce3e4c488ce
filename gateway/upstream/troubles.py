"""What can go wrong with an upstream, by what the caller may conclude from it.

`bytes_written` says whether a byte of the request went out: if none did, the source cannot be working on it.
`detail` is for the log and never holds anything of a message.
"""

import ssl

from policies.model import Reason


class UpstreamError(Exception):
    """The gateway could not get an answer, or not a whole one. Raised as one of its kinds."""

    reason: Reason

    def __init__(self, detail: str, *, bytes_written: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.bytes_written = bytes_written


class UnreachableError(UpstreamError):
    """No connection could be had. Nothing was sent."""

    reason = Reason.UPSTREAM_UNREACHABLE

    def __init__(self, detail: str) -> None:
        super().__init__(detail, bytes_written=False)


class TlsError(UpstreamError):
    """The TLS handshake failed, or the upstream refused our certificate."""

    reason = Reason.UPSTREAM_TLS


class UpstreamTimeoutError(UpstreamError):
    """The answer did not come in time."""

    reason = Reason.UPSTREAM_TIMEOUT


class BrokenAnswerError(UpstreamError):
    """The answer is not HTTP, contradicts itself, or broke off."""

    reason = Reason.UPSTREAM_BROKEN


class GuardClosedError(Exception):
    """The slot's guard said no before the first byte. Nothing was sent; the call goes back to admission."""


def tls_trouble(error: ssl.SSLError, *, bytes_written: bool) -> TlsError:
    """Say what a failed handshake means and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        remedy = "look at `ca` and `server_name`"
        if error.verify_code in (18, 19, 20, 21):  # self-signed, or an issuer that is not known
            remedy = "name the CA that issued it in `ca`"
        elif error.verify_code == 10:
            remedy = "the upstream must renew it"
        elif error.verify_code in (62, 64):
            remedy = "set `server_name` to the name in the certificate"
        return TlsError(f"the upstream's certificate is not accepted: {why}; {remedy}", bytes_written=bytes_written)
    alert = (error.reason or type(error).__name__).replace("_", " ").lower()
    if "alert" in alert and ("certificate" in alert or "unknown ca" in alert or "handshake failure" in alert):
        return TlsError(
            f"the upstream refused our certificate: {alert}; look at `certificate`, and whether it is registered",
            bytes_written=bytes_written,
        )
    return TlsError(f"TLS failed: {alert}", bytes_written=bytes_written)
