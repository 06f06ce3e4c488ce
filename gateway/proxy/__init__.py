"""What becomes of calls. The parts that `gateway.app` puts together."""

from gateway.proxy.calls import Books
from gateway.proxy.forward import Proxy
from gateway.proxy.kept import Kept
from gateway.proxy.refusing import Refuser, malformed_answer
from gateway.proxy.wire import BULK_TAG

__all__ = ["BULK_TAG", "Books", "Kept", "Proxy", "Refuser", "malformed_answer"]
