"""All rules between the files of an adapter, and the verdict that they give."""

from __future__ import annotations

from typing import Final

from gradience.rules import Rule, Verdict, judge
from gradience.rules.between import Parts, loading, saved, trained

FILE_RULES: Final[tuple[Rule[Parts], ...]] = (*loading.RULES, *saved.RULES)
"""Those that need no number of the weights, which `check` asks too."""

BETWEEN_RULES: Final[tuple[Rule[Parts], ...]] = (*FILE_RULES, *trained.RULES)


def judge_between(parts: Parts) -> Verdict:
    """Judge an adapter's files beside each other."""
    return judge(BETWEEN_RULES, parts)


def judge_files(parts: Parts) -> Verdict:
    """Judge an adapter's files beside each other, as far as no number of the weights is needed."""
    return judge(FILE_RULES, parts)
