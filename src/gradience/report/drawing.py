"""Figures by matplotlib, as elements of the page: its shapes and places, our classes instead of its colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from xml.etree.ElementTree import Element, fromstring

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradience.report.markup import tag
from gradience.report.plot import Size

__all__ = ["classed", "drawn"]

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
