"""``monitor``: what a run's log says."""
