"""All rules between the files of an adapter."""

from __future__ import annotations

from typing import Final

from gradience.rules import Rule
from gradience.rules.between import Parts, loading, saved, trained

FILE_RULES: Final[tuple[Rule[Parts], ...]] = (*loading.RULES, *saved.RULES)
"""Those that need no number of the weights, which `check` asks too."""

BETWEEN_RULES: Final[tuple[Rule[Parts], ...]] = (*FILE_RULES, *trained.RULES)
