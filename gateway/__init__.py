"""Deeds of the BCSS gateway: sockets, files, metrics, command line. What to do is decided in `policies`."""

__version__ = "0.1.0"
