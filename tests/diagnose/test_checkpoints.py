"""The noise of an evaluation, and the size of an update's entries: laws, and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from gradience.judge.diagnose.checkpoints import loss_noise, standard_error

LOSS = st.floats(0.01, 10.0)
N = st.integers(1, 100_000)


@given(LOSS, N, st.none() | st.floats(0.0, 1.0))
def test_four_times_the_examples_halve_the_standard_error_where_both_see_a_mistake(loss, n, accuracy):
    one, four = (standard_error(loss, k, accuracy) for k in (n, 4 * n))
    assert one is not None
    assert four is not None
    if accuracy is None or 1.0 - accuracy >= 1.0 / n:
        assert four == pytest.approx(one / 2.0)
    assert one >= loss / math.sqrt(n) * (1.0 - 1e-12)


def test_where_few_examples_carry_the_loss_its_error_is_larger():
    assert standard_error(0.4, 100, 0.9) == pytest.approx(0.4 * 3.0 / 10.0)  # sqrt(0.9 / 0.1) = 3
    assert standard_error(0.4, 100, 1.0) == pytest.approx(0.4 * math.sqrt(99.0) / 10.0)  # at most one was wrong
    assert standard_error(0.4, None, 0.9) is None
    assert standard_error(0.0, 100, None) is None


@given(st.floats(-1.0, 1.0), st.floats(0.1, 5.0), st.integers(5, 30))
def test_a_steady_rise_is_no_noise(slope, start, n):
    noise = loss_noise([start + slope * i for i in range(n)])
    assert noise.value == pytest.approx(0.0, abs=1e-9)


def test_the_noise_of_white_jumps_is_their_standard_deviation():
    import random

    draw = random.Random(0)  # noqa: S311  # seeded on purpose
    noise = loss_noise([draw.gauss(2.0, 0.05) for _ in range(4000)])
    assert noise.value == pytest.approx(0.05, rel=0.05)


def test_too_few_evaluations_fall_back_on_the_error_from_n_else_say_that_it_is_unknown():
    assert loss_noise([1.0, 2.0, 3.0, 4.0]).value is None
    assert "unknown" in loss_noise([1.0]).source
