"""All rules on a data set, in one table sorted by id."""

from __future__ import annotations

from typing import Final

from gradience.rules import Rule
from gradience.rules.data import content, supervision, tokens
from gradience.schema.reports import DataReport

DATA_RULES: Final[tuple[Rule[DataReport], ...]] = tuple(
    sorted((*supervision.RULES, *tokens.RULES, *content.RULES), key=lambda rule: rule.id)
)
