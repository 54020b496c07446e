"""The quantile expansion of a trial's bound, against moments of an explicit sample; and what a verdict says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tables import every

from gradience.errors import GradienceError
from gradience.prove.bench.judge import Contender, LossRule, Task, judge, tolerance_of
from gradience.prove.bench.store import Evaluation
from gradience.prove.bench.trial import sample_of, student_bounds
from gradience.schema import real
from gradience.schema.compare import BenchMetric


def test_the_excess_of_one_more_example_is_at_the_ends_that_a_metric_has():
    found = sample_of(np.zeros((4, 2)), np.array([1.0, 1.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.0, 0.2]), largest=1.0)
    assert found.margin == pytest.approx(0.1)
    assert found.worst.tolist() == pytest.approx([0.9, 0.9])
    assert found.best.tolist() == pytest.approx([-1.1, -1.1])


def test_few_runs_of_several_candidates_share_the_level():
    harm = np.array([[0.1, 0.0], [0.3, 0.1], [0.2, 0.5]])
    found = student_bounds(sample_of(harm, np.ones(3), np.zeros(3), largest=None))
    for column in (0, 1):
        low, high = stats.t.interval(0.95, 2, loc=harm[:, column].mean(), scale=stats.sem(harm[:, column]))
        assert (found.lower[column], found.upper[column]) == (pytest.approx(low), pytest.approx(high))


@every(
    ("text", "value", "relative"),
    [("1%", 0.01, True), (" 2.5% ", 0.025, True), ("0.01", 0.01, False), ("3", 3.0, False)],
)
def test_a_tolerance_is_a_share_or_a_difference(text, value, relative):
    found = tolerance_of(text)
    assert (found.text, found.value, found.relative) == (text.strip(), pytest.approx(value), relative)


@every("text", ["0", "0%", "-1%", "nan", "inf", "", "%", "one"])
def test_a_tolerance_is_above_zero(text):
    with pytest.raises(GradienceError, match="expected such as 1%"):
        tolerance_of(text)


# --- verdicts ----------------------------------------------------------------------------------------------------


def scores(*values: float, unit: str = "example") -> Evaluation:
    return Evaluation(unit=unit, scores=[real(float(v)) for v in values], weights=[1.0] * len(values))


def verdict(found: dict[str, Evaluation], *, tolerance: str = "0.1", unit: str = "seed", better: bool = True):
    roles = {"full": "reference", "base": "anchor"}
    params = {name: 100 - 10 * place for place, name in enumerate(found)}
    some = [Contender(name, roles.get(name, "candidate"), Path(name), params=params[name]) for name in found]
    metric = BenchMetric(name="m", higher_is_better=better, unit=unit)
    return judge(some, [Task("t", "", "", "full", found)], metric, LossRule(tolerance_of(tolerance), None, 0))


def seeds(*values: float) -> Evaluation:
    return scores(*values, unit="seed")


FULL = (0.90, 0.91, 0.92)


def test_a_harm_is_the_fall_of_a_score_or_the_rise_of_a_loss():
    a = seeds(0.85, 0.86, 0.88)
    for better, harm in ((True, 0.14 / 3), (False, -0.14 / 3)):
        (row,) = verdict({"full": seeds(*FULL), "a": a}, better=better).candidates[1].results
        assert float(row.harm) == pytest.approx(harm)
        low, high = stats.t.interval(0.90, 2, loc=harm, scale=stats.sem(np.array(FULL) - [0.85, 0.86, 0.88]))
        assert (float(row.low), float(row.worst)) == (pytest.approx(low), pytest.approx(high))


@every(("fall", "outcome", "state"), [(0.02, "within", "holds"), (0.098, "open", "not_decided"), (0.3, "over", "none")])
def test_a_candidate_is_within_over_or_open(fall, outcome, state):
    jitter = (0.0, 0.01, -0.01)
    a = seeds(*(value - fall + off for value, off in zip(FULL, jitter, strict=True)))
    found = verdict({"full": seeds(*FULL), "a": a})
    assert (found.candidates[1].outcome, found.verdict.state) == (outcome, state)


def test_the_smallest_that_holds_is_chosen_and_of_equals_the_one_that_loses_less():
    near = {name: seeds(0.90 - off, 0.91, 0.92 - off / 2) for name, off in (("a", 0.0009), ("b", 0.001), ("c", 0.002))}
    found = verdict({"full": seeds(*FULL), **near})
    assert found.verdict.candidate == "c"
    assert found.verdict.says == "c holds: the smallest whose worst plausible loss is within the tolerance"
    assert [c.share for c in found.candidates] == [1.0, 0.9, 0.8, 0.7]


def test_a_single_run_and_runs_that_are_one_decide_nothing():
    for values in ((0.9,), (0.9, 0.9, 0.9)):
        found = verdict({"full": seeds(*values), "a": seeds(*(v - 0.01 for v in values))})
        (row,) = found.candidates[1].results
        assert (found.verdict.state, row.outcome, row.low, row.worst) == ("not_decided", "open", None, None)
    assert verdict({"full": seeds(0.9, 0.8), "a": seeds(0.89, 0.8)}).candidates[1].results[0].worst is not None


def test_a_relative_tolerance_is_of_the_size_of_the_score():
    for sign in (1.0, -1.0):
        found = verdict(
            {"full": seeds(*(sign * v for v in FULL)), "a": seeds(*(sign * v - 0.001 for v in FULL))}, tolerance="10%"
        )
        assert found.tasks[0].margin == pytest.approx(0.091)
        assert found.tasks[0].score == pytest.approx(sign * 0.91)
        assert found.candidates[1].outcome == "within"
