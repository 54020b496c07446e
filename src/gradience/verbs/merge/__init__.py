"""``merge`` and ``merge-check``: several adapters as one."""
