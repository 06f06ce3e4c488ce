"""Tests of what operators run: alert rules, dashboard, deployments, with real programs. See `make test-ops`."""
