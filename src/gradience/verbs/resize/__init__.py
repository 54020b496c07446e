"""A smaller adapter: each module cut to the best update of a lower rank."""

from __future__ import annotations

from gradience.verbs.resize.adapter import resize_adapter

__all__ = ["resize_adapter"]
