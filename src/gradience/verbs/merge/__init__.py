"""``merge``: several adapters as one."""
