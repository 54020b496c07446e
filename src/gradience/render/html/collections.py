"""Pages about many: a fleet of adapters, and the curves of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element

from gradience.render.fleet import size_text
from gradience.render.html.figures import STYLES, WIDE
from gradience.render.html.markup import Node, tag
from gradience.render.html.page import whole_page
from gradience.render.html.pieces import Columns, facts, note, plot_figure, section, table
from gradience.render.html.plot import Line, Plot, envelope
from gradience.render.text import clean, words
from gradience.schema.fleet import Alike, Counted, Faulty, FleetShowReport, OtherShape, Serving, Wasteful
from gradience.schema.runs import Curve, RunsCurvesReport


def fleet_html(report: FleetShowReport) -> str:
    """The page about a fleet. The same report gives the same bytes."""
    verdicts = [(words(item.value), f"{item.adapters:,}") for item in report.verdicts]
    main = [
        ("adapters", f"{report.adapters:,}"),
        ("modules", f"{report.modules:,}"),
        ("tensors", size_text(report.bytes)),
    ]
    header = tag(
        "header", tag("p", "Gradience fleet", class_="kicker"), tag("h1", report.fleet), facts([*main, *verdicts])
    )
    close, alike = f"Cosine of the updates at least {report.similar.threshold:g}", report.similar
    parts: dict[str, tuple[str, list[Element | None]]] = {
        "faulty": ("What needs a look", [table(_FAULTY, report.faulty, caption="By fault")]),
        "wasteful": ("What could be cut away", [table(_WASTE, report.wasteful, caption="Most bytes first", numbers=4)]),
        "serving": ("What a server pads", [table(_SERVING, report.serving, caption="By declared base", numbers=5)]),
        "alike": (
            "What is alike",
            [
                table(_SAME, alike.same, caption="Equal content", numbers=1),
                table(_NEAR, alike.near, caption=close, numbers=1),
            ],
        ),
        "bases": ("What declares another base", [table(_OTHER, report.other_shapes, caption="By shape")]),
        "counts": ("How many of each", [_counts(report)]),
    }
    sections = [_section(name, title, content) for name, (title, content) in parts.items()]
    return whole_page(report.fleet, header, sections)


def _section(name: str, title: str, content: Sequence[Element | None]) -> Element | None:
    shown: list[Node] = [part for part in content if part is not None]
    return section(name, title, *shown) if shown else None


def _counts(report: FleetShowReport) -> Element | None:
    groups = {"base": report.bases, "type": report.types, "rank": report.ranks, "finding": report.findings}
    rows = [(kind, item) for kind, items in groups.items() for item in items]
    return table(_COUNTS, rows, caption="Adapters by base, type, rank and finding", numbers=1)


_COUNTS: Final[Columns[tuple[str, Counted]]] = (
    ("", lambda row: row[0]),
    ("value", lambda row: clean(row[1].value)),
    ("adapters", lambda row: f"{row[1].adapters:,}"),
)
_FAULTY: Final[Columns[Faulty]] = (
    ("adapter", lambda row: clean(row.path)),
    ("verdict", lambda row: words(row.verdict)),
    ("reason", lambda row: clean(row.reason)),
)
_WASTE: Final[Columns[Wasteful]] = (
    ("adapter", lambda row: clean(row.path)),
    ("r", lambda row: str(row.r)),
    ("to", lambda row: str(row.suggested_rank)),
    ("utilization", lambda row: f"{row.utilization_mean:.1%}"),
    ("saves", lambda row: size_text(row.bytes_saved)),
)
_SERVING: Final[Columns[Serving]] = (
    ("base", lambda row: clean(row.base_model)),
    ("adapters", lambda row: f"{row.adapters:,}"),
    ("max_lora_rank", lambda row: str(row.max_lora_rank or "-")),
    ("factors", lambda row: size_text(row.used_bytes)),
    ("padding", lambda row: size_text(row.padding_bytes)),
    ("padding of the best split", lambda row: size_text(row.buckets[-1].padding_bytes) if row.buckets else "-"),
)
_SAME: Final[Columns[Alike]] = (
    ("adapters", lambda row: ", ".join(map(clean, row.paths))),
    ("how many", lambda row: str(len(row.paths))),
)
_NEAR: Final[Columns[Alike]] = (
    ("adapters", lambda row: ", ".join(map(clean, row.paths))),
    ("cosine", lambda row: f"{row.cosine or 0.0:.5f}"),
)
_OTHER: Final[Columns[OtherShape]] = (
    ("adapter", lambda row: clean(row.path)),
    ("declares", lambda row: clean(row.base_model)),
    ("module", lambda row: clean(row.module)),
    ("shape", lambda row: " x ".join(map(str, row.shape))),
    ("usual", lambda row: " x ".join(map(str, row.usual))),
)


def curves_html(report: RunsCurvesReport) -> str:
    """The page with the curves of several runs over each other."""
    header = tag("header", tag("p", "Gradience runs", class_="kicker"), tag("h1", report.metric))
    drawn, rest = report.curves[:STYLES], report.curves[STYLES:]
    lines = [Line(curve.name, envelope(curve.steps, curve.values)) for curve in drawn]
    summary = " ".join(f"{c.name} goes from {c.values[0]:.4g} to {c.values[-1]:.4g}." for c in drawn)
    plot = Plot(lines, "step", report.metric)
    caption = "Rows of a long run are put together in buckets: the line is their median."
    content: list[Node] = [plot_figure("Over their steps", plot, wide=WIDE, summary=summary, caption=caption)]
    if rest:
        content.append(note(f"{len(rest)} further curves are in the table alone."))
    rows = table(_CURVES, report.curves, caption="First, last and best values", numbers=5)
    return whole_page(report.metric, header, [section("curves", "Curves", *content, rows)])


_CURVES: Final[Columns[Curve]] = (
    ("run", lambda row: clean(row.name)),
    ("rows", lambda row: f"{len(row.steps):,}"),
    ("first", lambda row: f"{row.values[0]:.4g}"),
    ("last", lambda row: f"{row.values[-1]:.4g}"),
    ("lowest", lambda row: f"{min(row.values):.4g}"),
    ("highest", lambda row: f"{max(row.values):.4g}"),
)
