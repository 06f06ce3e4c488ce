"""Inbound: what clients send, and what they get. The parts that `gateway.app` puts together."""

from gateway.proxy.calls import Books
from gateway.proxy.forward import Proxy
from gateway.proxy.inbound import Bounds, Inbound
from gateway.proxy.listener import Listener
from gateway.proxy.refusing import Refuser, malformed_answer

__all__ = ["Books", "Bounds", "Inbound", "Listener", "Proxy", "Refuser", "malformed_answer"]
