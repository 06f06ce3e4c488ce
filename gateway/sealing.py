"""What is stored is sealed: one data key a run, wrapped by a key of the institution."""
