"""What is submitted, read and made items of: NDJSON, TAR, ZIP, CSV with a template."""
