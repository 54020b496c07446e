"""Verbs over many adapters or runs: fleet, runs."""
