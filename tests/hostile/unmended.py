"""Tests of this folder that fail as yet, and why: whoever mends one takes its line out. Empty, this file goes."""

from __future__ import annotations

UNMENDED: dict[str, str] = {}
"""The test's name with its parameters, as pytest shows it after the file, to the row of the fault."""
