"""The bound of capped harms: right at every look, and its numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tables import every

from gradience.verbs.bench.betting import SHARES, STAKES, log_capital, needed_examples, upper_bound
from gradience.verbs.bench.trial import capped_bounds, needed, sample_of

ONES = np.ones(50)


def test_the_capital_of_no_harm_is_that_of_each_stake_with_its_share():
    # excess -.02 of at most 1.98, against a mean of 0: each stake s grows by 1 + s / 99
    by_hand = math.log(sum(share * (1 + s / 99) ** 50 for s, share in zip(STAKES, SHARES, strict=True)))
    assert log_capital(np.full(50, -0.02), ONES, 1.98, 0.0) == pytest.approx(by_hand)
    assert (STAKES[0], STAKES[-1], SHARES.sum()) == (1.0, 2.0**-11, pytest.approx(1.0))


def test_a_whole_harm_takes_what_is_staked_on_it():
    excess = np.array([1.98])
    left = sum(share * (1 - s) for s, share in zip(STAKES, SHARES, strict=True))
    assert log_capital(excess, np.ones(1), 1.98, 0.0) == pytest.approx(math.log(left))
    half = sum(share * (1 - s / 2) for s, share in zip(STAKES, SHARES, strict=True))
    both = log_capital(np.array([1.98, 0.0]), np.array([0.5, 1.0]), 1.98, 0.0)  # of half the weight: half the loss
    assert both == pytest.approx(math.log(half))


def test_the_bound_of_no_harm_at_all_is_about_four_caps_over_n():
    bound = upper_bound(np.zeros(400), np.ones(400), 2.0, 0.95)
    assert log_capital(np.zeros(400), np.ones(400), 2.0, bound) == pytest.approx(math.log(20), rel=1e-6)
    assert bound == pytest.approx(2.0 * 3.6 / 400, rel=0.03)
    assert upper_bound(np.zeros(400), np.ones(400), 2.0, 0.99) > 1.2 * bound
    assert upper_bound(np.full(4, 2.0), np.ones(4), 2.0, 0.95) == 2.0


@every(
    ("harm", "nats"),
    [("one in a hundred", 2.0), ("normal", 0.02), ("heavy", 0.02), ("of long ones", 1.0)],
)
def test_at_no_look_does_a_candidate_pass_that_loses_the_tolerance(harm, nats):
    rng, passed, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        weight = rng.uniform(10, 100, 800) if harm == "of long ones" else np.ones(800)
        drawn = {
            "one in a hundred": lambda: np.where(rng.random(800) < 0.01, nats, 0.0),
            "normal": lambda: rng.normal(nats, 0.1, 800),
            "heavy": lambda: nats + 0.05 * rng.standard_t(3, 800),
            "of long ones": lambda w=weight: np.where((w > 55) & (rng.random(800) < 0.04), nats, 0.0),
        }[harm]()
        margin = 0.04 * (100**2 - 55**2) / (100**2 - 10**2) if harm == "of long ones" else 0.02
        excess, top = np.clip(drawn, -2.0, 2.0) - margin, 2.0 - margin
        looks = (log_capital(excess[:n], weight[:n] / 100.0, top, 0.0) for n in (25, 50, 100, 200, 400, 800))
        passed += max(looks) >= math.log(20)
    assert passed <= trials * 0.05 + 2 * math.sqrt(trials * 0.05 * 0.95)


def test_a_long_row_that_was_not_drawn_is_in_the_bound():
    """By hand: rows of a tenth of the longest possible length count a tenth, and ten times as many are needed."""
    rows = lambda n, heaviest: sample_of(  # noqa: E731  # a table of one case
        np.zeros((n, 1)), np.full(n, 20.0), np.full(n, 0.02), largest=None, cap=2.0, heaviest=heaviest
    )
    assert capped_bounds(rows(400, 20.0)).upper[0] < 0.0 < capped_bounds(rows(400, 200.0)).upper[0]
    assert capped_bounds(rows(4000, 200.0)).upper[0] < 0.0
    one, ten = (needed(rows(400, heaviest), 0, 0.95).most for heaviest in (20.0, 200.0))
    assert ten == pytest.approx(10 * one, rel=0.01)


def test_a_tolerance_that_is_a_share_of_the_score_leaves_no_more_room_than_the_cap():
    varies = sample_of(np.zeros((2, 1)), np.ones(2), np.array([0.02, 0.04]), largest=None, cap=2.0)
    assert (varies.largest, varies.least) == (2.0, -2.04)


def test_harms_are_capped_and_several_candidates_share_the_level():
    harm = np.array([[9.0, 0.0], [-9.0, 0.0], [0.0, 0.0]])
    sample = sample_of(harm, np.ones(3), np.full(3, 0.5), largest=None, cap=2.0)
    assert sample.excess[:, 0].tolist() == [1.5, -2.5, -0.5]
    assert (sample.largest, sample.least) == (1.5, -2.5)
    found = capped_bounds(sample)
    assert found.level == pytest.approx(0.975)
    assert found.upper[1] == pytest.approx(upper_bound(np.full(3, -0.5), np.ones(3), 1.5, 0.975))
    assert found.lower[1] == pytest.approx(-upper_bound(np.full(3, 0.5), np.ones(3), 2.5, 0.975))


def test_with_the_number_asked_for_four_of_five_fresh_samples_pass():
    rng = np.random.default_rng(1)
    pilot = sample_of(rng.normal(0.0, 0.1, (300, 1)), np.ones(300), np.full(300, 0.02), largest=None, cap=2.0)
    asked = needed(pilot, 0, 0.95)
    assert 400 < asked.least < asked.most < 700
    passed = [
        log_capital(rng.normal(0.0, 0.1, asked.most) - 0.02, np.ones(asked.most), 1.98, 0.0) >= math.log(20)
        for _ in range(100)
    ]
    assert np.mean(passed) >= 0.8


def test_no_number_is_enough_for_what_loses_the_tolerance():
    assert needed_examples(np.full(50, 0.01), ONES, 1.98, 0.95, 0.84) == math.inf
    assert needed_examples(ONES - 1.0, ONES, 0.0, 0.95, 0.84) == 1.0
    one = sample_of(np.full((50, 1), 0.03), ONES, np.full(50, 0.02), largest=None, cap=2.0)
    assert needed(one, 0, 0.95) is None


def test_without_spread_the_number_needed_is_the_bar_over_the_growth():
    excess = np.full(50, -0.02)
    by_hand = (math.log(20) - math.log(0.5)) / math.log(1 + 0.02 / 1.98)
    assert needed_examples(excess, ONES, 1.98, 0.95, 0.84) == pytest.approx(by_hand)
    gains = sample_of(np.full((50, 1), -0.5), ONES, np.full(50, 0.02), largest=None, cap=2.0)
    assert needed(gains, 0, 0.95).most == math.ceil(by_hand)  # a gain is not counted on
