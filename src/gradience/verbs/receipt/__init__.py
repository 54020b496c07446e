"""``receipt``: what an adapter answers, and whether a server answers the same."""
