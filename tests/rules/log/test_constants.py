"""Constants of the statistics, from their definitions."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.rules.log import statistics as ours
from gradience.rules.log.statistics import Bar, curve_of, excesses, thin
from gradience.rules.weights.ranks import percentile

NORMAL = NormalDist()


@every(
    ("constant", "value"),
    [
        (ours.MEDIAN_ERROR, math.sqrt(math.pi / 2)),
        (ours.NORMAL_95, NORMAL.inv_cdf(0.95)),
        (ours.OF_MEDIAN, 1 / (NORMAL.inv_cdf(0.75) * math.sqrt(6))),
        (ours.OF_MEAN, 1 / (math.sqrt(2 / math.pi) * math.sqrt(6))),
        (ours.POWER, NORMAL.inv_cdf(0.99) + NORMAL.inv_cdf(0.8)),
    ],
)
def test_a_constant_is_that_of_the_normal_distribution(constant, value):
    assert constant == pytest.approx(value, rel=1e-3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_a_percentile_is_numpy_s(values, share):
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), abs=1e-6, rel=1e-9)


@given(st.lists(st.integers(0, 6), min_size=41, max_size=60))
def test_the_normal_p_of_an_order_has_kendall_s_variance_with_ties_and_a_correction_for_continuity(values):
    n = len(values)
    falls = sum((b < a) - (b > a) for i, a in enumerate(values) for b in values[i + 1 :])
    ties = sum(k * (k - 1) * (2 * k + 5) for k in np.unique(values, return_counts=True)[1].tolist())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    expected = 1.0 if variance <= 0 else 1 - NORMAL.cdf((falls - (1 if falls > 0 else 0)) / math.sqrt(variance))
    assert ours.mann_kendall([float(x) for x in values]) == pytest.approx(expected, abs=1e-12)


def test_sens_bounds_stand_at_the_ranks_that_kendalls_variance_gives():
    rng = random.Random(3)  # noqa: S311  # seeded on purpose
    for n in (4, 9, 30):
        values = [0.3 * i + rng.gauss(0, 1) for i in range(n)]
        slopes = sorted((values[j] - values[i]) / (j - i) for i in range(n) for j in range(i + 1, n))
        half = 1.645 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
        low, high = math.floor((len(slopes) - half) / 2), math.ceil((len(slopes) + half) / 2)
        found = ours.theil_sen(values)
        assert found.slope == pytest.approx(np.median(slopes))
        assert found.low == (slopes[low] if low >= 0 else -math.inf)
        assert found.high == (slopes[high] if high < len(slopes) else math.inf)


def test_a_trend_of_few_rows_has_the_numbers_of_its_definition():
    values = [2.0, 1.5, 1.6, 1.2, 1.3, 1.0, 1.1, 0.9, 1.0, 0.8]
    found = ours.trend_of(values)
    second = np.abs(np.diff(values, 2))
    noise = np.median(second) / (0.6745 * math.sqrt(6)) / 0.9
    unseen = 3.168 * noise * math.sqrt(12 / 10)
    assert (found.rows, found.start, found.end) == (10, 2.0, 0.9)
    assert found.fall == pytest.approx(1 - 0.9 / 2.0)
    assert found.noise == pytest.approx(noise, rel=1e-3)
    assert found.least == pytest.approx(unseen / (1 + unseen), rel=1e-3)
    assert found.p == pytest.approx(2 * min(ours.mann_kendall(values), ours.falls_with_logarithm(values)))


def test_values_beyond_the_range_of_squares_are_put_at_its_ends():
    assert ours.bounded([1.0, 2.0]) == [1.0, 2.0]
    assert ours.bounded([1e200, -1e200, 0.0, 1e-200, -3.0]) == [1e100, -1e100, 0.0, 1e-100, -3.0]


# --- what stands out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "found"), [(7, False), (8, True)])
def test_the_first_eight_rows_do_not_stand_out(place, found):
    values = [1.0] * 20
    values[place] = 9.0
    bar = Bar(6.0, 0.05, logarithmic=False)
    assert [at for at, _ in excesses(curve_of(values), bar)] == [place] * found


def test_a_thinned_series_has_the_medians_of_equal_blocks():
    assert thin([1.0, 2.0, 3.0], 3) == [1.0, 2.0, 3.0]
    assert thin([1.0, 2.0, 9.0, 4.0, 5.0], 3) == [1.5, 6.5, 5.0]
    assert thin([1.0, 2.0, 9.0, 4.0, 5.0], 2) == [2.0, 4.5]
