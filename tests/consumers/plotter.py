"""A program of a caller that reads a log: its losses as a line of an SVG, and what its settings say."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import gradience
from gradience.events import TrainStep, as_float


def losses(log: Path) -> list[tuple[int, float]]:
    """The step and loss of every row that has both."""
    found: list[tuple[int, float]] = []
    for row in gradience.TelemetryReader(log).of(TrainStep):
        loss = as_float(row.loss)
        if row.step is not None and loss is not None:
            found.append((row.step, loss))
    return found


def first_rate(row: TrainStep) -> float | None:
    """The learning rate of a row's first group."""
    return as_float(row.lr[0] if isinstance(row.lr, list) else row.lr)


def drawn(points: list[tuple[int, float]]) -> str:
    """The finite losses as a line."""
    line = " ".join(f"{step},{loss:g}" for step, loss in points if math.isfinite(loss))
    return f'<svg xmlns="http://www.w3.org/2000/svg"><polyline points="{line}"/></svg>'


if __name__ == "__main__":
    path = Path(sys.argv[1])
    try:
        print(drawn(losses(path)))
        print(*(first_rate(row) for row in gradience.TelemetryReader(path).of(TrainStep)))
        print(*(finding.id for finding in gradience.check_config(path, select=["LR"]).findings))
    except gradience.GradienceError as error:
        sys.exit(str(error))
