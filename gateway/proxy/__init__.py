"""Inbound: what clients send, and what they get. The parts that `gateway.app` puts together."""

from gateway.proxy.calls import Books
from gateway.proxy.forward import Proxy
from gateway.proxy.inbound import Bounds, Done, Inbound, Listener
from gateway.proxy.refusing import Refuser, malformed_answer

__all__ = ["Books", "Bounds", "Done", "Inbound", "Listener", "Proxy", "Refuser", "malformed_answer"]
