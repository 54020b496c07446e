"""A plot's frame: values at the left, the first and the last step below, apart at any width."""

from __future__ import annotations

from tables import every

from gradience.render.plots import _framed


@every(
    ("cells", "steps", "below"),
    [(10, ("0", "99"), "0       99"), (4, ("0", "1000"), "0 1000"), (4, ("123", "9"), "123 9"), (3, ("1", "2"), "1 2")],
)
def test_steps_stand_at_the_ends_and_a_space_apart(cells, steps, below):
    rows = [["a"] + [" "] * (cells - 1), [" "] * cells]
    assert _framed(rows, 5, ("low", "high"), steps) == [" high |a", "  low |", " " * 7 + below]
