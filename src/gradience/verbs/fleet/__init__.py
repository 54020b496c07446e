"""``fleet``: many adapters."""
