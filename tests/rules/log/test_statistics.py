"""Statistics of few values against what can be counted, and of many against what the noise was made with."""

from __future__ import annotations

import math
import random
import statistics as standard

import pytest
from hypothesis import given, strategies as st

from gradience.rules.log.statistics import (
    falls_with_logarithm,
    mann_kendall,
    mean_error,
    median_error,
    moves,
    noise,
    theil_sen,
    trend_of,
)


def test_beyond_forty_values_or_with_ties_the_normal_p_is_near_the_exact_one():
    rng = random.Random(3)  # noqa: S311  # seeded on purpose
    values = [rng.gauss(-0.03 * i, 1) for i in range(40)]
    assert 1 / 3 < mann_kendall([*values, values[-1]]) / mann_kendall(values) < 3


def test_values_that_are_all_alike_have_no_trend():
    assert mann_kendall([1.0] * 12) == 1.0
    assert falls_with_logarithm([1.0] * 12) == 1.0


def test_a_fall_within_the_first_rows_is_seen_along_the_logarithm_only():
    rng = random.Random(1)  # noqa: S311  # seeded on purpose
    values = [2.0 / math.sqrt(1 + i) + 1.0 + rng.gauss(0, 0.2) for i in range(30)]
    assert falls_with_logarithm(values) < 0.01
    assert falls_with_logarithm(values[:8]) == 1.0  # too few


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_noise_is_that_of_the_rows_whatever_the_slope(sigma):
    rng = random.Random(2)  # noqa: S311  # seeded on purpose
    values = [0.5 * i + rng.gauss(0, sigma) for i in range(4000)]
    assert noise(values) == pytest.approx(sigma, rel=0.05)
    short = standard.fmean(noise([rng.gauss(0, sigma) for _ in range(6)]) for _ in range(3000))
    assert short == pytest.approx(sigma, rel=0.05)  # the mean of four differences


def test_three_values_show_noise_only_where_they_turn():
    assert noise([3.0, 2.0, 1.0]) == 0.0
    assert noise([3.0, 1.0, 2.0]) == 0.5
    assert noise([3.0, 1.0]) == 0.0


def test_the_bounds_of_a_slope_hold_the_true_one_in_nine_of_ten_series():
    rng = random.Random(4)  # noqa: S311  # seeded on purpose
    inside = 0
    for _ in range(400):
        found = theil_sen([0.1 * i + rng.gauss(0, 1) for i in range(20)])
        inside += found.low <= 0.1 <= found.high
    assert 0.86 <= inside / 400 <= 0.96  # both bounds are one-sided 95 %


def test_the_slope_of_few_values_has_no_bounds():
    assert theil_sen([1.0]) == (0.0, -math.inf, math.inf)
    assert theil_sen([2.0, 1.0])[1:] == (-math.inf, math.inf)


def test_the_error_of_a_median_is_a_quarter_over_that_of_a_mean():
    rng = random.Random(5)  # noqa: S311  # seeded on purpose
    medians = [standard.median(rng.gauss(0, 2) for _ in range(25)) for _ in range(2000)]
    assert median_error(2.0, 25) == pytest.approx(standard.stdev(medians), rel=0.06)
    assert median_error(2.0, 25, 25) == pytest.approx(math.sqrt(2) * median_error(2.0, 25))


def test_one_value_has_a_mean_of_unknown_error():
    assert mean_error([3.0]) == (3.0, math.inf)
    assert mean_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))


def test_a_flat_series_moves_in_at_most_a_tenth_of_a_percent():
    rng = random.Random(7)  # noqa: S311  # seeded on purpose
    assert sum(moves([math.exp(rng.gauss(0, 0.3)) for _ in range(30)]) <= 0.001 for _ in range(500)) <= 2


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60))
def test_a_trend_has_a_p_and_a_least_fall_between_0_and_1(values):
    found = trend_of(values)
    assert 0.0 <= found.p <= 1.0
    assert 0.02 <= found.least <= 1.0


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60), st.floats(0.01, 100.0))
def test_the_unit_changes_no_trend(values, unit):
    one, other = trend_of(values), trend_of([value * unit for value in values])
    assert other.fall == pytest.approx(one.fall, abs=1e-9)
    assert other.noise == pytest.approx(one.noise, rel=1e-6, abs=1e-9)
