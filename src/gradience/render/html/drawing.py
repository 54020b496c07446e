"""Figures by matplotlib, as elements of the page: its shapes and places, our classes instead of its colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from gradience.render.html.markup import tag
from gradience.schema.scalars import Severity

BUCKETS: Final = 480  # at most: about two columns of pixels each at the widest plot

Floats = npt.NDArray[np.float64]

_LARGEST: Final = 1e300  # what is drawn at most: the range of two such numbers is still finite


class Envelope(NamedTuple):
    """The finite rows by bucket of steps: lowest, median and highest value; and where rows are not finite.

    The first four arrays are parallel, of one entry a bucket that holds a finite row. Where every row has its own
    bucket, lowest, median and highest are the row.
    """

    steps: Floats  # the middle of the bucket's steps
    low: Floats
    middle: Floats
    high: Floats
    lost: Floats  # one step a bucket that holds a row that is not finite
    broken: npt.NDArray[np.bool_]  # whether the line breaks before the bucket: all rows between are not finite
    rows: int  # finite
    lost_rows: int
    sampled: bool

    @property
    def per_bucket(self) -> int:
        """Rows in a bucket, on average."""
        return round((self.rows + self.lost_rows) / max(len(self.steps), 1))


def envelope(steps: npt.ArrayLike, values: npt.ArrayLike, *, buckets: int = BUCKETS) -> Envelope:
    """Return a column of values by their steps, in at most so many buckets of equal width in steps.

    Args:
        steps: of each row, in any order.
        values: of each row; NaN and infinities are counted and placed, never averaged.
        buckets: at most; rows share them from more than two rows a bucket on.
    """
    at, column = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    order = np.argsort(at, kind="stable")
    at, column = at[order], column[order]
    sampled = len(at) > 2 * buckets
    bucket = _bucket(at, buckets) if sampled else np.arange(len(at))
    finite = np.isfinite(column)
    own, kept = bucket[finite], np.clip(column[finite], -_LARGEST, _LARGEST)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    lost_at = np.flatnonzero(~finite)
    lost_at = lost_at[np.flatnonzero(np.diff(bucket[lost_at], prepend=-1))]
    return Envelope(
        steps=_centres(at[finite], starts),
        low=np.minimum.reduceat(kept, starts) if len(kept) else kept,
        middle=_medians(kept, starts) if sampled else kept,
        high=np.maximum.reduceat(kept, starts) if len(kept) else kept,
        lost=at[lost_at],
        broken=_broken(own[starts], bucket[lost_at]),
        rows=len(kept),
        lost_rows=int(len(column) - len(kept)),
        sampled=sampled,
    )


def _bucket(steps: Floats, buckets: int) -> npt.NDArray[np.int64]:
    first, last = steps[0], steps[-1]
    share = (steps - first) / max(last - first, 1.0)
    return np.asarray(np.minimum(share * buckets, buckets - 1), np.int64)


def _centres(steps: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    ends = np.append(starts[1:], len(steps)) - 1
    return (steps[starts] + steps[ends]) / 2 if len(steps) else steps


def _medians(values: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    return np.array([np.median(part) for part in np.split(values, starts[1:])]) if len(values) else values


def _broken(own: npt.NDArray[np.int64], lost: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return before which buckets others lie that hold non-finite rows alone."""
    alone = np.setdiff1d(lost, own)
    passed = np.searchsorted(alone, own)
    return np.asarray(np.diff(passed, prepend=passed[:1]) > 0)


STYLES: Final = 8  # line styles in the style sheet: four colours, each solid and dashed


class Line(NamedTuple):
    """One line of a plot."""

    label: str
    data: Envelope
    points: bool = False  # a dot at each value, as few values have


class Mark(NamedTuple):
    """A numbered finding at a step."""

    number: int
    step: float
    severity: Severity


class Plot(NamedTuple):
    """What is drawn. Without a choice, an axis of widely spread positive values is logarithmic."""

    lines: Sequence[Line]
    x_label: str
    y_label: str
    marks: Sequence[Mark] = ()
    log: bool | None = None
    zero: bool = False
    span: tuple[float, float] | None = (
        None  # of the vertical axis, where not all that is drawn; the rest is at its ends
    )


class Size(NamedTuple):
    """How large a figure is drawn, in units that are pixels at its usual size; and for which screens."""

    name: str
    width: float
    height: float
    ticks: int  # of the horizontal axis, about


WIDE: Final = Size("wide", 1080, 300, 10)
HALF: Final = Size("wide", 520, 260, 6)
NARROW: Final = Size("narrow", 360, 250, 5)


_WIDE: Final = 100.0  # highest over lowest value from which an axis of positive values is logarithmic
_THOUSAND, _MILLION = 1e3, 1e6
_LEAST: Final = 1e-290  # what is smaller stands at 0: matplotlib treats a shorter axis as one of no length
_TICKS: Final = 5


class Axis(NamedTuple):
    """An axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool

    @property
    def ticks(self) -> Locator:
        """Where its ticks are."""
        if not self.log:
            return linear_ticks(_TICKS)
        decades = math.floor(math.log10(self.high)) - math.ceil(math.log10(self.low))
        return LogLocator(subs=(1.0,) if decades >= 1 else (1.0, 2.0, 5.0), numticks=_TICKS + 1)


def linear_ticks(most: int, *, integer: bool = False) -> MaxNLocator:
    """Return ticks for at most so many steps of a linear axis; integers, as steps and ranks are."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1)


def y_axis(plot: Plot) -> Axis:
    """Return the vertical axis of a plot."""
    ends = (end for line in plot.lines for end in (line.data.low, line.data.high))
    values = [float(v) for column in ends for v in column] if plot.span is None else list(plot.span)
    return axis_of(values, log=plot.log, zero=plot.zero)


def axis_of(values: Iterable[float], *, log: bool | None = None, zero: bool = False) -> Axis:
    """Return the axis that holds all finite values; a linear one begins and ends at a tick.

    Args:
        values: those to be shown.
        log: whether logarithmic; None: where all are positive and the highest is over 100 times the lowest.
        zero: whether a linear axis begins at 0 if no value is negative.
    """
    known = [v if abs(v) >= _LEAST else 0.0 for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0.0 and (log or (log is None and high / low > _WIDE)):
        flat = high / low < 1.0 + 1e-9
        return Axis(low / 1.1, high * 1.1, log=True) if flat else Axis(low, high, log=True)
    if zero and low > 0.0:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 10.0 or 1.0
        low, high = low - room, high + room
    ticks = linear_ticks(_TICKS).tick_values(low, high)
    return Axis(min(low, float(ticks[0])), max(high, float(ticks[-1])), log=False)


def compact(value: float, _place: int | None = None) -> str:
    """Return a number for a tick, in few characters; the second argument is matplotlib's and not used.

    >>> compact(0.25), compact(20_000.0), compact(1.5e6), compact(0.0002), compact(0.0)
    ('0.25', '20k', '1.5M', '2e-4', '0')
    """
    size = abs(value)
    if not math.isfinite(size):  # beyond the largest number, and beyond the axis
        return ""
    if _THOUSAND * 10 <= size < _MILLION:
        return f"{value / _THOUSAND:g}k"
    if _MILLION <= size < _MILLION * _THOUSAND:
        return f"{value / _MILLION:g}M"
    if 0.0 < size < 1.0 / _THOUSAND or size >= _MILLION * _THOUSAND:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


_POINT: Final = 72  # matplotlib's SVG has 72 units an inch; a unit is a pixel at the figure's usual size
_CLASS: Final = "class "  # begins the ids that carry the classes of what is in a group
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a module may be called $x$
    "font.size": 12,
    "path.simplify": False,  # the envelope has decided what is drawn
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "xtick.major.size": 5,
    "xtick.major.pad": 5,
    "ytick.major.pad": 6,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 6 / _POINT,
    "figure.constrained_layout.w_pad": 6 / _POINT,
}
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
_NUMBER: Final = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
_PAIR: Final = re.compile(rf"({_NUMBER.pattern}) ({_NUMBER.pattern})")
_ANCHOR: Final = re.compile(r"text-anchor: (\w+)")
_OPACITY: Final = re.compile(r"fill-opacity: ([\d.]+)")


def classed(names: str) -> str:
    """Return the gid that gives an artist's shapes these classes of the style sheet."""
    return f"{_CLASS}{names}"


def drawn(
    paint: Callable[[Axes], None],
    size: Size,
    label: str,
    *,
    classes: str = "",
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Element:
    """Return a figure.

    Args:
        paint: draws in the axes; what it draws has a `classed` gid.
        size: of the figure.
        label: what it says to those who do not see it.
        classes: of the whole, besides `chart` and the size's name.
        titles: by classes: what the shapes of these classes say, in the order in which they were drawn.
    """
    source = _source(paint, size)
    said = {names: iter(texts) for names, texts in (titles or {}).items()}
    root = fromstring(source)  # noqa: S314  # the text that matplotlib has just written: it has escaped every name in it
    defined = {path.get("id"): path.get("d", "") for path in root.iter(f"{_namespace(root)}path")}
    return tag(
        "svg",
        _shapes(root, None, defined, said),
        viewBox=f"0 0 {size.width:g} {size.height:g}",
        class_=f"chart {size.name} {classes}".rstrip(),
        role="img",
        aria_label=label,
    )


def _source(paint: Callable[[Axes], None], size: Size) -> str:
    """Return what matplotlib writes, whatever a user's matplotlibrc says."""
    # A log axis is looked at a decade beyond its ends, which at 1e308 is no number: such a tick is not shown.
    with style.context(["default", _STYLE]), warnings.catch_warnings(), np.errstate(over="ignore"):
        # Names may be in any script. Only their width is guessed from matplotlib's font; the browser draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(size.width / _POINT, size.height / _POINT), dpi=_POINT)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines["bottom"].set_gid(classed("axis"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_gid(classed("label"))
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _namespace(root: Element) -> str:
    return root.tag.partition("}")[0] + "}"


def _shapes(
    group: Element, names: str | None, defined: Mapping[str | None, str], titles: Mapping[str, Iterator[str]]
) -> Iterator[Element]:
    """Yield what is drawn in a group, flat; ids, styles and definitions stay behind."""
    uses = [child for child in group if child.tag.endswith("}use")]
    if uses:
        yield from _markers(uses, "axis" if names == "tick" else names, defined)
    for child in group:
        match child.tag.rpartition("}")[2]:
            case "g":
                yield from _shapes(child, _names(child.get("id", ""), names), defined, titles)
            case "path":
                yield _path(child, "grid" if names == "tick" else names, titles)
            case "text":
                yield _text(child, names)


def _names(gid: str, outer: str | None) -> str | None:
    if gid.startswith(_CLASS):
        return gid.removeprefix(_CLASS)
    return "tick" if gid.startswith(("xtick", "ytick")) else outer


def _path(path: Element, names: str | None, titles: Mapping[str, Iterator[str]]) -> Element:
    opacity = _OPACITY.search(path.get("style", ""))
    title = next(titles[names]) if names is not None and names in titles else None
    return tag(
        "path",
        None if title is None else tag("title", title),
        d=_short(path.get("d", "")),
        class_=names,
        fill_opacity=None if opacity is None else round(float(opacity[1]), 3),
    )


def _text(text: Element, names: str | None) -> Element:
    anchor = _ANCHOR.search(text.get("style", ""))
    turned = text.get("transform", "")
    return tag(
        "text",
        text.text or "",
        x=_rounded(text.get("x")),
        y=_rounded(text.get("y")),
        transform=None if turned.startswith("rotate(-0 ") else _NUMBER.sub(_tenth, turned),
        class_=f"{names} {anchor[1]}" if anchor else names,
    )


def _rounded(number: str | None) -> float | None:
    return None if number is None else round(float(number), 1)


def _markers(uses: Sequence[Element], names: str | None, defined: Mapping[str | None, str]) -> Iterator[Element]:
    """Yield one shape in many places: circles as such, other shapes as one path."""
    shape = defined[uses[0].get(_HREF, "").removeprefix("#")]
    places = [(float(use.get("x", "0")), float(use.get("y", "0"))) for use in uses]
    if "C" in shape:  # our markers are circles and crosses
        radius = max(float(x) for x, _ in _PAIR.findall(shape))
        for x, y in places:
            yield tag("circle", cx=round(x, 1), cy=round(y, 1), r=round(radius, 1), class_=names)
    else:
        yield tag("path", d="".join(_short(shape, by=place) for place in places), class_=names)


def _short(path: str, by: tuple[float, float] = (0.0, 0.0)) -> str:
    """Return a path in tenths of a unit, moved, without the letters that SVG implies."""

    def moved(pair: re.Match[str]) -> str:
        return f"{_written(float(pair[1]) + by[0])} {_written(float(pair[2]) + by[1])}"

    flat = _PAIR.sub(moved, path.replace("\n", ""))
    return re.sub(r"\s*([MLQCz])\s*", r"\1", flat).replace("L", " ").strip()


def _tenth(number: re.Match[str]) -> str:
    return _written(float(number[0]))


def _written(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"  # noqa: PLR2004  # %g keeps six digits
