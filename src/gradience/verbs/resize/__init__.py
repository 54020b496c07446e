"""``resize``: an adapter of lower ranks."""
