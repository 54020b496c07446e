"""Verbs that write an adapter from others, and compare: resize, merge, convert, compare."""
