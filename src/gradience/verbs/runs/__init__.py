"""``runs``: many runs."""
