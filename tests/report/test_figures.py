"""Curves, axes and figures: no value is dropped, ticks are few, colours are variables of the page, all in its box."""

from __future__ import annotations

import doctest
import json
import math
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from tables import every

from gradience.blocks.html import plot
from gradience.blocks.html.figures import NARROW, STYLES, WIDE, draw, draw_map, style_sheet
from gradience.blocks.html.plot import Mark, Plot, PlotLine, axis_of, envelope, linear_ticks
from gradience.blocks.plots import Grid

SIZES = st.sampled_from([WIDE, NARROW])
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
ON = "var(--page)"  # the colour on a mark, which is that of the page


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", path)]


def lines(svg, colour: str = "c0"):
    """The curves of one colour, bottom line and marks aside."""
    return [s for s in svg.iter("path") if s.get("stroke") == f"var(--{colour})" and s.get("fill") == "none"]


def dots(svg, colour: str = "c0"):
    return [s for s in svg.iter("use") if s.get("fill") == f"var(--{colour})"]


def plot_of(values, **more) -> Plot:
    return Plot([PlotLine("loss", envelope(range(len(values)), values))], "step", "loss", **more)


@settings(max_examples=15, deadline=None)  # each draws a figure
@example([9.999999999999348e257, 0.0078125], WIDE, None)
@given(st.lists(FLOATS, max_size=30), SIZES, st.sampled_from([None, True, False]))
def test_whatever_the_values_every_colour_is_a_variable_and_every_shape_lies_in_the_figure(values, size, log):
    svg = draw(plot_of(values, log=log, marks=[Mark(1, 0, "warning"), Mark(12, 3, "error")]), size, "Loss.")
    names = set(re.findall(r"--(\w+):", style_sheet()))
    ids = {element.get("id") for element in svg.iter() if "id" in element.attrib}
    for shape in svg.iter():
        assert not {"style", "clip-path", "class"} & shape.attrib.keys() or shape is svg
        for key in ("fill", "stroke"):
            value = shape.get(key, "none")
            assert value == "none" or value.removeprefix("var(--").removesuffix(")") in names
        assert shape.tag != "text" or shape.get("fill", "") != ""  # black is no colour of the page
        if shape.tag == "use":
            assert shape.get("href", "").removeprefix("#") in ids
        if shape.tag == "path" and "id" not in shape.attrib:
            places = numbers(shape.get("d", ""))
            assert all(-1.0 <= x <= size.width + 1.0 for x in places[::2])
            assert all(-1.0 <= y <= size.height + 1.0 for y in places[1::2])


def test_a_line_breaks_where_rows_are_lost_and_a_row_alone_is_a_dot():
    svg = draw(plot_of([1.0, 2.0, math.nan, 3.0, math.nan, 4.0, 5.0]), WIDE, "Loss.")
    (line,) = lines(svg)
    assert line.get("d", "").count("L") == 2  # 1 to 2 and 4 to 5
    assert len(dots(svg)) == 1
    crosses = [s for s in svg.iter("use") if s.get("stroke") == "var(--error)"]
    assert len(crosses) == 2


def test_the_line_goes_through_its_values():
    values = [0.0, 10.0, 5.0]
    svg = draw(plot_of(values), WIDE, "Loss.")
    (line,) = lines(svg)
    path = numbers(line.get("d", ""))
    grid = [numbers(s.get("d", "")) for s in svg.iter("path") if s.get("stroke") == "var(--grid)"]
    bottom, top = max(g[1] for g in grid), min(g[1] for g in grid)
    assert np.allclose([(bottom - y) / (bottom - top) * 10 for y in path[1::2]], values, atol=0.02)
    assert np.isclose(path[2] - path[0], path[4] - path[2], atol=0.2)


def test_a_band_spans_the_lowest_and_the_highest_row_of_each_bucket():
    rows = np.sin(np.arange(3000.0))
    rows[1500] = 9.0
    svg = draw(plot_of(rows), WIDE, "Loss.")
    (band,) = [s for s in svg.iter("use") if s.get("fill-opacity") == "0.22"]
    (path,) = [s for s in svg.iter("path") if s.get("id") == band.get("href", "").removeprefix("#")]
    heights = [y + float(band.get("y", "")) for y in numbers(path.get("d", ""))[1::2]]
    grid = sorted(numbers(s.get("d", ""))[1] for s in svg.iter("path") if s.get("stroke") == "var(--grid)")
    top, bottom = grid[0], grid[-1]  # at 10 and at -2.5
    assert (bottom - min(heights)) / (bottom - top) * 12.5 - 2.5 == pytest.approx(9.0, abs=0.01)
    assert (bottom - max(heights)) / (bottom - top) * 12.5 - 2.5 == pytest.approx(-1.0, abs=0.01)


def test_two_lines_never_look_alike_and_the_legend_has_the_same_order():
    data = envelope([0, 1], [0.0, 1.0])
    svg = draw(Plot([PlotLine(str(i), data) for i in range(STYLES)], "step", "loss"), WIDE, "Loss.")
    drawn = [(s.get("stroke"), "stroke-dasharray" in s.attrib) for i in range(4) for s in lines(svg, f"c{i}")]
    assert sorted(drawn) == [(f"var(--c{i})", dashed) for i in range(4) for dashed in (False, True)]
    for i in range(STYLES):
        assert re.search(rf"\.s{i}\b[^{{]*{{ color: var\(--c{i % 4}\)", style_sheet())
        assert (f".swatch.s{i}" in style_sheet()) == (i >= 4)  # dashed


def test_marks_that_are_close_stand_in_rows_of_their_own():
    marks = [Mark(n, 50 + n / 10, "warning") for n in (1, 2, 3)]
    svg = draw(plot_of([float(i) for i in range(100)], marks=marks), WIDE, "Loss.")
    heights = [float(s.get("y", "0")) for s in svg.iter("text") if s.text in {"1", "2", "3"} and s.get("fill") == ON]
    assert min(abs(a - b) for i, a in enumerate(heights) for b in heights[:i]) >= 18.0


def test_every_cell_of_a_map_has_its_value_as_title_and_is_as_strong_as_that():
    grid = Grid(
        "cosine",
        {"a": {0: 1.0, 1: 0.5, 2: "!"}, "<b> $x$ \u4e2d": {0: -0.5, 2: 0.0}},
        [0, 1, 2],
        1.0,
        dict(enumerate("012")),
    )
    svg = draw_map(grid, NARROW, "Map.")
    cells = {
        box[0].text: (box.get("class"), float(box.get("fill-opacity", "1"))) for box in svg.iter("rect") if len(box)
    }
    assert cells == {
        "layer 0 a: 1": ("cell", 1.0),
        "layer 1 a: 0.5": ("cell", pytest.approx(0.52, abs=0.003)),
        "layer 2 <b> $x$ \u4e2d: 0": ("cell", pytest.approx(0.04, abs=0.001)),
        "layer 0 <b> $x$ \u4e2d: -0.5": ("cell below", pytest.approx(0.52, abs=0.003)),
    }
    texts = [(s.text, s.get("class")) for s in svg.iter("text")]
    assert ("!", "middle lost") in texts
    assert ("-", "middle label") in texts
    assert ("<b> $x$ \u4e2d", "end") in texts


@given(st.integers(1, 400), st.integers(1, 5), st.text("abc_", min_size=1, max_size=60), SIZES)
def test_the_cells_of_a_map_do_not_overlap_and_lie_in_the_figure(layers, kinds, name, size):
    rows = {name + "x" * i: dict.fromkeys(range(layers), 1.0) for i in range(kinds)}
    labels = {layer: str(layer) for layer in range(layers)}
    svg = draw_map(Grid("norm", rows, list(labels), 1.0, labels), size, "Map.")
    height = float(svg.get("viewBox", "").split()[3])
    boxes = [[float(rect.get(key, "")) for key in ("x", "y", "width", "height")] for rect in svg.iter("rect")]
    assert len(boxes) == layers * kinds
    assert all(x >= 0 and w > 0 and x + w <= size.width and y >= 0 and y + h <= height for x, y, w, h in boxes)
    firsts = sorted(box for box in boxes if box[1] == min(b[1] for b in boxes))
    assert all(a[0] + a[2] <= b[0] + 0.11 for a, b in pairwise(firsts))  # rounded to 0.1
    shown = [float(t.get("x", "")) for t in svg.iter("text") if (t.text or "").isdigit()]
    assert all(b - a >= 23.0 for a, b in pairwise(sorted(shown)))  # a number of three digits is about 20 wide


def test_of_a_logs_reports_only_the_page_imports_matplotlib_and_none_pyplot_jax_or_torch(log, tmp_path):
    script = (
        "import json, sys; from gradience.cli.main import main\n"
        "for tokens in json.loads(sys.argv[1]):\n"
        "    main(tokens)\n"
        "    found = [name for name in ('matplotlib', 'matplotlib.pyplot', 'jax', 'torch') if name in sys.modules]\n"
        "    print(found, file=sys.stderr)"
    )
    last = ["report", str(log), "--out", str(tmp_path / "a.html")]
    markdown = ["report", str(log), "--out", str(tmp_path / "a.md")]
    before = [["report", str(log)], markdown]
    command = [sys.executable, "-c", script, json.dumps([*before, last])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr.splitlines() == ["[]", "[]", "['matplotlib']"]
    assert (tmp_path / "a.html").is_file()


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


ROWS = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(allow_nan=False, width=64)
)
COLUMNS = st.lists(ROWS, min_size=0, max_size=200)
BUCKETS = st.integers(1, 40)


@given(COLUMNS, BUCKETS)
def test_every_finite_row_lies_within_the_band_of_some_bucket_and_the_extremes_are_drawn(column, buckets):
    drawn = envelope(range(len(column)), column, buckets=buckets)
    finite = np.clip([v for v in column if math.isfinite(v)], -1e300, 1e300)
    assert len(drawn.low) <= max(2 * buckets, 1)
    assert drawn.rows == len(finite)
    if len(finite):
        assert drawn.low.min() == finite.min()
        assert drawn.high.max() == finite.max()
        assert (drawn.low <= drawn.middle).all()
        assert (drawn.middle <= drawn.high).all()


@given(COLUMNS, BUCKETS)
def test_no_row_that_is_not_finite_goes_uncounted_or_unplaced(column, buckets):
    drawn = envelope(range(len(column)), column, buckets=buckets)
    lost = [i for i, v in enumerate(column) if not math.isfinite(v)]
    assert drawn.lost_rows == len(lost)
    assert drawn.rows + drawn.lost_rows == len(column)
    width = math.ceil(len(column) / buckets) if drawn.sampled else 0
    for step in lost:
        assert np.abs(drawn.lost - step).min() <= width


@given(st.permutations(list(range(60))), BUCKETS)
def test_the_order_of_the_rows_does_not_matter(order, buckets):
    column = np.sin(np.arange(60.0))
    column[7] = math.nan
    straight, shuffled = envelope(range(60), column, buckets=buckets), envelope(order, column[order], buckets=buckets)
    assert all(np.array_equal(a, b) for a, b in zip(straight, shuffled, strict=True))


def test_the_line_breaks_where_all_rows_between_are_not_finite_and_only_there():
    drawn = envelope(range(6), [1.0, 2.0, math.nan, math.inf, 3.0, 4.0])
    assert drawn.broken.tolist() == [False, False, True, False]
    assert drawn.lost.tolist() == [2, 3]
