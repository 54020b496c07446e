"""The section about the training: loss, learning rate, gradient norm, evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.render.text import number, percent
from gradience.report.chart import STYLES, WIDE, Line, Plot
from gradience.report.envelope import Envelope, Floats, envelope
from gradience.report.gather import Story
from gradience.report.markup import Element, tag
from gradience.report.numbered import Numbered, marks_of
from gradience.report.pieces import caption_of, plot_figure, section, table
from gradience.schema.events import Eval
from gradience.schema.scalars import Real, as_float
from gradience.telemetry.series import RunSeries

__all__ = ["training_section"]

_TRAIN: Final = "training loss"


class _Column(NamedTuple):
    """One column of the rows, where it was recorded."""

    data: Envelope
    absent: int  # rows without a value


def training_section(story: Story, found: Sequence[Numbered]) -> Element | None:
    """Return the curves of the run with its findings at their steps, or None where there was no log."""
    run = story.series
    if run is None:
        return None
    figures = [drawn for drawn in (_loss(run, found), *_others(run, found)) if drawn is not None]
    empty = None if figures else tag("p", "The log holds no training row and no evaluation.")
    return section("training", "Training", empty, tag("div", figures, class_="figures"), _evaluations(run))


def _loss(run: RunSeries, found: Sequence[Numbered]) -> Element | None:
    train = envelope(run.steps, run.losses)
    splits = {split: data for split, data in _by_split(run, "loss").items() if data.rows or data.lost_rows}
    lines = [Line(_TRAIN, train)] if len(run.steps) else []
    lines += [Line(f"{split} loss", data, points=True) for split, data in splits.items()]
    if not lines:
        return None
    left_out = len(lines) - STYLES
    captions = [caption_of("Training loss", train)] if len(run.steps) else []
    captions += [f"Superseded by a resume and not shown: {run.superseded:,} rows."] if run.superseded else []
    captions += [f"{left_out} further splits are in the table only."] if left_out > 0 else []
    plot = Plot(lines[:STYLES], "step", "loss", marks_of(found))
    says = " ".join(_says(line) for line in plot.lines)
    return plot_figure("Loss", plot, wide=WIDE, says=says, caption=" ".join(captions))


def _others(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    rate = _column(run, run.rates, np.zeros(len(run.steps), np.bool_))
    if rate is not None:
        plot = Plot(
            [Line("learning rate", rate.data)], "step", "learning rate", marks_of(found, "LRS"), log=False, zero=True
        )
        caption = caption_of("Learning rate", rate.data, absent=rate.absent)
        yield plot_figure("Learning rate", plot, says=_says(plot.lines[0]), caption=caption)
    norm = _column(run, run.grad_norms, np.isin(run.steps, list(run.lost_norms)))
    if norm is not None:
        plot = Plot(
            [Line("gradient norm", norm.data)], "step", "norm before clipping", marks_of(found, "GRD"), zero=True
        )
        caption = caption_of("Gradient norm", norm.data, absent=norm.absent)
        yield plot_figure("Gradient norm", plot, says=_says(plot.lines[0]), caption=caption)
    accuracy = [Line(split, data, points=True) for split, data in _by_split(run, "accuracy").items() if data.rows > 1]
    if accuracy:
        plot = Plot(accuracy[:STYLES], "step", "fraction correct", log=False)
        says = " ".join(_says(line) for line in plot.lines)
        yield plot_figure("Accuracy", plot, says=says, caption="Every evaluation is drawn.")


def _column(
    run: RunSeries, values: Sequence[float], lost: Floats | np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> _Column | None:
    """Return a column without the rows that have no value: NaN stands for those, unless it was recorded as such."""
    column = np.asarray(values, np.float64)
    recorded = ~np.isnan(column) | (lost != 0)
    if not recorded.any():
        return None
    data = envelope(np.asarray(run.steps)[recorded], column[recorded])
    return _Column(data, int(len(column) - recorded.sum()))


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
    rows = [
        _split_row(split, [e for e in run.evals if e.split == split])
        for split in dict.fromkeys(e.split for e in run.evals)
    ]
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
