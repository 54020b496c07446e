"""``bench``: what a smaller or merged adapter loses on held-out data."""
