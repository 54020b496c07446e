"""The statistics of few values, and of very many, on numbers that can be worked out on paper."""

from __future__ import annotations

import math
import random

import pytest
from tables import every

from gradience.rules.log.statistics import (
    Bar,
    curve_of,
    excesses,
    falls_with_logarithm,
    levels_error,
    mann_kendall,
    mean_error,
    noise,
    spread,
    theil_sen,
)


def test_the_order_of_forty_values_is_counted_and_of_more_approached():
    assert mann_kendall(range(40, 0, -1)) == 1 / math.factorial(40)
    assert mann_kendall(range(41, 0, -1)) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("height", "found"), [(1.8125, []), (1.82, [30])])
def test_what_stands_out_is_more_than_six_usual_changes_over_the_level(height, found):
    """By turns 1 and 1.125: changes of an eighth about 1.0625, and six of them are 0.75."""
    values = [1.0 + (row % 2) / 8 for row in range(60)]
    values[30] = height
    assert [place for place, _ in excesses(curve_of(values), Bar(6.0, 0.0625, logarithmic=False))] == found


@every(
    ("values", "expected"),
    [
        ([], 0.0),
        ([1.0, 3.0], 0.0),
        ([1.0, 3.0, 2.0], 0.5),  # half of what it moved where it turns
        ([1.0, 2.0, 3.0], 0.0),
        ([1.0, 1.0, 2.0], 0.0),
        ([1.0, 2.0, 1.0, 2.0], 0.5117 * 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.0),
        ([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 9.0], 0.5117 * (4 * 2.0 + 7.0) / 5),  # five differences: their mean
        ([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 9.0], 0.6053 * 2.0),  # six: their median
    ],
)
def test_the_noise_of_a_few_values(values, expected):
    assert noise(values) == pytest.approx(expected)


@every(("alike", "rows"), [(0.0, 100), (0.3, 100), (0.6, 100), (0.6, 5)])
def test_the_error_of_levels_is_that_of_means_of_rows_that_resemble_each_other(alike, rows):
    """Of a mean of m rows that is the sum of the correlations of all its pairs, and of a median 1.25 times as much."""
    rng, noises = random.Random(1), [0.0]  # noqa: S311  # seeded on purpose
    while len(noises) < 4000:
        noises.append(alike * noises[-1] + math.sqrt(1.0 - alike**2) * rng.gauss(0.0, 1.0))
    pairs = sum(alike ** abs(a - b) for a in range(rows) for b in range(rows))
    expected = 1.2533 * math.sqrt(2.0 * pairs) / rows
    assert levels_error(noises, rows) == pytest.approx(expected, rel=0.1)
    turned = [noise + 0.01 * abs(row - 2000) for row, noise in enumerate(noises)]  # a slope, and a turn
    assert levels_error(turned, rows) == pytest.approx(levels_error(noises, rows), rel=0.01)


def test_of_under_eleven_rows_none_is_taken_to_resemble_the_one_before():
    waves = [0.0, 1.0, 0.0, -1.0] * 3
    assert levels_error(waves[:10], 2) == pytest.approx(1.2533 * noise(waves[:10]))
    r = 0.8 - 1.0 / math.sqrt(11.0)  # 4 of 10 differences have the sign of the one before
    more = math.sqrt(3.0 * (1.0 + r) / ((1.0 - r) * (3.0 - r)))
    assert levels_error(waves[:11], 2) == pytest.approx(1.2533 * noise(waves[:11]) * more)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_of_one_value_or_none_there_is_no_order_and_no_spread(values):
    assert (mann_kendall(values), spread(values)) == (1.0, 0.0)


def test_the_spread_is_the_median_of_the_changes():
    assert spread([1.0, 3.0, 2.0, 7.0]) == 2.0
    assert spread([1.0, 3.0]) == 2.0


def test_values_that_are_all_alike_have_no_trend():
    assert mann_kendall([1.0] * 12) == 1.0
    assert falls_with_logarithm([1.0] * 12) == 1.0


def test_the_slope_of_few_values_has_no_bounds():
    assert theil_sen([1.0]) == (0.0, -math.inf, math.inf)
    assert theil_sen([2.0, 1.0])[1:] == (-math.inf, math.inf)


def test_one_value_has_a_mean_of_unknown_error():
    assert mean_error([3.0]) == (3.0, math.inf)
    assert mean_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
