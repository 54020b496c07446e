"""The reports on many runs as text: one screen, a line a run; everything else is a question in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from gradience.render import (
    Columns,
    as_text,
    banner,
    clean,
    counted,
    duration,
    labelled,
    listed,
    number,
    shorter,
    table,
)
from gradience.render.fleet import counts_text
from gradience.render.plots import LETTERS, curves_lines
from gradience.schema.fleet import (
    ComparableRuns,
    QueryReport,
    RankedRun,
    RunsBestReport,
    RunsCurvesReport,
    RunsShowReport,
)

_COLUMNS: Final = 100  # of a terminal
_NAME: Final = 26  # characters of a run's name
_USUAL: Final = "learns"
_UNREMARKABLE: Final = ("ok", "unknown")  # other programs' logs do not say how a run ended
_NOT_READ: Final = 5  # unreadable logs that are listed
_VALUES: Final = ("loss ", "eval loss", "eval accuracy", "no held-out signal")  # clauses that repeat a column


@as_text
def runs_show_text(report: RunsShowReport) -> Iterator[str]:
    """The overview of many runs for a terminal."""
    yield from banner("GRADIENCE RUNS")
    logged = f", {duration(report.hours * 3600)}" if report.hours else ""
    yield f"{counted(report.runs, 'run')}, {counted(report.training_rows, 'training row')}{logged}"
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


class _Listed(NamedTuple):
    """A row of the list of runs."""

    name: str
    row: dict[str, Any]


def brief(value: float | None) -> str:
    """A number with three significant digits, as people write it.

    >>> brief(0.000498333), brief(1.3147), brief(284.873), brief(2e-5), brief(None)
    ('4.98e-4', '1.31', '285', '2e-5', '-')
    """
    if value is None:
        return "-"
    if value and not 1e-2 <= abs(value) < 1e4:  # noqa: PLR2004  # between them three digits are short
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}"


_LIST: Final[Columns[_Listed]] = (
    ("run", f"<{_NAME}", lambda one: _ending(clean(one.name), _NAME)),
    ("lr", ">7", lambda one: brief(one.row["lr"])),
    ("steps", ">6", lambda one: number(one.row["steps"], "d")),
    ("loss", "<14", lambda one: f"{brief(one.row['first_loss'])} > {brief(one.row['last_loss'])}"),
    ("held out", ">8", lambda one: _held_out(one.row)),
    ("", "", lambda one: _told(one.row)),
)


@as_text
def runs_list_text(report: QueryReport, names: Sequence[str], *, most: int | None) -> Iterator[str]:
    """The runs for a terminal, a line each, and the logs that could not be read.

    Args:
        report: the rows, with the columns of `collect.runs.BOARD`.
        names: a short unique name for each row.
        most: how many runs to list; None for all.
    """
    columns = [column.name for column in report.columns]
    rows = [_Listed(name, dict(zip(columns, row, strict=True))) for name, row in zip(names, report.rows, strict=True)]
    runs, unread = ([one for one in rows if (one.row["error"] is None) == read] for read in (True, False))
    lines = [line.rstrip() for line in table(_LIST, runs, indent=0)]
    kept = None if most is None else most + 1  # the titles are a line
    yield from lines[:kept] if runs else ["no run could be read"]
    if most is not None and len(runs) > most:
        yield f"... and {len(runs) - most} more (--limit {len(runs)}; --wide and --columns show other columns)"
    if unread:
        yield f"{counted(len(unread), 'log')} not read:"
        yield from (f"  {clean(one.name)}: {clean(one.row['error'])}" for one in unread[:_NOT_READ])
        if len(unread) > _NOT_READ:
            yield f"  ... and {len(unread) - _NOT_READ} more (gradience runs query ROOT --named unreadable)"


def _ending(text: str, most: int) -> str:
    """The text; if it is longer than `most` characters, an ellipsis and its end."""
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _held_out(row: dict[str, Any]) -> str:
    """The newest held-out accuracy, or else the best held-out loss."""
    accuracy = row["eval_accuracy"]
    return brief(row["best_eval_loss"]) if accuracy is None else f"{accuracy:.1%}"


def _told(row: dict[str, Any]) -> str:
    """What the run's story says beside the numbers that have a column."""
    clauses = [part for part in clean(row["story"]).split("; ") if not part.startswith(_VALUES)]
    if len(clauses) > 1 and clauses[0] == _USUAL:
        del clauses[0]
    status = [] if row["status"] in _UNREMARKABLE else [clean(str(row["status"])).replace("_", " ")]
    used = sum(width + 2 for width in (_NAME, 7, 6, 14, 8))
    return shorter("; ".join([*status, *clauses]), _COLUMNS - used)


@as_text
def runs_best_text(report: RunsBestReport) -> Iterator[str]:
    """The best runs for a terminal: a block for each group of comparable runs."""
    word = "Lowest" if report.goal == "least" else "Highest"
    yield f"{word} {clean(report.metric)}{f' by {report.by}' if report.by else ''}"
    single = [group for group in report.groups if group.runs == 1]
    for group in report.groups:
        if group.runs > 1:
            yield ""
            yield from _group(group)
    if single:
        yield ""
        several = len(report.groups) > len(single)
        yield "Comparable with none of these:" if several else "No two runs are comparable:"
        yield from (f"  {brief(one.ranked[0].value):>8}  {_what(one)}: {_path(one)}" for one in single[:_SINGLE])
        if len(single) > _SINGLE:
            yield f"  ... and {len(single) - _SINGLE} more (--json)"
    if len(report.groups) > 1:
        yield ""
        yield "Runs of other data, objectives, numbers of examples or (for losses) models are not compared."


_SINGLE: Final = 8  # runs listed that can be compared with no other

_RANKED: Final[Columns[RankedRun]] = (
    ("best", ">8", lambda one: brief(one.value)),
    ("step", ">7", lambda one: number(one.step, "d")),
    ("last", ">8", lambda one: brief(one.last)),
    ("lr", ">7", lambda one: brief(one.lr)),
    ("r", ">4", lambda one: number(one.r, "d")),
    ("", "<6", lambda one: {None: "", True: "worse", False: "same"}[one.worse_than_noise]),
    ("run", "", lambda one: _ending(clean(one.name), 48)),
)


def _group(group: ComparableRuns) -> Iterator[str]:
    yield f"{_what(group)}: {counted(group.runs, 'run')}"
    yield from (line.rstrip() for line in table(_RANKED, group.ranked))
    if group.runs > len(group.ranked):
        yield f"  ... and {group.runs - len(group.ranked)} more (--limit)"
    yield f"  {_noise(group)}"


def _what(group: ComparableRuns) -> str:
    """What the runs of a group share."""
    parts = [
        clean(group.group),
        "data not recorded" if group.data is None else clean(group.data),
        "" if group.objective in {None, "unknown"} else clean(str(group.objective)),
        "" if group.model is None else clean(group.model),
        "" if group.examples is None else f"about {group.examples:,} examples",
    ]
    return ", ".join(part for part in parts if part)


def _path(group: ComparableRuns) -> str:
    return _ending(clean(group.ranked[0].path), 48)


def _noise(group: ComparableRuns) -> str:
    """How far apart two equally good runs of the group may be."""
    noise = group.noise
    if noise is None:
        return "no noise known: the same run with another seed would show how much a difference means"
    of = "runs that differ in their seed alone" if noise.source == "seeds" else "examples, taken as independent"
    return f"same: within {brief(noise.difference)} of the best, two standard deviations of {noise.n:,} {of}"


def runs_curves_text(report: RunsCurvesReport, *, width: int = 72) -> str:
    """The curves of several runs for a terminal, each run drawn with a letter."""
    points = [list(zip(curve.steps, curve.values, strict=True)) for curve in report.curves]
    legend = (
        f"  {letter} {clean(curve.name)}: {curve.values[0]:.4g} -> {curve.values[-1]:.4g} at step {curve.steps[-1]}"
        for letter, curve in zip(LETTERS, report.curves, strict=False)
    )
    lines = [clean(report.metric), *curves_lines(points, width=width), *legend]
    if report.not_drawn:
        lines.append(f"  not drawn, without this metric: {listed(report.not_drawn, 8)}")
    return "\n".join(lines)
