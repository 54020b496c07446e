"""A figure: every shape has a class of ours, nothing of matplotlib's colours is left, no value is dropped."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradience.render.heatmap import Grid
from gradience.render.html.curves import draw
from gradience.render.html.drawing import NARROW, WIDE, Line, Mark, Plot, envelope
from gradience.render.html.heat import draw_grid

CSS = files("gradience.render.html").joinpath("style.css").read_text(encoding="utf-8")
SIZES = st.sampled_from([WIDE, NARROW])
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def shapes(svg):
    return [element for element in svg.iter() if element.tag not in {"svg", "title"}]


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", path)]


def plot_of(values, **more) -> Plot:
    return Plot([Line("loss", envelope(range(len(values)), values))], "step", "loss", **more)


@settings(max_examples=15, deadline=None)  # each draws a figure
@example([9.999999999999348e257, 0.0078125], WIDE, None)
@given(st.lists(FLOATS, max_size=30), SIZES, st.sampled_from([None, True, False]))
def test_whatever_the_values_every_shape_has_a_class_and_lies_in_the_figure(values, size, log):
    svg = draw(plot_of(values, log=log, marks=[Mark(1, 0, "warning"), Mark(12, 3, "error")]), size, "Loss.")
    for shape in shapes(svg):
        assert shape.attrib.keys() <= {"d", "class", "cx", "cy", "r", "x", "y", "transform"}
        assert all(name == "tick" or f".{name}" in CSS for name in shape.get("class", "none").split())
        places = numbers(shape.get("d", ""))
        assert all(-1.0 <= x <= size.width + 1.0 for x in places[::2])
        assert all(-1.0 <= y <= size.height + 1.0 for y in places[1::2])


def test_a_line_breaks_where_rows_are_lost_and_a_row_alone_is_a_dot():
    svg = draw(plot_of([1.0, 2.0, math.nan, 3.0, math.nan, 4.0, 5.0]), WIDE, "Loss.")
    line = next(s for s in shapes(svg) if s.get("class") == "line s0")
    assert line.get("d", "").count("M") - len([s for s in shapes(svg) if s.tag == "circle"]) in {1, 2}
    assert [s.get("class") for s in shapes(svg) if s.tag == "circle"] == ["dot s0"]
    cross = next(s for s in shapes(svg) if s.get("class") == "cross")
    assert cross.get("d", "").count("M") == 4  # two strokes each


def test_the_line_goes_through_its_values():
    values = [0.0, 10.0, 5.0]
    svg = draw(plot_of(values), WIDE, "Loss.")
    path = next(numbers(s.get("d", "")) for s in shapes(svg) if s.get("class") == "line s0")
    grid = [numbers(s.get("d", "")) for s in shapes(svg) if s.get("class") == "grid"]
    bottom, top = max(g[1] for g in grid), min(g[1] for g in grid)
    assert np.allclose([(bottom - y) / (bottom - top) * 10 for y in path[1::2]], values, atol=0.02)
    assert np.isclose(path[2] - path[0], path[4] - path[2], atol=0.2)


def test_marks_that_are_close_stand_in_rows_of_their_own():
    marks = [Mark(n, 50 + n / 10, "warning") for n in (1, 2, 3)]
    svg = draw(plot_of([float(i) for i in range(100)], marks=marks), WIDE, "Loss.")
    heights = [float(s.get("y", "0")) for s in shapes(svg) if s.get("class") == "number middle"]
    assert min(abs(a - b) for i, a in enumerate(heights) for b in heights[:i]) >= 18.0


def test_every_cell_of_a_map_says_its_value_and_is_as_strong_as_that():
    grid = Grid("cosine", {"a": {0: 1.0, 1: 0.5, 2: "!"}, "<b> $x$ \u4e2d": {0: -0.5, 2: 0.0}}, [0, 1, 2], 1.0)
    svg = draw_grid(grid, NARROW, "Map.")
    said = {
        cell[0].text: (cell.get("class"), float(cell.get("fill-opacity", "1")))
        for cell in svg.iter("path")
        if len(cell)
    }
    assert said == {
        "layer 0 a: 1": ("cell", 1.0),
        "layer 1 a: 0.5": ("cell", pytest.approx(0.52, abs=0.003)),
        "layer 2 <b> $x$ \u4e2d: 0": ("cell", pytest.approx(0.04, abs=0.001)),
        "layer 0 <b> $x$ \u4e2d: -0.5": ("cell below", pytest.approx(0.52, abs=0.003)),
    }
    texts = [(s.text, s.get("class")) for s in svg.iter("text")]
    assert ("!", "lost middle") in texts
    assert ("-", "sign middle") in texts
    assert ("<b> $x$ \u4e2d", "tick end") in texts


def test_a_users_matplotlib_settings_change_nothing_and_are_left_alone():
    before = draw(plot_of([1.0, 2.0]), WIDE, "Loss.")
    with mpl.rc_context({"font.size": 40, "lines.marker": "s", "axes.grid": True}):
        after = draw(plot_of([1.0, 2.0]), WIDE, "Loss.")
        assert mpl.rcParams["font.size"] == 40
    assert [(s.tag, s.attrib) for s in shapes(before)] == [(s.tag, s.attrib) for s in shapes(after)]


def test_only_the_page_imports_matplotlib_and_never_pyplot(log, tmp_path):
    script = (
        "import sys; from gradience.cli.main import main; code = main(sys.argv[1:]);"
        "print([name for name in ('matplotlib', 'matplotlib.pyplot') if name in sys.modules], file=sys.stderr)"
    )

    def imported(*tokens) -> str:
        command = [sys.executable, "-c", script, *map(str, tokens)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()[-1]

    assert imported("report", log) == "[]"
    assert imported("report", log, "--out", tmp_path / "a.md") == "[]"
    assert imported("monitor", log) == "[]"
    assert imported("--help") == "[]"
    assert imported("report", log, "--out", tmp_path / "a.html") == "['matplotlib']"
