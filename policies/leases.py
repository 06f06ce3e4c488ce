"""To be written: leases."""
