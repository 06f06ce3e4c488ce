"""What is measured, runnable by anyone: `make bench`. Ratios against a peer in the same run, never absolute times."""
