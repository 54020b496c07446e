"""The section about a bench: its verdict, a figure of loss against size with intervals, and a table, for each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from gradience.render.bench import (
    Row,
    contrast_line,
    direction,
    harm_cell,
    outcome_cell,
    rows_of,
    task_line,
    tolerance_words,
)
from gradience.render.html.markup import tag
from gradience.render.html.pieces import Columns, facts, note, plot_figure, section, table
from gradience.render.html.plot import Envelope, Line, Plot
from gradience.render.text import count, number, percent, sentence, words
from gradience.schema.compare import BenchReport, BenchTask
from gradience.schema.scalars import as_float

_CAPTION: Final = (
    "How much worse than the adapter each candidate is, by its size: a dot is the mean of the paired differences, "
    "the bar spans what is plausible with 95 % for all candidates at once. A bar that ends under the tolerance holds."
)

_COLUMNS: Final[Columns[Row]] = (
    ("Adapter", lambda row: row.candidate.name),
    ("How it was made", lambda row: row.candidate.made),
    ("Verdict", lambda row: outcome_cell(row.result)),
    ("Parameters", lambda row: count(row.candidate.params)),
    ("Share", lambda row: "-" if row.candidate.share is None else f"{row.candidate.share:.0%}"),
    ("Score", lambda row: number(row.result.score, ".4g")),
    ("Worse by [least, worst]", lambda row: harm_cell(row.result)),
    ("KL", lambda row: number(row.result.kl, ".2g")),
    ("Flips", lambda row: percent(row.result.flips)),
)


def bench_section(report: BenchReport | None) -> Element | None:
    """What was measured on held-out data, or None where nothing was."""
    if report is None:
        return None
    verdict = report.verdict
    return section(
        "bench",
        "Measured on held-out data",
        tag("p", tag("strong", words(verdict.state).upper()), f": {verdict.says}."),
        facts(
            [
                ("Metric", f"{report.metric.name} ({direction(report)})"),
                ("Tolerance", tolerance_words(report)),
                ("Paired by", report.metric.unit),
            ]
        ),
        [part for task in report.tasks for part in _task(report, task)],
        [note(f"{sentence(text)}.") for text in report.notes],
    )


def _task(report: BenchReport, task: BenchTask) -> Iterator[Element]:
    rows = rows_of(report, task)
    yield tag("p", f"{sentence(task_line(report, task))}.")
    line = contrast_line(task)
    if line is not None:
        yield note(line)
    drawn = [row for row in rows if row.candidate.role == "candidate" and row.result.worst is not None]
    if len({row.candidate.params for row in drawn}) > 1:  # else there is no size to draw it against
        yield tag("div", _figure(task, drawn), class_="figures")
    listed = table(_COLUMNS, rows, caption=f"Adapters on {task.name}", numbers=6)
    if listed is not None:
        yield listed


def _figure(task: BenchTask, rows: Sequence[Row]) -> Element:
    rows = sorted(rows, key=lambda row: row.candidate.params)
    sizes = [100.0 * (row.candidate.share or 0.0) for row in rows]
    low, middle, high = (
        np.array([as_float(v) for v in values if v is not None])
        for values in zip(*((r.result.low, r.result.harm, r.result.worst) for r in rows), strict=True)
    )
    bars = Envelope.of(sizes, low, middle, high, apart=True, sampled=True)
    edge = np.full(2, task.margin)
    ends = [min(*sizes, 0.0), max(*sizes, 100.0)]
    limit = Envelope.of(ends, edge, edge, edge, apart=False, sampled=False)
    lines = [Line("candidates", bars, points=True), Line("tolerance", limit)]
    plot = Plot(lines, "parameters, % of the adapter's", "worse than the adapter by", log=False)
    least = ", ".join(f"{row.candidate.name} {harm_cell(row.result)}" for row in rows)
    return plot_figure(
        f"Loss by size on {task.name}", plot, summary=f"Tolerance {task.margin:.3g}: {least}.", caption=_CAPTION
    )
