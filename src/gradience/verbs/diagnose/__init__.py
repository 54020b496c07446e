"""The diagnosis: config, log and weights of one run in, one verdict with its causes out."""

from __future__ import annotations

from gradience.verbs.diagnose.run import diagnose

__all__ = ["diagnose"]
