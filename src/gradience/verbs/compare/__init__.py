"""``compare``: adapters held against each other by their weights."""
