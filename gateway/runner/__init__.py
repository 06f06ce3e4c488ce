"""The loop that executes runs: claims, sends, judges, commits; interrupts, recovers, holds."""

from gateway.runner.client_runs import ClientRuns
from gateway.runner.runner import Runner
from gateway.runner.sending import Site

__all__ = ["ClientRuns", "Runner", "Site"]
