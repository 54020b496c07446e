"""What must hold of an axis, whatever a log holds."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradience.report import scale
from gradience.report.scale import scale_of

VALUES = st.lists(st.floats(-1e300, 1e300) | st.just(math.nan) | st.just(math.inf), max_size=20)


@given(VALUES, st.booleans(), st.booleans(), st.sampled_from([None, True, False]))
def test_every_finite_value_has_a_place_in_order_and_every_tick_lies_on_the_axis(values, zero, whole, log):
    axis = scale_of(values, zero=zero, whole=whole, log=log)
    assert axis.low < axis.high
    places = [axis.at(v) for v in sorted(v for v in values if math.isfinite(v))]
    assert places == sorted(places)
    assert all(0.0 <= place <= 1.0 for place in places)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    room = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - room <= tick <= axis.high + room for tick in axis.ticks)
    assert len(axis.ticks) <= 40


@pytest.mark.parametrize(("values", "log"), [([1, 200], True), ([1, 50], False), ([0, 1e9], False), ([-1, 1e9], False)])
def test_an_axis_is_logarithmic_where_positive_values_spread_over_a_hundredfold(values, log):
    assert scale_of(values).log is log


def test_a_whole_axis_begins_and_ends_at_a_tick():
    axis = scale_of([0.07, 2.31], whole=True)
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high) == (0.0, 3.0)


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_ticks_of_steps_and_ranks_are_integers(values):
    assert all(tick == round(tick) for tick in scale_of(values, log=False, integers=True).ticks)


def test_the_examples_in_the_module_hold():
    assert doctest.testmod(scale).failed == 0
