"""A curve of text: as wide and high as asked, whatever the values."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from gradience.blocks.plots import curve_lines

floats = st.floats(allow_nan=True, allow_infinity=True)
points = st.lists(st.tuples(st.floats(0, 1e9), floats), max_size=80).map(sorted)


@given(points, points, st.integers(20, 120), st.integers(1, 20), st.booleans())
def test_any_points_give_lines_of_the_size_asked_for(curve, marks, width, height, dots):
    lines = curve_lines(curve, marks=marks, width=width, height=height, dots=dots)
    assert len(lines) in {0, height + 1}
    assert all(len(line) <= max(width, 30) for line in lines[:-1])
    assert all(len(line) <= max(width, 50) for line in lines[-1:])  # two numbers have to fit


def test_nothing_finite_gives_nothing():
    assert curve_lines([]) == []
    assert curve_lines([(1, math.nan), (2, math.inf)]) == []


def test_a_falling_curve_goes_from_the_top_left_to_the_bottom_right():
    lines = curve_lines([(i, 10.0 - i) for i in range(11)], width=31, height=5, dots=False)
    assert lines[0].index("*") < lines[4].index("*")
    assert lines[0].startswith("      10 |*")
    assert lines[4].startswith("       0 |")
    assert lines[5].split() == ["0", "10"]


def test_a_steep_fall_leaves_no_hole():
    lines = curve_lines([(0, 1.0), (1, 0.0)], width=30, height=6, dots=False)
    assert all("*" in line for line in lines[:6])
