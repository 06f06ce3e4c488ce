"""Which upstream a target leads to, and how it goes out.

Rules that always hold: the longest prefix that ends at a boundary of the path wins; of a target only a route's prefix
changes, and only where the route says so. Decides nothing else, and sends nothing.
"""

from collections.abc import Iterable

from gateway.config import Route


class Routes:
    """Which upstream a target leads to: the longest prefix that ends at a boundary of the path wins."""

    def __init__(self, routes: Iterable[Route]) -> None:
        prefixes = ((route.prefix.encode("ascii"), route) for route in routes)
        self._routes = sorted(prefixes, key=lambda pair: -len(pair[0]))

    def of(self, target: bytes) -> Route | None:
        """Return the route of an untagged target."""
        for prefix, route in self._routes:
            if target.startswith(prefix) and (prefix.endswith(b"/") or target[len(prefix) : len(prefix) + 1] in b"/?"):
                return route
        return None


def outbound_target(target: bytes, route: Route) -> bytes:
    """Return the target as the upstream gets it: the prefix replaced where the route says so, all else untouched."""
    return target if route.replace is None else route.replace.encode("ascii") + target[len(route.prefix) :]
