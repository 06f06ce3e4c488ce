"""What a reload has to know: whether files have changed, whether a change needs a restart, which upstreams stay.

Files are looked at by their marks (inode, size, time of change), through symbolic links, so that the exchange of a
link (a Kubernetes ConfigMap or Secret) is noticed like an edit; upstreams and their TLS files by their contents, so
that a file that was written anew with the same contents closes no connection.

Decides and reads; changes nothing. `gateway.app` reloads.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.certificates import fingerprint
from gateway.config import Listener, Settings

Marks = Mapping[Path, tuple[int, int, int] | None]


def marks_of(files: Iterable[Path]) -> Marks:
    """Return the marks of files; None for one that is not there."""
    marks: dict[Path, tuple[int, int, int] | None] = {}
    for file in files:
        try:
            found = file.stat()
        except OSError:
            marks[file] = None
        else:
            marks[file] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return marks


def needs_restart(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return, in sentences, what cannot be changed while the gateway runs."""
    changed = [key for key in ("data_dir", "telemetry", "store") if getattr(before, key) != getattr(after, key)]
    if [_place(one) for one in before.listeners] != [_place(one) for one in after.listeners]:
        changed.append("listeners (address, port, whether TLS, whether clients show a certificate)")
    return tuple(f"{key}: has changed, and that needs a restart." for key in changed)


def _place(listener: Listener) -> tuple[object, ...]:
    tls = listener.tls
    return listener.address, listener.port, tls is not None, tls.client_certificate if tls is not None else ""


def upstream_identities(settings: Settings) -> Mapping[str, object]:
    """Return what makes each upstream what it is: an equal one keeps its connections. Raises OSError."""
    return {
        name: (upstream, fingerprint((upstream.ca, upstream.certificate, upstream.key)))
        for name, upstream in settings.upstreams.items()
    }
