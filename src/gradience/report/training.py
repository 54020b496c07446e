"""The section about the training: loss, learning rate, gradient norm, evaluations."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from gradience.render.text import number, percent
from gradience.report.axis import Axis, y_axis
from gradience.report.envelope import Envelope, envelope
from gradience.report.gather import Story
from gradience.report.markup import Element, tag
from gradience.report.numbered import Numbered, marks_of
from gradience.report.pieces import caption_of, plot_figure, section, table
from gradience.report.plot import STYLES, WIDE, Line, Plot
from gradience.schema.diagnose import BestCheckpoint, Checkpoint, DiagnoseReport
from gradience.schema.events import Eval
from gradience.schema.scalars import Real, as_float
from gradience.telemetry.series import RunSeries

__all__ = ["training_section"]

_TRAIN: Final = "training rows"
_CLOSE: Final = (0.5, 99.5)  # percentiles of the rows that a close-up shows
_FAR: Final = 3.0  # whole range over that of the percentiles from which a close-up is drawn


def training_section(story: Story, found: Sequence[Numbered]) -> Element | None:
    """Return the curves of the run with its findings at their steps, or None where there was no log."""
    run = story.series
    if run is None:
        return None
    figures = [*_loss(run, found), *_others(run, found)]
    empty = None if figures else tag("p", "The log holds no training row and no evaluation.")
    return section(
        "training",
        "Training",
        empty,
        tag("div", figures, class_="figures"),
        _evaluations(run),
        _checkpoints(story.diagnosis),
    )


def _loss(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    train = envelope(run.steps, run.losses)
    lines = [Line(_TRAIN, train)] if len(run.steps) else []
    lines += [Line(f"{split}, evaluated", data, points=True) for split, data in _by_split(run, "loss").items()]
    if not lines:
        return
    left_out = len(lines) - STYLES
    captions = [caption_of("Training loss", train)] if len(run.steps) else []
    captions += [f"Superseded by a resume and not shown: {run.superseded:,} rows."] if run.superseded else []
    captions += [f"{left_out} further splits are in the table only."] if left_out > 0 else []
    plot = Plot(lines[:STYLES], "step", "loss", marks_of(found))
    says = " ".join(_says(line) for line in plot.lines)
    yield plot_figure("Loss", plot, wide=WIDE, says=says, caption=" ".join(captions))
    span = _close_up(run.losses)
    if span is not None and not y_axis(plot).log:
        near = plot._replace(marks=(), span=span)
        words = _beyond(run.losses, y_axis(near))
        yield plot_figure("Loss, close up", near, wide=WIDE, says=words, caption=words)


def _close_up(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return what nearly all rows span, or None where the axis of all rows shows that well enough."""
    column = np.asarray(losses, np.float64)
    finite = column[np.isfinite(column)]
    if not len(finite):
        return None
    low, high = (float(x) for x in np.percentile(finite, _CLOSE))
    return (low, high) if 0.0 < (high - low) * _FAR < float(finite.max()) - float(finite.min()) else None


def _beyond(losses: Sequence[float], axis: Axis) -> str:
    column = np.asarray(losses, np.float64)
    beyond = int((np.isfinite(column) & ((column < axis.low) | (column > axis.high))).sum())
    rows = "1 training row lies" if beyond == 1 else f"{beyond:,} training rows lie"
    return f"The same, from {axis.low:.4g} to {axis.high:.4g}: {rows} beyond, drawn at the edge."


def _others(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    rate = Plot((), "step", "learning rate", marks_of(found, "LRS"), log=False, zero=True)
    norm = Plot((), "step", "norm before clipping", marks_of(found, "GRD"), zero=True)
    yield from _recorded(run, run.rates, "Learning rate", rate)
    yield from _recorded(run, run.grad_norms, "Gradient norm", norm, run.lost_norms)
    accuracy = [Line(split, data, points=True) for split, data in _by_split(run, "accuracy").items() if data.rows > 1]
    if accuracy:
        plot = Plot(accuracy[:STYLES], "step", "fraction correct", log=False)
        says = " ".join(_says(line) for line in plot.lines)
        yield plot_figure("Accuracy", plot, says=says, caption="Every evaluation is drawn.")


def _recorded(
    run: RunSeries, values: Sequence[float], title: str, plot: Plot, lost: Collection[int] = ()
) -> Iterator[Element]:
    """Yield a column's figure: NaN stands for rows without a value, unless it was recorded as such."""
    column = np.asarray(values, np.float64)
    there = ~np.isnan(column) | np.isin(run.steps, list(lost))
    if not there.any():
        return
    line = Line(title.lower(), envelope(np.asarray(run.steps)[there], column[there]))
    caption = caption_of(title, line.data, absent=int(len(column) - there.sum()))
    yield plot_figure(title, plot._replace(lines=[line]), says=_says(line), caption=caption)


def _by_split(run: RunSeries, name: str) -> dict[str, Envelope]:
    """Return an evaluated quantity of every split by step; of two at one step, the later."""
    points: dict[str, dict[int, float]] = {}
    for event in run.evals:
        value = _value(event, name)
        if value is not None and event.step is not None:
            points.setdefault(event.split, {})[event.step] = as_float(value)
    return {split: envelope(list(at), list(at.values())) for split, at in points.items()}


def _value(event: Eval, name: str) -> Real | None:
    return event.metrics.accuracy if name == "accuracy" else event.metrics.loss


def _says(line: Line) -> str:
    """Return what a line shows in a sentence, for those who do not see it."""
    data = line.data
    lost = f", {data.lost_rows} not finite" if data.lost_rows else ""
    if not data.rows:
        return f"{line.label}: no finite row{lost}."
    low, high = int(data.low.argmin()), int(data.high.argmax())
    return (
        f"{line.label}: {data.middle[0]:.4g} at step {data.steps[0]:.0f}, {data.middle[-1]:.4g} at step "
        f"{data.steps[-1]:.0f}; lowest {data.low[low]:.4g} near step {data.steps[low]:.0f}, highest "
        f"{data.high[high]:.4g} near step {data.steps[high]:.0f}{lost}."
    )


def _evaluations(run: RunSeries) -> Element | None:
    if not run.evals:
        return None
    splits: dict[str, list[Eval]] = {}
    for event in run.evals:
        splits.setdefault(event.split, []).append(event)
    rows = [_split_row(split, events) for split, events in splits.items()]
    head = ("Split", "Times", "Best loss", "at step", "Last loss", "Perplexity", "Accuracy", "Examples", "at step")
    return table(head, rows, caption="Evaluations by split: the lowest loss, and the newest evaluation", numbers=8)


def _split_row(split: str, events: Sequence[Eval]) -> list[str]:
    losses = [(as_float(e.metrics.loss), e.step) for e in events if e.metrics.loss is not None]
    finite = [pair for pair in losses if math.isfinite(pair[0])]
    best, at = min(finite, key=lambda pair: pair[0]) if finite else (None, None)
    last = events[-1]
    m = last.metrics
    ppl = math.exp(min(as_float(m.loss), 700.0)) if m.ppl is None and m.loss is not None else m.ppl
    counts = ["-" if n is None else f"{n:,}" for n in (at, m.n, last.step)]
    return [
        split,
        str(len(events)),
        number(best, ".4g"),
        counts[0],
        number(m.loss, ".4g"),
        number(ppl, ".4g"),
        percent(m.accuracy),
        *counts[1:],
    ]


def _checkpoints(report: DiagnoseReport) -> Element | None:
    best = report.best_checkpoint
    if not report.checkpoints:
        return None
    rows = [[c.name, f"{c.step:,}", number(c.loss, ".4g"), _standing(c, best)] for c in report.checkpoints]
    noise = "unknown" if best is None or best.noise is None else f"{best.noise:.2g} ({best.noise_from})"
    caption = f"Checkpoints with an adapter on disk; noise of one evaluation: {noise}"
    return table(("Checkpoint", "Step", "Held-out loss", "Standing"), rows, caption=caption)


def _standing(checkpoint: Checkpoint, best: BestCheckpoint | None) -> str:
    if best is not None and checkpoint.name == best.name:
        return "best"
    return "as good, within the noise" if checkpoint.tied else "-"
