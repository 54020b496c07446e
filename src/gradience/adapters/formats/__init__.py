"""Readers of adapter files: one module for each layout."""
