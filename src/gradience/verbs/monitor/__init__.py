"""The monitor: a log in, the high-level story of its last run out."""

from __future__ import annotations

from gradience.verbs.monitor.run import monitor_run

__all__ = ["monitor_run"]
