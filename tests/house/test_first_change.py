"""The first change of CONTRIBUTING.md: its rule does what it says there."""

from __future__ import annotations

import re
from pathlib import Path

from gradience.rules import judge
from gradience.rules.config import training
from gradience.rules.config.facts import Facts
from gradience.schema.events import ConfigSnapshot, TrainingSnapshot


def judged(rule: object, length: int | None) -> tuple[list[str], list[str]]:
    """The rule's messages, and its reasons to abstain, on a configuration with this max_length."""
    verdict = judge([rule], Facts(ConfigSnapshot(training=TrainingSnapshot(max_length=length))))
    return [finding.message for finding in verdict.findings], [item.reason for item in verdict.not_run]


def test_the_rule_of_the_first_change_fires_is_silent_and_abstains_as_its_cases_say(root: Path):
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    written = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "_short_text" in block)
    module = dict(vars(training))
    exec(written, module)  # noqa: S102  # as a newcomer pastes it
    rule = module["_short_text"]
    assert [judged(rule, length) for length in (63, 64, None)] == [
        (["max_length is 63"], []),
        ([], []),
        ([], ["max_length is not given"]),
    ]
