"""Rules on an adapter's weights."""
