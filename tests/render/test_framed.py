"""A plot's frame: values at the left, the first and the last step below, apart at any width."""

from __future__ import annotations

from gradience.render.plots import curves_lines


def test_curves_lie_over_each_other_in_letters():
    lines = curves_lines([[(0, 1.0), (10, 2.0)], [(0, 2.0), (10, 1.0)]], width=20, height=3)
    assert [line.split("|")[0].strip() for line in lines[:3]] == ["2", "", "1"]
    assert [sorted(set(line.split("|")[1]) - {" "}) for line in lines[:3]] == [["a", "b"], ["a"], ["a", "b"]]
    assert lines[-1].split() == ["0", "10"]
    assert curves_lines([[]]) == []
