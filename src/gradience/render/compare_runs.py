"""Several runs as text: side by side while they fit, else a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gradience.render.text import banner, clean, number, percent
from gradience.schema.compare import AlignedRow, ComparedRun, CompareReport
from gradience.schema.findings import SEVERITIES
from gradience.schema.scalars import Json, NonFinite

__all__ = ["compare_text"]

_SIDE_BY_SIDE: Final = 4  # runs
_COLUMN: Final = 16
_LABEL: Final = 22
_NAME: Final = 28
_VALUE: Final = 40  # characters of a configuration's value
_GRAVE: Final = SEVERITIES.index("warning")


def compare_text(report: CompareReport, *, verbose: bool = False) -> str:
    """Return the comparison for a terminal; `verbose` adds each run's findings of severity info."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: CompareReport, *, verbose: bool) -> Iterator[str]:
    yield from banner(f"GRADIENCE MONITOR: {len(report.runs)} RUNS")
    if len(report.runs) <= _SIDE_BY_SIDE:
        yield from _columns(report.runs)
        yield from _signals(report.runs)
    else:
        yield from _table(report.runs)
    yield ""
    yield "Stories:"
    for run in report.runs:
        yield f"  {clean(run.name)}: {clean(run.story)}"
    yield ""
    yield from _differences(report)
    if len(report.runs) <= _SIDE_BY_SIDE:
        yield from _by_step("Training loss by step (medians up to it):", report, lambda row: row.train)
        yield from _by_step("Held-out loss by step (newest up to it):", report, lambda row: row.held_out)
    yield from _findings(report.runs, verbose=verbose)
    for unread in report.unread:
        yield f"Not read: {clean(unread.file)}: {clean(unread.reason)}"
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "One run of each is no experiment: a difference may be the seed's. Verify on held-out data."


def _steps(run: ComparedRun) -> str:
    if run.last_step is None:
        return "-"
    return f"{run.last_step} of {run.max_steps}" if run.max_steps else str(run.last_step)


def _at(value: float | NonFinite | None, step: int | None) -> str:
    return "-" if value is None else f"{number(value, '.4g')} @ {step}"


def _counted(run: ComparedRun) -> str:
    grave = [f.id for f in run.findings if SEVERITIES.index(f.severity) >= _GRAVE]
    return " ".join(grave[:2]) + (f" +{len(grave) - 2}" if len(grave) > 2 else "") if grave else "none grave"  # noqa: PLR2004  # what a column holds


_MEASURES: Final[dict[str, Callable[[ComparedRun], str]]] = {
    "Status": lambda run: run.status.replace("_", " "),
    "Step": _steps,
    "Loss, first": lambda run: number(run.first_loss, ".4g"),
    "Loss, last": lambda run: number(run.last_loss, ".4g"),
    "Loss, lowest": lambda run: _at(run.min_loss, run.min_loss_step),
    "Held-out loss, last": lambda run: number(run.eval_loss, ".4g"),
    "Held-out loss, best": lambda run: _at(run.best_eval_loss, run.best_eval_step),
    "Held-out accuracy": lambda run: percent(run.accuracy),
    "Gap": lambda run: "-" if run.gap is None else f"{number(run.gap)}x",
    "Peak LR": lambda run: number(run.lr, ".3g"),
    "r": lambda run: "-" if run.r is None else str(run.r),
    "alpha": lambda run: number(run.alpha, "g"),
    "Utilization": lambda run: percent(run.utilization_mean),
    "Findings": _counted,
}


def _columns(runs: Sequence[ComparedRun]) -> Iterator[str]:
    yield f"{'':<{_LABEL}}" + "".join(_cell(clean(run.name)) for run in runs)
    for label, measure in _MEASURES.items():
        cells = [clean(measure(run)) for run in runs]
        if any(cell != "-" for cell in cells):
            yield f"{label:<{_LABEL}}" + "".join(map(_cell, cells))


def _signals(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for name in sorted({name for run in runs for name in run.signals}):
        cells = "".join(_cell(number(run.signals.get(name), ".4g")) for run in runs)
        yield f"{_cut(clean(name), _LABEL - 1):<{_LABEL}}{cells}"


def _cell(text: str) -> str:
    return f"  {_cut(text, _COLUMN):>{_COLUMN}}"


def _cut(text: str, width: int) -> str:
    """Return the text's end where it is too long: names of runs differ there."""
    return text if len(text) <= width else ".." + text[2 - width :]


def _table(runs: Sequence[ComparedRun]) -> Iterator[str]:
    head = f"{'run':<{_NAME}} {'step':>12} {'loss':>9} {'held-out':>9} {'best':>9} {'gap':>7} {'lr':>8} {'r':>4}"
    yield f"{head}  status, findings"
    for run in runs:
        gap = "-" if run.gap is None else f"{number(run.gap)}x"
        grave = _counted(run)
        yield (
            f"{_cut(clean(run.name), _NAME):<{_NAME}} {_steps(run):>12} {number(run.last_loss, '.4g'):>9}"
            f" {number(run.eval_loss, '.4g'):>9} {number(run.best_eval_loss, '.4g'):>9} {gap:>7}"
            f" {number(run.lr, '.3g'):>8} {'-' if run.r is None else run.r:>4}"
            f"  {run.status.replace('_', ' ')}" + ("" if grave == "none grave" else f", {grave}")
        )


def _differences(report: CompareReport) -> Iterator[str]:
    if not report.differences:
        yield "Configuration: the same in all runs, as far as recorded"
        yield ""
        return
    yield f"Configuration, what differs ({len(report.differences)}):"
    side_by_side = len(report.runs) <= _SIDE_BY_SIDE
    for item in report.differences:
        values = [_value(value) for value in item.values]
        if side_by_side and all(len(value) <= _COLUMN for value in values):
            yield f"  {clean(item.key):<{_LABEL - 2}}" + "".join(map(_cell, values))
        else:
            yield f"  {clean(item.key)}: {' | '.join(_cut(value, _VALUE) for value in dict.fromkeys(values))}"
    yield ""


def _value(value: Json) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else clean(str(value))


def _by_step(
    title: str, report: CompareReport, column: Callable[[AlignedRow], Sequence[float | NonFinite | None]]
) -> Iterator[str]:
    rows = [(row.step, column(row)) for row in report.aligned]
    rows = [(step, values) for step, values in rows if any(value is not None for value in values)]
    if not rows:
        return
    yield title
    for step, values in rows:
        yield f"  {step:<{_LABEL - 2}}" + "".join(_cell(number(value, ".4g")) for value in values)
    yield ""


def _findings(runs: Sequence[ComparedRun], *, verbose: bool) -> Iterator[str]:
    shown = [(run, f) for run in runs for f in run.findings if verbose or SEVERITIES.index(f.severity) >= _GRAVE]
    if not shown:
        return
    yield "Findings:"
    for run, finding in shown:
        yield f"  {clean(run.name)}  [{finding.severity.upper()}] {finding.id}: {clean(finding.message)}"
    yield ""
