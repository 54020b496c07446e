"""The verb `runs curves`: one metric of several runs over their steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.io.paths import PathLike
from gradience.schema.runs import RUNS_CURVES_SCHEMA_ID, Curve, RunsCurvesReport
from gradience.schema.scalars import as_float
from gradience.telemetry.series import RunSeries
from gradience.schema.scalars import number_in
from gradience.verbs.monitor.source import names_of, open_source, runs_in

MOST_CURVES: Final = 26  # as many letters as there are


def run_curves(*paths: PathLike, metric: str = "train/loss") -> RunsCurvesReport:
    """One metric of each run, by rising step; a step that was logged again counts as it went the last time.

    Args:
        paths: logs, folders of a run, or folders of runs; of a log with several runs the last is taken.
        metric: split and name, such as `eval/accuracy`; `train/loss`, `train/lr` and `train/grad_norm` are columns of
            training rows. Without a split, `train`.

    Raises:
        RecorderError: a path cannot be read, no run has the metric, or there are more than 26.
    """
    places = [place for path in paths for place in runs_in(path)]
    if not 0 < len(places) <= MOST_CURVES:
        raise RecorderError(f"expected 1 to {MOST_CURVES} runs, got {len(places)}", advice="give fewer, by name")
    curves = [_curve(name, place, metric) for name, place in zip(names_of(places), places, strict=True)]
    drawn = [curve for curve in curves if curve.steps]
    if not drawn:
        raise RecorderError(f"no run has {metric[:60]!r}", advice="see 'gradience runs query ROOT --named metrics'")
    return RunsCurvesReport(schema=RUNS_CURVES_SCHEMA_ID, metric=metric, curves=drawn)


def _curve(name: str, place: Path, metric: str) -> Curve:
    series = open_source(place).summary.last
    assert series is not None  # noqa: S101  # open_source refuses a source without a run
    points = {step: value for step, value in _points(series, metric) if math.isfinite(value)}
    steps = sorted(points)
    return Curve(
        name=name, path=str(place), run=series.run_id, steps=steps, values=[points[step] for step in steps]
    )


def _points(series: RunSeries, metric: str) -> Iterator[tuple[int, float]]:
    split, _, name = metric.rpartition("/")
    columns = {"loss": series.losses, "lr": series.rates, "grad_norm": series.grad_norms}
    if split in {"", "train"} and name in columns:
        yield from zip(series.steps, columns[name], strict=False)
    for event in series.evals:
        if event.split != (split or "train") or event.step is None:
            continue
        known = {"loss": event.metrics.loss, "ppl": event.metrics.ppl, "accuracy": event.metrics.accuracy}
        value = known[name] if name in known else number_in(event.metrics.extras, name)
        if value is not None:
            yield event.step, as_float(value)
