"""Guards of the rules on logs at their bounds: what is still judged, and what no longer is."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
from log_runs import FALL, run
from tables import every

from gradience.rules import Unknown
from gradience.rules.log import story
from gradience.rules.log.facts import RunFacts
from gradience.rules.log.held_out import _small_eval, _train_falls
from gradience.rules.log.numbers import _frozen
from gradience.schema import ConfigSnapshot, EvalMetrics
from gradience.schema.events import TrainingSnapshot


def trained(**training: Any) -> RunFacts:
    return replace(run(FALL), config=ConfigSnapshot(training=TrainingSnapshot(**training)))


@every(
    ("planned", "last", "more"),
    [(10, 9, True), (10, 10, False), (10, 11, False), (-1, 9, False), (None, 9, False), (10, None, False)],
)
def test_more_rows_may_follow_until_the_last_planned_step(planned, last, more):
    assert replace(trained(max_steps=planned), last_step=last).in_mid_run is more


@pytest.mark.parametrize(("best", "end"), [(30, 1000), (-2000, 60)])
def test_training_loss_is_needed_both_around_the_best_evaluation_and_at_the_end(best, end):
    with pytest.raises(Unknown, match="too few training rows around"):
        _train_falls(run(FALL), best, end)
    assert _train_falls(run(FALL), 20, 60) is True


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_an_accuracy_of_all_or_nothing_is_one(accuracy):
    def facts(share: float) -> Any:
        return SimpleNamespace(held_out=SimpleNamespace(metrics=EvalMetrics(accuracy=share, n=10)))

    seen = _small_eval(facts(accuracy))
    assert seen is not None
    assert seen.values == {"n": 10, "half_width": pytest.approx(1.96 * 0.05)}
    with pytest.raises(Unknown, match="is not a fraction"):
        _small_eval(facts(accuracy * 1.02 - 0.01))


@pytest.mark.parametrize(("first", "frozen"), [(0.0, 0), (1e-5, 1)])
def test_a_rate_must_move_in_more_than_half_of_the_other_rows(first, frozen):
    """Of 18 other moves, 9 or 10 are not zero."""
    moves = [first, *[1e-5, 0.0] * 9, 1e-5]
    rates = list(accumulate(moves, initial=1e-5))
    facts: Any = SimpleNamespace(series=SimpleNamespace(rates=rates, steps=range(1, 22)), peak_rate=max(rates))
    assert _frozen(facts, [10]) == frozen


@every(("used", "told"), [(8.0, True), (1.0, True), (0.0, False), (8.5, False), (None, False)])
def test_ranks_in_use_are_told_up_to_all_of_them(used, told, monkeypatch):
    monkeypatch.setattr(story, "audited_rank", lambda _: 8)
    facts: Any = SimpleNamespace(audit={"energy_rank_90_p50": used})
    assert [part.values for part in story._update(facts)] == [{"energy_rank_90_p50": used, "rank": 8}] * told
