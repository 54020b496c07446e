"""``why``: where two runs part."""
