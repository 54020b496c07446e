"""Structs to words. Nothing here prints, reads a file or judges."""
