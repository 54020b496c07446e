"""``gradience.verbs.compare``: adapters side by side, by their weights."""

from __future__ import annotations

from gradience.verbs.compare.adapters import compare_adapters

__all__ = ["compare_adapters"]
