"""To be written: recovery."""
