"""Which evaluator a metric means, and with how many seeds a command is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tables import every

from gradience.errors import GradienceError
from gradience.prove.bench.contest import Contest
from gradience.prove.bench.evaluators import Command
from gradience.prove.options import BenchOptions


def chosen(metric: str, **options: Any) -> Any:
    contest = SimpleNamespace(_metric=metric, _options=BenchOptions(**options), _base="hash")
    return Contest.evaluator(contest, None)  # type: ignore[arg-type]  # what it reads of a contest


@every(
    ("metric", "options", "seeds"),
    [
        ("run {adapter} {seed}", {"seed": 5, "seeds": 3}, [5, 6, 7]),
        ("run {adapter} {seed}", {"seed": 0, "seeds": 1}, [0]),
        ("run {adapter}", {"seed": 5, "seeds": 3}, [5]),
    ],
)
def test_a_command_that_names_its_seed_is_run_with_several(metric, options, seeds):
    found = chosen(metric, **options)
    assert isinstance(found, Command)
    assert list(found._seeds) == seeds


@every(("metric", "says"), [("loss", "needs --base and --data"), ("lm-eval:arc", "lm-eval needs --base")])
def test_a_model_is_needed_where_one_is_run(metric, says):
    with pytest.raises(GradienceError, match=says):
        chosen(metric)
