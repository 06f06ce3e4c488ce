"""Numbered schema changes, one folder for each engine: forward only, never edited once shipped. See `migrating`."""
