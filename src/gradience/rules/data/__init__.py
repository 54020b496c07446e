"""All rules on a data set, in one table sorted by id."""

from __future__ import annotations

from typing import Final

from gradience.rules import Rule
from gradience.rules.data import answers, content, supervision, tokenised, tokens, turns
from gradience.schema.reports import DataReport

DATA_RULES: Final[tuple[Rule[DataReport], ...]] = tuple(
    sorted(
        (
            *supervision.RULES,
            *tokens.RULES,
            *tokenised.RULES,
            *content.RULES,
            *turns.RULES,
            *answers.RULES,
        ),
        key=lambda rule: rule.id,
    )
)
