"""The table of joins that ``diagnose`` applies: which findings of which sources have one cause.

The order decides: a finding is in the first join that fits.
"""

from __future__ import annotations

from typing import Final

from gradience.policy import joins_files, joins_run
from gradience.policy.joins import Join

__all__ = ["JOINS"]

JOINS: Final[tuple[Join, ...]] = joins_run.JOINS + joins_files.JOINS
