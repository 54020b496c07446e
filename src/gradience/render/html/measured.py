"""The sections about measurements: the run's curves and checkpoints, the data it was fed, and the results of a bench.

The section of the run has curves with the findings at their steps, evaluations by split, and checkpoints. The section
of a bench has its verdict, and for each task a figure of loss against size with intervals, and a table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from gradience.render import count, number, percent, sentence, words
from gradience.render.bench import (
    Row,
    contrast_line,
    direction,
    harm_cell,
    outcome_cell,
    rows_of,
    task_line,
    tolerance_words,
    unseen_line,
)
from gradience.render.html import Story, tag
from gradience.render.html.figures import NARROW, STYLES, WIDE, draw_bars
from gradience.render.html.pieces import (
    Columns,
    Numbered,
    caption_of,
    facts,
    figure,
    marks_of,
    note,
    plot_figure,
    section,
    table,
)
from gradience.render.html.plot import Axis, Envelope, Line, Plot, envelope, y_axis
from gradience.render.monitor import fed_rows, mark_cells, marks_title, perplexity
from gradience.schema import as_float
from gradience.schema.compare import BenchReport, BenchTask
from gradience.schema.diagnose import Checkpoint, DiagnoseReport
from gradience.schema.events import Eval
from gradience.schema.reports import LossKind
from gradience.telemetry.series import SPECTRAL, RunSeries

_CLOSE: Final = (2.0, 98.0)  # percentiles of the rows that a close-up shows
_PROBES: Final = {"update_norm": "Norm of the update", "stable_rank_mean": "Stable rank, mean over modules"}
_FAR: Final = 3.0  # a close-up is drawn if all rows span this many times the range of the percentiles

_MOST: Final = 200  # bars at most, because a log may come from another program

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


class LossFigures(NamedTuple):
    """The figure of the losses to begin with, and the one over their whole range if the first is a close-up."""

    first: Element | None
    whole: Element | None


def loss_figures(run: RunSeries, found: Sequence[Numbered]) -> LossFigures:
    """The curves of the losses with the findings at their steps; none without a loss.

    If a few rows lie so far off that they would flatten the curve, the first figure leaves them at its edge.
    """
    train = envelope(run.steps, run.losses)
    lines = [Line("training rows", train, smooth=True)] if len(run.steps) else []
    lines += [Line(f"{split}, evaluated", data, points=True) for split, data in _by_split(run, "loss").items()]
    if not lines:
        return LossFigures(None, None)
    left_out = len(lines) - STYLES
    captions = [caption_of("Training loss", train)] if len(run.steps) else []
    captions += [_smoothing(line) for line in lines if line.window]
    captions += [f"Superseded by a resume and not shown: {run.superseded:,} rows."] if run.superseded else []
    captions += [f"{left_out} further splits are in the table only."] if left_out > 0 else []
    plot = Plot(lines[:STYLES], "step", "loss", marks_of(found))
    summary, caption = _summary(plot.lines), " ".join(captions)
    span = _close_up(run.losses)
    if span is None or y_axis(plot).log:
        return LossFigures(_first(plot, summary, caption), None)
    near = plot._replace(span=span)
    beyond = _beyond(run.losses, y_axis(near))
    return LossFigures(
        _first(near, f"{summary} {beyond}", f"{beyond} {caption}"),
        plot_figure("Loss, all rows", plot._replace(marks=()), wide=WIDE, summary=summary, caption="The whole range."),
    )


def _first(plot: Plot, summary: str, caption: str) -> Element:
    return plot_figure("Loss", plot, wide=WIDE, summary=summary, caption=caption, heading="h2")


def training_section(story: Story, found: Sequence[Numbered], whole: Element | None) -> Element | None:
    """The other curves of the run with its findings at their steps, or None without a log.

    `whole` is a figure of the losses for this section, beside the one that the page begins with.
    """
    run = story.series
    if run is None:
        return None
    figures = [*(() if whole is None else (whole,)), *_others(run, found)]
    nothing = not figures and not len(run.steps) and not run.evals
    return section(
        "training",
        "Training",
        tag("p", "The log holds no training row and no evaluation.") if nothing else None,
        tag("div", figures, class_="figures"),
        _evaluations(run, "unknown" if story.diagnosis.monitor is None else story.diagnosis.monitor.account.loss),
        _marks(story.diagnosis),
        _checkpoints(story.diagnosis),
    )


def _smoothing(line: Line) -> str:
    of = "buckets" if line.data.sampled else "rows"
    return f"The strong line is the running median of {line.window} {of}; the faint one is not smoothed."


def _close_up(losses: Sequence[float]) -> tuple[float, float] | None:
    """The span of nearly all rows, or None if the axis of all rows already shows it well."""
    column = np.asarray(losses, np.float64)
    finite = column[np.isfinite(column)]
    if not len(finite):
        return None
    low, high = (4 * float(x) for x in np.percentile(finite / 4, _CLOSE))  # / 4: 1e308 - -1e308 would overflow
    return (low, high) if 0.0 < (high - low) * _FAR < float(np.max(finite)) - float(np.min(finite)) else None


def _beyond(losses: Sequence[float], axis: Axis) -> str:
    column = np.asarray(losses, np.float64)
    beyond = int((np.isfinite(column) & ((column < axis.low) | (column > axis.high))).sum())
    rows = "1 training row lies" if beyond == 1 else f"{beyond:,} training rows lie"
    return f"From {axis.low:.4g} to {axis.high:.4g}: {rows} beyond, drawn at the edge."


def _others(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    rate = Plot((), "step", "learning rate", marks_of(found, "LRS"), log=False, zero=True)
    norm = Plot((), "step", "norm before clipping", marks_of(found, "GRD"), zero=True)
    yield from _recorded(run, run.rates, "Learning rate", rate)
    yield from _recorded(run, run.grad_norms, "Gradient norm", norm, run.lost_norms)
    for name, title in _PROBES.items():
        column = run.columns.get(f"{SPECTRAL}/{name}")
        if column is not None and column.steps:
            lines = [Line(title.lower(), envelope(column.steps, column.values), points=True)]
            plot = Plot(lines, "step", title.lower(), log=False, zero=True)
            yield plot_figure(title, plot, summary=_summary(lines), caption=caption_of(title, lines[0].data))
    accuracy = [Line(split, data, points=True) for split, data in _by_split(run, "accuracy").items() if data.rows > 1]
    if accuracy:
        plot = Plot(accuracy[:STYLES], "step", "fraction correct", log=False)
        yield plot_figure("Accuracy", plot, summary=_summary(plot.lines), caption="Every evaluation is drawn.")


def _recorded(
    run: RunSeries, values: Sequence[float], title: str, plot: Plot, lost: Collection[int] = ()
) -> Iterator[Element]:
    """A column's figure, if it has values. NaN means a row without a value, unless its step is in `lost`."""
    column = np.asarray(values, np.float64)
    there = ~np.isnan(column) | np.isin(run.steps, list(lost))
    if there.any():
        data = envelope(np.asarray(run.steps)[there], column[there])
        lines = [Line(title.lower(), data, smooth=title == "Gradient norm")]
        caption = caption_of(title, data, absent=int(len(column) - there.sum()))
        caption += f" {_smoothing(lines[0])}" if lines[0].window else ""
        yield plot_figure(title, plot._replace(lines=lines), summary=_summary(lines), caption=caption)


def _by_split(run: RunSeries, name: str) -> dict[str, Envelope]:
    """An evaluated quantity by split and step; of two values at one step, the later one."""
    points: dict[str, dict[int, float]] = {}
    for event in run.evals:
        value = event.metrics.accuracy if name == "accuracy" else event.metrics.loss
        if value is not None and event.step is not None:
            points.setdefault(event.split, {})[event.step] = as_float(value)
    return {split: envelope(list(at), list(at.values())) for split, at in points.items()}


def _summary(lines: Sequence[Line]) -> str:
    """A sentence for each line about what it shows."""
    return " ".join(map(_line_summary, lines))


def _line_summary(line: Line) -> str:
    data = line.data
    lost = f", {data.lost_rows} not finite" if data.lost_rows else ""
    if not data.rows:
        return f"{line.label}: no finite row{lost}."
    low, high = int(np.argmin(data.low)), int(np.argmax(data.high))
    return (
        f"{line.label}: {data.middle[0]:.4g} at step {data.steps[0]:.0f}, {data.middle[-1]:.4g} at step "
        f"{data.steps[-1]:.0f}; lowest {data.low[low]:.4g} near step {data.steps[low]:.0f}, highest "
        f"{data.high[high]:.4g} near step {data.steps[high]:.0f}{lost}."
    )


_LAST_LOSS: Final = 5  # columns before that of the perplexity
_EVALUATIONS: Final[Columns[Sequence[Eval]]] = (
    ("Split", lambda events: events[-1].split),
    ("Times", lambda events: str(len(events))),
    ("Best loss", lambda events: number(_best(events)[0], ".4g")),
    ("at step", lambda events: number(_best(events)[1], ",d")),
    ("Last loss", lambda events: number(events[-1].metrics.loss, ".4g")),
    ("Accuracy", lambda events: percent(events[-1].metrics.accuracy)),
    ("Examples", lambda events: number(events[-1].metrics.n, ",d")),
    ("at step", lambda events: number(events[-1].step, ",d")),
)


def _evaluations(run: RunSeries, loss: LossKind) -> Element | None:
    caption = "Evaluations by split: the lowest loss, and the newest evaluation"
    by_perplexity: Columns[Sequence[Eval]] = (
        ("Perplexity", lambda events: number(perplexity(events[-1].metrics, loss), ".4g")),
    )
    known = any(perplexity(event.metrics, loss) is not None for event in run.evals)
    columns = [*_EVALUATIONS[:_LAST_LOSS], *(by_perplexity if known else ()), *_EVALUATIONS[_LAST_LOSS:]]
    return table(columns, list(_events_by_split(run).values()), caption=caption, numbers=len(columns) - 1)


def _events_by_split(run: RunSeries) -> dict[str, list[Eval]]:
    splits: dict[str, list[Eval]] = {}
    for event in run.evals:
        splits.setdefault(event.split, []).append(event)
    return splits


def _best(events: Sequence[Eval]) -> tuple[float | None, int | None]:
    """The lowest finite loss with its step; (None, None) without one."""
    losses = [(as_float(e.metrics.loss), e.step) for e in events if e.metrics.loss is not None]
    return min((pair for pair in losses if math.isfinite(pair[0])), key=lambda pair: pair[0], default=(None, None))


def _marks(report: DiagnoseReport) -> Element | None:
    """The evaluations that the choice of weights rests on, or None for fewer than two."""
    marks = report.monitor.account.marks if report.monitor is not None else []
    titles = ("Step", "Loss", "Metric", "What it is")
    columns: Columns[tuple[str, ...]] = [(title, itemgetter(place)) for place, title in enumerate(titles)]
    return table(columns, [mark_cells(mark) for mark in marks], caption=marks_title(marks)) if marks else None


def _checkpoints(report: DiagnoseReport) -> Element | None:
    best = report.best_checkpoint
    noise = "unknown" if best is None or best.noise is None else f"{best.noise:.2g} ({best.noise_from})"
    tied = "as good, within the noise"
    columns: Columns[Checkpoint] = (
        ("Checkpoint", lambda c: c.name),
        ("Step", lambda c: f"{c.step:,}"),
        ("Held-out loss", lambda c: number(c.loss, ".4g")),
        ("Standing", lambda c: "best" if best and c.name == best.name else tied if c.tied else "-"),
    )
    caption = f"Checkpoints with an adapter on disk; noise of one evaluation: {noise}"
    return table(columns, report.checkpoints, caption=caption)


def data_section(story: Story) -> Element | None:
    """The section on what the model was fed, or None if that was not recorded."""
    report = story.diagnosis.monitor
    data = (report.data if report is not None else None) or {}
    rows = fed_rows(data)
    if not rows:
        return None
    columns = [("Count", itemgetter(0)), ("Value", itemgetter(1))]
    counts = table(columns, rows, caption="Of the micro-batches that the recorder watched")
    return section("data", "Data", counts, _lengths(data.get("announced")))


def _lengths(announced: object) -> Element | None:
    """The histogram of lengths that a check of the data recorded, or None without one."""
    counts: Mapping[str, Any] = announced if isinstance(announced, dict) else {}
    bins, width, limit = counts.get("bins"), counts.get("bin_width"), counts.get("max_length")
    if not isinstance(bins, list) or not all(isinstance(n, int) and n >= 0 for n in bins) or not any(bins):
        return None
    if not isinstance(width, int) or width < 1:
        return None
    cut = limit if isinstance(limit, int) and limit > 0 else None
    label = f"Tokens per sequence: {sum(bins):,} sequences, bars of {width:,} tokens."
    drawn = [draw_bars(bins[:_MOST], width, size, label, cut) for size in (WIDE, NARROW)]
    text = f"Sequences by their tokens before the cut, {width:,} tokens a bar; by `gradience check --data`."
    return figure("Tokens per sequence", drawn, caption=text, wide=True)


def bench_section(report: BenchReport | None) -> Element | None:
    """The section on what was measured on held-out data, or None without a bench."""
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
    yield from (note(line) for line in (contrast_line(task), unseen_line(task)) if line is not None)
    drawn = [row for row in rows if row.candidate.role == "candidate" and row.result.worst is not None]
    if len({row.candidate.params for row in drawn}) > 1:  # a single size gives no axis
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
