"""Rules on adapters that are to be merged."""
