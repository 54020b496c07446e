"""What is said of runs that a seed drew, number by number."""

from __future__ import annotations

import json

from drawn_runs import COUNT, GOLDEN, all_drawn, drawn
from said import ABSTAINED, changed
from tables import every

from gradience.rules.log import detect

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_findings_stories_and_reasons_of_drawn_runs_have_these_numbers() -> None:
    """`python tests/drawn_runs.py` writes them anew after a change that was meant."""
    said = all_drawn()
    assert [*said, ABSTAINED] == list(EXPECTED)
    assert changed(said, EXPECTED) == {}


def test_most_rules_speak_of_one_of_them_or_another() -> None:
    spoken = {line.split()[0] for lines in EXPECTED.values() for line in lines}
    assert len(spoken - {"story"}) >= 25


@every("seed", range(0, COUNT, 9))
def test_the_same_run_is_judged_the_same_whoever_asks_first(seed: int) -> None:
    run = drawn(seed)
    assert detect(run) == detect(drawn(seed)) == detect(run)
