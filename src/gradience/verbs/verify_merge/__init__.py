"""Whether a merged model contains an adapter."""

from __future__ import annotations

from gradience.verbs.verify_merge.model import verify_merged

__all__ = ["verify_merged"]
