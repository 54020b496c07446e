"""``gradience.verbs.merge``: several adapters into one, and what would get in each other's way."""

from __future__ import annotations

from gradience.verbs.merge.adapter import merge_adapters
from gradience.verbs.merge.check import merge_check

__all__ = ["merge_adapters", "merge_check"]
