"""All rules on a data set, in one table sorted by id, and all that is asked of its rows."""

from __future__ import annotations

from typing import Final

from gradience.data.asked import RowTests
from gradience.rules import Rule
from gradience.rules.data import answers, content, meaning, prompts, supervision, tokenised, tokens, turns
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
            *prompts.RULES,
            *meaning.RULES,
        ),
        key=lambda rule: rule.id,
    )
)

ROW_TESTS: Final[RowTests] = (
    *supervision.ROW_TESTS,
    *tokens.ROW_TESTS,
    *tokenised.ROW_TESTS,
    *content.ROW_TESTS,
    *turns.ROW_TESTS,
    *answers.ROW_TESTS,
    *prompts.ROW_TESTS,
    *meaning.ROW_TESTS,
)

ASKED_LIVE: Final[RowTests] = (
    *tokens.ASKED_LIVE,
    *tokenised.ASKED_LIVE,
    *turns.ASKED_LIVE,
    *prompts.ASKED_LIVE,
)
"""What is asked of the rows of a live batch, too: it needs ids and labels only."""
