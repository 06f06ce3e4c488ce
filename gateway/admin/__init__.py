"""What operators and Prometheus ask: `telemetry` (health and metrics), and the API under /api/v1."""

from gateway.admin.telemetry import Telemetry

__all__ = ["Telemetry"]
