"""Verbs that say what they find in the user's work: check, monitor, audit, diagnose."""
