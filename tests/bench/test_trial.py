"""The statistics: exact where the answer is known, and right as often as they say on simulated trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gradience.verbs.bench.trial import bounds, needed, sample_of


def sample(harm, margin=0.0, *, largest=None, weight=None):
    harm = np.asarray(harm, float)
    harm = harm[:, None] if harm.ndim == 1 else harm
    n = len(harm)
    return sample_of(harm, np.ones(n) if weight is None else weight, np.full(n, margin), largest=largest)


def flips(n, worse, better=0):
    return np.array([1.0] * worse + [-1.0] * better + [0.0] * (n - worse - better))


@pytest.mark.parametrize(("n", "worse"), [(100, 0), (100, 1), (300, 4)])
def test_the_worst_harm_of_answers_right_or_wrong_is_the_limit_of_clopper_and_pearson(n, worse):
    found = bounds(sample(flips(n, worse), largest=1.0), draws=40_000)
    exact = stats.binomtest(worse, n).proportion_ci(0.90, method="exact").high  # one-sided 95 %
    assert found.upper[0] == pytest.approx(exact, rel=0.02)
    assert found.level == pytest.approx(0.95)


def test_bounds_mirror_where_the_sign_of_the_harm_is_turned():
    harm = flips(200, 9, 2)
    one, other = (bounds(sample(h, largest=1.0)) for h in (harm, -harm))
    assert one.upper[0] == pytest.approx(-other.lower[0], abs=0.004)
    assert one.lower[0] < harm.mean() < one.upper[0]


def test_an_unbounded_harm_has_one_more_example_twice_as_far_out_as_the_worst_seen():
    found = sample([0.0, 0.0, 1.0, 3.0], margin=0.5)
    assert found.mean[0] == pytest.approx(0.5)
    assert found.worst[0] == pytest.approx(0.5 + 2 * (2.5 - 0.5))
    assert found.best[0] == pytest.approx(0.5 - 2 * (0.5 + 0.5))
    assert found.margin == 0.5
    ends = sample_of(np.zeros((4, 2)), np.array([1.0, 1.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.0, 0.2]), largest=1.0)
    assert ends.margin == pytest.approx(0.1)
    assert (*ends.worst, *ends.best) == pytest.approx((0.9, 0.9, -1.1, -1.1))


def test_examples_count_by_their_weight():
    weight = np.array([3.0, 1.0])
    assert sample([1.0, 0.0], weight=weight).mean[0] == pytest.approx(0.75)
    heavy = bounds(sample(np.tile([1.0, 0.0], 200), weight=np.tile(weight, 200)))
    assert heavy.lower[0] < 0.75 < heavy.upper[0]
    assert heavy.lower[0] > 0.7


def test_bounds_of_several_hold_for_all_at_once_and_of_equal_ones_cost_nothing():
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(200, 6))
    assert bounds(sample(apart)).level == pytest.approx(1 - 0.05 / 6, abs=0.002)
    same = np.repeat(apart[:, :1], 6, axis=1)
    assert bounds(sample(same)).level == pytest.approx(0.95)


def test_the_same_seed_gives_the_same_bounds_and_chunks_change_nothing(monkeypatch):
    data = sample(np.random.default_rng(0).normal(size=50))
    assert bounds(data, seed=1).upper == bounds(data, seed=1).upper
    assert bounds(data, seed=1).upper != bounds(data, seed=2).upper
    whole = bounds(data, seed=1)
    monkeypatch.setattr("gradience.verbs.bench.trial._CELLS", 51 * 7)
    assert bounds(data, seed=1).upper == pytest.approx(whole.upper)


TRIALS = {
    "rare flips": (lambda rng, n: np.where(rng.random((n, 3)) < 0.02, 1.0, 0.0), 0.02, 1.0),
    "many flips": (lambda rng, n: rng.choice([1.0, -1.0, 0.0], (n, 3), p=[0.06, 0.04, 0.9]), 0.02, 1.0),
    "normal": (lambda rng, n: rng.normal(0.01, 0.1, (n, 3)), 0.01, None),
    "heavy tails": (lambda rng, n: 0.01 + 0.05 * rng.standard_t(3, (n, 3)), 0.01, None),
    "skewed": (lambda rng, n: 0.01 * np.exp(rng.normal(0, 1, (n, 3)) - 0.5), 0.01, None),
}


@pytest.mark.parametrize("name", TRIALS)
def test_candidates_that_lose_just_the_tolerance_hold_in_at_most_five_percent_of_trials(name):
    draw, margin, largest = TRIALS[name]
    rng, held, trials = np.random.default_rng(0), 0, 200
    for seed in range(trials):
        found = bounds(sample(draw(rng, 120), margin, largest=largest), seed=seed, draws=400)
        held += bool((found.upper <= 0.0).any())
    assert held <= trials * 0.05 + 2 * math.sqrt(trials * 0.05 * 0.95)


def test_without_a_flip_three_hundred_examples_show_one_percent():
    assert needed(sample(flips(50, 0), 0.01, largest=1.0), 0, 0.95).most == pytest.approx(298, rel=0.02)


@pytest.mark.parametrize("name", ["normal", "flips"])
def test_with_the_number_needed_four_of_five_trials_hold(name):
    rng = np.random.default_rng(0)
    if name == "normal":
        pilot, largest = stats.norm.ppf((np.arange(250) + 0.5) / 250) * 0.1, None
        draw = lambda n: rng.normal(0.0, 0.1, n)  # noqa: E731
    else:
        pilot, largest = flips(200, 4, 2), 1.0
        draw = lambda n: rng.choice([1.0, -1.0, 0.0], n, p=[0.02, 0.01, 0.97])  # noqa: E731
    margin = 0.02 if name == "normal" else 0.03
    n = needed(sample(pilot, margin, largest=largest), 0, 0.95).most
    held = [
        bounds(sample(draw(n), margin, largest=largest), seed=seed, draws=400).upper[0] <= 0.0 for seed in range(50)
    ]
    assert np.mean(held) >= 0.8


def test_no_number_is_enough_for_what_loses_more_than_the_tolerance():
    harm = np.random.default_rng(0).normal(0.03, 0.01, 50)
    assert needed(sample(harm, 0.02), 0, 0.95) is None
    assert needed(sample(harm, harm.mean() + 1e-7), 0, 0.95) is None  # less by so little that no trial shows it


def test_a_gain_that_it_seems_to_have_is_not_counted_on():
    harm = np.random.default_rng(0).normal(size=200)
    harm = 0.1 * (harm - harm.mean())
    assert needed(sample(harm - 0.05, 0.02), 0, 0.95).least > 0.8 * needed(sample(harm, 0.02), 0, 0.95).least


def test_a_higher_level_needs_more_examples():
    data = sample(np.random.default_rng(0).normal(0.0, 0.1, 200), 0.02)
    assert needed(data, 0, 0.99).most > 1.3 * needed(data, 0, 0.95).most
