"""All rules between the files of an adapter, and the verdict that they give."""

from __future__ import annotations

from typing import Any, Final

from gradience.rules import Rule, Verdict, judge
from gradience.rules.between import Parts, loading, saved
from gradience.rules.weights.rules import WEIGHTS_RULES

BETWEEN_RULES: Final[tuple[Rule[Parts], ...]] = (*loading.RULES, *saved.RULES)

ADAPTER_RULES: Final[tuple[Rule[Any], ...]] = (*WEIGHTS_RULES, *BETWEEN_RULES)
"""The rules that an audit applies: to the numbers, and to the files beside each other."""


def judge_between(parts: Parts) -> Verdict:
    """Judge an adapter's files beside each other."""
    return judge(BETWEEN_RULES, parts)
