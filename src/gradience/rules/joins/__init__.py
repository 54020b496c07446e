"""Rules that need a config, a log and weights at once."""
