"""Figures of a run for a page: its curves, with the findings at their steps, and the curves of several runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.blocks import Figure
from gradience.blocks.html.figures import STYLES
from gradience.blocks.html.plot import Axis, Envelope, Mark, Plot, PlotLine, envelope, y_axis
from gradience.schema import as_float
from gradience.schema.diagnose import Cause
from gradience.schema.fleet import Curve
from gradience.telemetry.series import SPECTRAL, RunSeries
from gradience.telemetry.signals import ENTROPY, REWARD
from gradience.verbs.diagnose.view import steps_of

_CLOSE: Final = (2.0, 98.0)  # percentiles of the rows that a close-up shows
_SIGNALS: Final = {  # by title: unit, and the names under which it may be logged
    "Norm of the update": ("norm of the update", (f"{SPECTRAL}/update_norm",)),
    "Stable rank, mean over modules": ("stable rank, mean over modules", (f"{SPECTRAL}/stable_rank_mean",)),
    "Token accuracy": ("fraction of tokens right", ("mean_token_accuracy",)),
    "Entropy": ("nats a token", ENTROPY),
    "Reward": ("mean reward", REWARD),
}
_SHOWS: Final = 3  # windows of steps that show a curve
_FAR: Final = 3.0  # a close-up is drawn if all rows span this many times the range of the percentiles


class LossFigures(NamedTuple):
    """The figure of the losses to begin with, and the one over their whole range if the first is a close-up."""

    first: Figure | None
    whole: Figure | None


def loss_figures(run: RunSeries, causes: Sequence[Cause]) -> LossFigures:
    """The curves of the losses with the findings at their steps; none without a loss.

    If a few rows lie so far off that they would flatten the curve, the first figure leaves them at its edge.
    """
    train = envelope(run.steps, run.losses)
    lines = [PlotLine("training rows", train, smooth=True)] if len(run.steps) else []
    lines += [PlotLine(f"{split}, evaluated", data, points=True) for split, data in _by_split(run, "loss").items()]
    if not lines:
        return LossFigures(None, None)
    left_out = len(lines) - STYLES
    captions = [_caption_of("Training loss", train)] if len(run.steps) else []
    captions += [_smoothing(line) for line in lines if line.window]
    captions += [f"Superseded by a resume and not shown: {run.superseded:,} rows."] if run.superseded else []
    captions += [f"{left_out} further splits are in the table only."] if left_out > 0 else []
    plot = Plot(lines[:STYLES], "step", "loss", marks_of(causes))
    summary, caption = _summary(plot.lines), " ".join(captions)
    span = _close_up(run.losses)
    if span is None or y_axis(plot).log:
        return LossFigures(_first(plot, summary, caption), None)
    near = plot._replace(span=span)
    beyond = _beyond(run.losses, y_axis(near))
    return LossFigures(
        _first(near, f"{summary} {beyond}", f"{beyond} {caption}"),
        Figure("Loss, all rows", plot._replace(marks=()), wide=True, summary=summary, caption="The whole range."),
    )


def _first(plot: Plot, summary: str, caption: str) -> Figure:
    return Figure("Loss", plot, wide=True, summary=summary, caption=caption, first=True)


def training_figures(run: RunSeries, causes: Sequence[Cause]) -> Iterator[Figure]:
    """The other curves of the run with its findings at their steps."""
    rate = Plot((), "step", "learning rate", marks_of(causes, "LRS"), log=False, zero=True)
    norm = Plot((), "step", "norm before clipping", marks_of(causes, "GRD"), zero=True)
    yield from _recorded(run, run.rates, "Learning rate", rate)
    yield from _recorded(run, run.grad_norms, "Gradient norm", norm, run.lost_norms)
    for title, (unit, names) in _SIGNALS.items():
        column = next((run.columns[name] for name in names if name in run.columns and run.columns[name].steps), None)
        if column is not None:
            probed = names[0].startswith(SPECTRAL)
            plot = Plot((), "step", unit, log=False, zero=probed)
            yield _figure(title, envelope(column.steps, column.values), plot, points=probed, smooth=not probed)
    yield from _pace(run, causes)
    accuracy = [
        PlotLine(split, data, points=True) for split, data in _by_split(run, "accuracy").items() if data.rows > 1
    ]
    if accuracy:
        plot = Plot(accuracy[:STYLES], "step", "fraction correct", log=False)
        yield Figure("Accuracy", plot, summary=_summary(plot.lines), caption="Every evaluation is drawn.")


def _figure(title: str, data: Envelope, plot: Plot, *, absent: int = 0, caption: str = "", **look: bool) -> Figure:
    """A plot of one column, with the sentences on how its rows were drawn."""
    line = PlotLine(title.lower(), data, **look)
    drawn = [caption or _caption_of(title, data, absent=absent), *([_smoothing(line)] if line.window else [])]
    return Figure(title, plot._replace(lines=[line]), summary=_summary([line]), caption=" ".join(drawn))


def _pace(run: RunSeries, causes: Sequence[Cause]) -> Iterator[Figure]:
    """The curve of the seconds a step; none of fewer windows than show one."""
    timed = [one for one in run.paces if one.step is not None and one.seconds_per_step is not None]
    if len(timed) >= _SHOWS:
        data = envelope([one.step or 0 for one in timed], [as_float(one.seconds_per_step or 0.0) for one in timed])
        plot = Plot((), "step", "seconds a step", marks_of(causes, "CST"), log=False, zero=True)
        caption = "Each point is of the steps since the one before it, without evaluations."
        yield _figure("Seconds a step", data, plot, points=True, caption=caption)


def _recorded(
    run: RunSeries, values: Sequence[float], title: str, plot: Plot, lost: Collection[int] = ()
) -> Iterator[Figure]:
    """A column's figure, if it has values. NaN means a row without a value, unless its step is in `lost`."""
    column = np.asarray(values, np.float64)
    there = ~np.isnan(column) | np.isin(run.steps, list(lost))
    if there.any():
        data = envelope(np.asarray(run.steps)[there], column[there])
        yield _figure(title, data, plot, absent=int(len(column) - there.sum()), smooth=title == "Gradient norm")


def _by_split(run: RunSeries, name: str) -> dict[str, Envelope]:
    """An evaluated quantity by split and step; of two values at one step, the later one."""
    points: dict[str, dict[int, float]] = {}
    for event in run.evals:
        value = event.metrics.accuracy if name == "accuracy" else event.metrics.loss
        if value is not None and event.step is not None:
            points.setdefault(event.split, {})[event.step] = as_float(value)
    return {split: envelope(list(at), list(at.values())) for split, at in points.items()}


def _summary(lines: Sequence[PlotLine]) -> str:
    """A sentence for each line about what it shows."""
    return " ".join(map(_line_summary, lines))


def _line_summary(line: PlotLine) -> str:
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


def _smoothing(line: PlotLine) -> str:
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


def _caption_of(column: str, data: Envelope, *, absent: int = 0) -> str:
    """A sentence on how the rows of a column were drawn: in buckets or one by one, and how many are not finite."""
    total = data.rows + data.lost_rows
    if data.sampled:
        drawn = (
            f"{column}: {total:,} rows in {len(data.steps):,} buckets of steps, about {data.per_bucket:,} rows each. "
            "The line is each bucket's median, the band spans its lowest to its highest row: no spike is dropped."
        )
    else:
        drawn = f"{column}: {total:,} {'row' if total == 1 else 'rows'}, each drawn."
    if data.lost_rows:
        drawn += f" {data.lost_rows:,} of them {'is' if data.lost_rows == 1 else 'are'} not finite: crosses at the top."
    if absent:
        drawn += f" {absent:,} further rows have no value."
    return drawn


def marks_of(causes: Sequence[Cause], prefix: str = "") -> list[Mark]:
    """The marks, by step, of findings in the log whose id, or a piece's id, begins with the prefix."""
    marks = [
        Mark(number, step, cause.severity)
        for number, cause in enumerate(causes, 1)
        if any(piece.source == "log" for piece in cause.pieces)
        if any(rule.startswith(prefix) for rule in (cause.id, *(piece.id for piece in cause.pieces if piece.id)))
        for step in steps_of(cause)
    ]
    return sorted(marks, key=lambda mark: mark.step)


def curves_figure(curves: Sequence[Curve], metric: str) -> Figure:
    """The curves of several runs over each other."""
    drawn = curves[:STYLES]
    lines = [PlotLine(curve.name, envelope(curve.steps, curve.values)) for curve in drawn]
    summary = " ".join(f"{c.name} goes from {c.values[0]:.4g} to {c.values[-1]:.4g}." for c in drawn)
    caption = "Rows of a long run are put together in buckets: the line is their median."
    left = f" {len(curves) - STYLES} further curves are in the table alone." if len(curves) > STYLES else ""
    return Figure("Over their steps", Plot(lines, "step", metric), summary=summary, caption=caption + left, wide=True)
