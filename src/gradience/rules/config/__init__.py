"""Rules on a configuration, and the facts that they read of it."""
