"""Reports on many runs as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.plots import LETTERS, curves_lines
from gradience.render.text import Columns, banner, clean, counted, labelled, table
from gradience.schema.fleet import Counted
from gradience.schema.runs import BestRun, RunsBestReport, RunsCurvesReport, RunsShowReport

_LISTED: Final = 8


def runs_show_text(report: RunsShowReport) -> str:
    """Many runs for a terminal."""
    return "\n".join(_show(report))


def _show(report: RunsShowReport) -> Iterator[str]:
    yield from banner("GRADIENCE RUNS")
    yield f"{counted(report.runs, 'run')}, {counted(report.training_rows, 'training row')}, {report.hours:.1f} hours"
    groups = {
        "Models": report.models,
        "Data": report.data,
        "Objectives": report.objectives,
        "Status": report.statuses,
        "Gravest": report.verdicts,
        "Findings": report.findings,
    }
    yield from labelled((name, counts_text(items)) for name, items in groups.items() if items)
    if report.unread:
        yield ""
        yield "Not read:"
        yield from (f"  {clean(log.path)}: {clean(log.error)}" for log in report.unread)


def counts_text(items: Sequence[Counted]) -> str:
    """Values with their counts, the most frequent first."""
    shown = ", ".join(f"{clean(item.value)} {item.adapters:,}" for item in items[:_LISTED])
    return shown + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")


def runs_best_text(report: RunsBestReport) -> str:
    """The best run of each group for a terminal."""
    title = f"{report.goal.capitalize()} {clean(report.metric)}{f' by {report.by}' if report.by else ''}"
    columns = _BEST if report.by else _BEST[1:]
    return "\n".join([title, *table(columns, report.best)])


_BEST: Final[Columns[BestRun]] = (
    ("group", "<24", lambda one: clean(one.group)),
    ("runs", ">5", lambda one: str(one.runs)),
    ("best", ">10", lambda one: f"{one.value:.4g}"),
    ("step", ">8", lambda one: "-" if one.step is None else str(one.step)),
    ("last", ">10", lambda one: f"{one.last:.4g}"),
    ("run", "", lambda one: clean(one.path)),
)


def runs_curves_text(report: RunsCurvesReport, *, width: int = 72) -> str:
    """The curves for a terminal, each run by a letter."""
    points = [list(zip(curve.steps, curve.values, strict=True)) for curve in report.curves]
    legend = (
        f"  {letter} {clean(curve.name)}: {curve.values[0]:.4g} -> {curve.values[-1]:.4g} at step {curve.steps[-1]}"
        for letter, curve in zip(LETTERS, report.curves, strict=False)
    )
    return "\n".join([clean(report.metric), *curves_lines(points, width=width), *legend])
