"""What is submitted, read and made items of: NDJSON, TAR, ZIP, CSV with a template. `loader` is the door."""

from gateway.loading.loader import Loader, check
from gateway.loading.submission import FORMS, Fault, Submission, Taken, UnreadableError

__all__ = ["FORMS", "Fault", "Loader", "Submission", "Taken", "UnreadableError", "check"]
