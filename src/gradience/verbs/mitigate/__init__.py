"""A copy of an adapter whose intruder dimensions are scaled down."""

from __future__ import annotations

from gradience.verbs.mitigate.adapter import mitigate_adapter

__all__ = ["mitigate_adapter"]
