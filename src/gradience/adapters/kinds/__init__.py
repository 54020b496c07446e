"""Adapter kinds: how each one's tensors become an update."""
