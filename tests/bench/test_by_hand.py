"""The quantile expansion of a trial's bound, against moments of an explicit sample; and what a verdict says."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tables import every

from gradience.errors import ConfigError, GradienceError
from gradience.prove.bench.judge import Contender, Rule, Task, judge, tolerance_of
from gradience.prove.bench.store import Evaluation
from gradience.prove.bench.trial import _needed, _refuse_unlabelled, _Shape, sample_of, student_bounds
from gradience.schema import real
from gradience.schema.compare import BenchMetric


def expansion(values: np.ndarray, z: float) -> float:
    """Cornish and Fisher's quantile of the mean of the values under weights of a flat Dirichlet distribution."""
    t, off = len(values), values - values.mean()
    m2, m3, m4 = (float(np.mean(off**k)) for k in (2, 3, 4))
    variance = m2 / (t + 1)
    skew = 2 * m3 / ((t + 1) * (t + 2)) / variance**1.5
    excess = (3 * t * m2**2 + 6 * m4) / ((t + 1) * (t + 2) * (t + 3)) / variance**2 - 3
    w = z + (z**2 - 1) / 6 * skew + (z**3 - 3 * z) / 24 * excess - (2 * z**3 - 5 * z) / 36 * skew**2
    return float(values.mean() + w * math.sqrt(variance))


@pytest.fixture
def even(monkeypatch):
    """A power of one half: no shift for bad luck."""
    monkeypatch.setattr("gradience.prove.bench.trial.POWER", 0.5)


@pytest.mark.parametrize("z", [1.0, 1.645, 2.5])
@pytest.mark.parametrize("worst", [-0.5, 1.0, 4.0])
def test_the_bound_is_the_expansion_of_the_sample_with_its_one_more_example(even, z, worst):
    values = np.array([0.0, 0.1, -0.3, 0.9, 0.2, -0.1, 0.05, 0.4])
    off = values - values.mean()
    shape = _Shape(float(values.mean()), [float(np.mean(off**k)) for k in (2, 3, 4)], worst)
    assert shape.bound(len(values), z) == pytest.approx(expansion(np.append(values, worst), z), rel=1e-12)


def test_the_expansion_is_near_the_quantile_of_random_weights(even):
    values = np.random.default_rng(0).exponential(size=60) - 1.0
    off = values - values.mean()
    shape = _Shape(float(values.mean()), [float(np.mean(off**k)) for k in (2, 3, 4)], 5.0)
    weights = np.random.default_rng(1).dirichlet(np.ones(61), 100_000)
    drawn = np.quantile(weights @ np.append(values, 5.0), 0.95)
    assert shape.bound(60, NormalDist().inv_cdf(0.95)) == pytest.approx(drawn, abs=0.01)


def test_bad_luck_shifts_the_mean_and_widens_a_skewed_sample():
    shift = NormalDist().inv_cdf(0.8) * math.sqrt(0.04 / 100)
    for third, spread in ((0.0, 0.04), (-0.01, 0.04), (0.01, 0.04 + 0.01 / 0.04 * shift)):
        n, z, worst = 100, 1.645, 2.0
        mean = 0.1 + shift
        middle = (n * mean + worst) / (n + 1)
        d, more = mean - middle, worst - middle
        v2 = (n * (spread + d**2) + more**2) / (n + 1)
        found = _Shape(0.1, [0.04, third, 0.006], worst).bound(n, z)
        skew = (n * (third + 3 * spread * d + d**3) + more**3) / (n + 1) / v2**1.5 * 2 * math.sqrt(n + 2) / (n + 3)
        fourth = (n * (0.006 + 4 * third * d + 6 * spread * d**2 + d**4) + more**4) / (n + 1)
        excess = (3 * (n + 1) * v2**2 + 6 * fourth) / ((n + 2) * (n + 3) * (n + 4)) / (v2 / (n + 2)) ** 2 - 3
        steps = z + (z**2 - 1) * skew / 6 + (z**3 - 3 * z) * excess / 24 - (2 * z**3 - 5 * z) * skew**2 / 36
        assert found == pytest.approx(middle + steps * math.sqrt(v2 / (n + 2)), rel=1e-9)


def test_without_spread_the_bound_is_the_mean():
    assert _Shape(0.25, [0.0, 0.0, 0.0], 0.25).bound(10, 1.6) == 0.25


def test_the_number_needed_is_the_least_with_which_the_bound_is_under_the_tolerance():
    harm = np.random.default_rng(2).normal(0.0, 0.1, (200, 1))
    harm -= harm.mean()
    found = sample_of(harm, np.ones(200), np.full(200, 0.02), largest=None)
    n, z = math.ceil(_needed(found, 0, 0.95)), NormalDist().inv_cdf(0.95)
    e = found.excess[:, 0]
    shape = _Shape(float(e.mean()), [float(np.mean((e - e.mean()) ** k)) for k in (2, 3, 4)], float(found.worst[0]))
    assert n is not None
    assert shape.bound(n, z) <= 0.0 < shape.bound(n * 0.995 - 1, z)


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
    return judge(some, [Task("t", "", "", "full", found)], metric, Rule(tolerance_of(tolerance), None, 0))


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


@pytest.mark.parametrize(
    ("fall", "outcome", "state"), [(0.02, "within", "holds"), (0.098, "open", "not_decided"), (0.3, "over", "none")]
)
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


@pytest.mark.parametrize(("label", "odd"), [(0, False), (2, False), (3, True), (-1, True), (None, True), ("new", True)])
def test_a_label_is_a_number_under_the_number_of_classes_or_a_name_of_the_model(label, odd):
    config = SimpleNamespace(num_labels=3, label2id={"bad": 1})
    loaded: Any = SimpleNamespace(task="sequence-classification", config=config)
    found: Any = SimpleNamespace(examples=[SimpleNamespace(label=one) for one in ("bad", label)])
    if not odd:
        _refuse_unlabelled(Path("d.jsonl"), found, loaded)
        return
    with pytest.raises(ConfigError) as error:
        _refuse_unlabelled(Path("d.jsonl"), found, loaded)
    assert str(error.value) == f"d.jsonl: a row has the label {label!r}, expected a number from 0 to 2, or one of bad"
