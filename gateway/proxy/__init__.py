"""What becomes of calls. The parts that `gateway.app` puts together."""

from gateway.proxy.calls import Books
from gateway.proxy.forward import Proxy
from gateway.proxy.refusing import Refuser, malformed_answer

__all__ = ["Books", "Proxy", "Refuser", "malformed_answer"]
