"""Models that run: a base with adapters on it, inputs for it, and what its outputs say. Needs torch, imported late."""
