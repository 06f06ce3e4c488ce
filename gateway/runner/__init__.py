"""The loop that executes runs."""
