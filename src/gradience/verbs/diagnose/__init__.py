"""``diagnose``: configuration, log and weights of one run joined."""
