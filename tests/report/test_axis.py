"""What must hold of an axis, whatever a log holds."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from tables import every

from gradience.blocks.html import plot
from gradience.blocks.html.plot import axis_of, linear_ticks

VALUES = st.lists(st.floats(-1e300, 1e300) | st.just(math.nan) | st.just(math.inf), max_size=20)


@given(VALUES, st.booleans(), st.sampled_from([None, True, False]))
def test_every_finite_value_lies_on_the_axis_and_its_ticks_are_few(values, zero, log):
    found = axis_of(values, zero=zero, log=log)
    assert found.low < found.high
    least = 1e-290  # what is smaller stands at 0
    known = [v if abs(v) >= least else 0.0 for v in values if math.isfinite(v)]
    room = 1e-9 * max(abs(found.low), abs(found.high))
    assert all(found.low - room <= v <= found.high + room for v in known)
    with np.errstate(over="ignore"):
        assert len(found.ticks.tick_values(found.low, found.high)) <= 40


@every(("values", "log"), [([1, 200], True), ([1, 50], False), ([0, 1e9], False), ([-1, 1e9], False)])
def test_an_axis_is_logarithmic_where_positive_values_spread_over_a_hundredfold(values, log):
    assert axis_of(values).log is log


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), zero=st.booleans())
@example(values=[-1.0, 9.0], zero=False)  # steps of 2 end at -2 and 10, and an axis of 12 has steps of 2.5
def test_a_linear_axis_begins_and_ends_at_a_tick(values, zero):
    found = axis_of(values, zero=zero, log=False)
    ticks = found.ticks.tick_values(found.low, found.high)
    room = 1e-6 * (found.high - found.low)
    assert (ticks[0], ticks[-1]) == pytest.approx((found.low, found.high), abs=room)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_ticks_of_steps_and_ranks_are_integers(low, width):
    assert all(tick == round(tick) for tick in linear_ticks(6, integer=True).tick_values(low, low + width))


def test_the_examples_in_the_module_hold():
    assert doctest.testmod(plot).failed == 0
