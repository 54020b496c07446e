"""The table of joins that ``diagnose`` applies: which findings of which sources have one cause.

The order decides: a finding is in the first join that fits.
"""

from __future__ import annotations

from typing import Final

from gradience.policy import joins_files, joins_run
from gradience.policy.joins import Join

__all__ = ["JOINS", "join_by_id"]

JOINS: Final[tuple[Join, ...]] = joins_run.JOINS + joins_files.JOINS


def join_by_id(join_id: str) -> Join | None:
    """Return the join of this id, in any case, or None."""
    return next((join for join in JOINS if join.id == join_id.upper()), None)
