"""Find the logs of many runs, read each once into a store of files in open formats, and list, compare and query them.

`collect` finds and reads the logs, `rows` has the table's columns, `best` ranks runs by a metric. This file has the
other queries: a list with columns, order and condition; SQL; and curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from gradience.errors import GradienceError, RecorderError
from gradience.folder.runs import names_of, run_list
from gradience.io import PathLike
from gradience.schema import Real, as_float, number_in
from gradience.schema.events import EvalMetrics
from gradience.schema.fleet import RUN_SETTINGS, RUNS_CURVES_SCHEMA_ID, Curve, QueryReport, RunRow, RunsCurvesReport
from gradience.tables.query import select
from gradience.tables.store import Store
from gradience.telemetry.series import RunSeries

COLUMNS: Final = (
    *("path", "run", "model", "data", "status", "verdict", "r", "lr", "steps", "first_loss", "last_loss"),
    *("best_eval_loss", "eval_accuracy", "findings"),
)
BOARD: Final = (
    *("path", "run", "status", "story", "steps", "first_loss", "last_loss", "best_eval_loss", "eval_accuracy"),
    *("error", "split", *RUN_SETTINGS),
)
KNOWN: Final = frozenset(RunRow.__struct_fields__)

MOST_CURVES: Final = 26  # one letter for each


def list_runs(
    store: Store, *, columns: Sequence[str] = COLUMNS, where: str | None = None, sort: str = "path"
) -> QueryReport:
    """List the runs, one row each.

    Args:
        store: the store that `collect_runs` returned.
        columns: names of columns of `runs`.
        where: a condition in SQL, such as `r = 8 and status = 'ok'`.
        sort: a column; with a minus before it, largest first. Runs without a value come last.

    Raises:
        GradienceError: a column is unknown, or the condition is wrong.
    """
    return select(store, list_sql(columns, where, sort))


def list_sql(columns: Sequence[str], where: str | None, sort: str) -> str:
    """The SQL query of `list_runs`.

    Raises:
        GradienceError: a column is unknown.
    """
    descending, column = sort.startswith("-"), sort.removeprefix("-")
    refuse_unknown_columns([*(columns or [""]), column])
    order = f"{column} {'desc' if descending else 'asc'} nulls last, path, run"
    # The line break ends a comment in the user's condition, which would swallow the bracket.
    return f"select {', '.join(columns)} from runs where ({where or 'true'}\n) order by {order}"  # noqa: S608  # checked


def refuse_unknown_columns(columns: Iterable[str]) -> None:
    """Refuse names that are no columns of `runs`.

    Raises:
        GradienceError: a name is none.
    """
    unknown = [name or "''" for name in columns if name not in KNOWN]
    if unknown:
        names = ", ".join(RunRow.__struct_fields__)
        raise GradienceError(f"no column is called {', '.join(unknown)[:60]}", advice=f"there are {names}")


def run_curves(*paths: PathLike, metric: str = "train/loss") -> RunsCurvesReport:
    """One metric of each run, by rising step. If a step was logged twice, the last value counts.

    Args:
        paths: logs, folders of a run, or folders of runs. From a log with several runs the last run is taken.
        metric: split and name, such as `eval/accuracy`. Of the split `train`, the default, it is a column of training
            rows: `loss`, `lr`, `grad_norm`, `mean_token_accuracy`, `entropy`, `reward`, or another signal of RL.

    Raises:
        RecorderError: a path cannot be read, no run has the metric, or there are no runs or more than 26.
    """
    runs = [(place, listed) for listed in map(run_list, paths) for place in listed.places]
    if not 0 < len(runs) <= MOST_CURVES:
        raise RecorderError(f"expected 1 to {MOST_CURVES} runs, got {len(runs)}", advice="give fewer, by name")
    names = names_of([place for place, _ in runs])
    curves = [_curve(name, at, listed.read(at).run, metric) for name, (at, listed) in zip(names, runs, strict=True)]
    drawn = [curve for curve in curves if curve.steps]
    if not drawn:
        raise RecorderError(
            f"no run has {metric[:60]!r}", advice='ask: runs query ROOT "select distinct metric from evals"'
        )
    without = [curve.name for curve in curves if not curve.steps]
    return RunsCurvesReport(schema=RUNS_CURVES_SCHEMA_ID, metric=metric, curves=drawn, not_drawn=without)


def _curve(name: str, place: Path, series: RunSeries, metric: str) -> Curve:
    points = {step: value for step, value in _points(series, metric) if math.isfinite(value)}
    steps = sorted(points)
    return Curve(name=name, path=str(place), run=series.run_id, steps=steps, values=[points[step] for step in steps])


def _points(series: RunSeries, metric: str) -> Iterator[tuple[int, float]]:
    split, _, name = metric.rpartition("/")
    columns = {"loss": series.losses, "lr": series.rates, "grad_norm": series.grad_norms}
    if split in {"", "train"} and name in columns:
        yield from zip(series.steps, columns[name], strict=False)
    elif split in {"", "train"} and name in series.columns:
        yield from zip(series.columns[name].steps, series.columns[name].values, strict=True)
    for event in series.evals:
        if event.split != (split or "train") or event.step is None:
            continue
        value = measured(event.metrics).get(name)
        if value is not None:
            yield event.step, as_float(value)


def measured(metrics: EvalMetrics) -> dict[str, Real | None]:
    """The numbers of an evaluation by their names; None where there is none."""
    known = {"loss": metrics.loss, "ppl": metrics.ppl, "accuracy": metrics.accuracy}
    return known | {name: number_in(metrics.extras, name) for name in metrics.extras}
