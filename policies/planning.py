"""To be written: planning."""
