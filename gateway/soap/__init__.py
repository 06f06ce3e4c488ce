"""SOAP as bytes: what a body asks (`digest`), and how the gateway answers itself (`faults`)."""

from gateway.soap.coding import MalformedBodyError, TooLargeError
from gateway.soap.digest import Peek, PrefixCache, digest, digesting
from gateway.soap.faults import FaultAnswer, FaultForm, answer, caller_soap_version

__all__ = [
    "FaultAnswer",
    "FaultForm",
    "MalformedBodyError",
    "Peek",
    "PrefixCache",
    "TooLargeError",
    "answer",
    "caller_soap_version",
    "digest",
    "digesting",
]
