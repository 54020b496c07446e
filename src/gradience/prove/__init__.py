"""Verbs that hold a result against what it should be: verify-merge, bench."""
