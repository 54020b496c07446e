"""``gradience.verbs.bench``: what smaller, merged or mitigated adapters change on the user's own data."""
