"""What is found in the store when it is opened, and kept there: see `interface` and `records`."""
