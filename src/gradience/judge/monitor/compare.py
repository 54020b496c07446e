"""Compare several runs: their numbers, differences of their configurations, and their losses step by step."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.configs.training import objective_of
from gradience.errors import GradienceError, RecorderError
from gradience.importers.sources import MAX_RUNS
from gradience.judge.monitor import held_out_of, held_out_split, report_of
from gradience.judge.monitor.source import names_of, open_source, runs_in
from gradience.rules import excluded_rules
from gradience.rules.log import DETECTED
from gradience.rules.log.facts import DEFAULT_GAP, Series, sorted_by_step
from gradience.rules.log.statistics import median
from gradience.schema import Json, number_in, real
from gradience.schema.compare import (
    COMPARE_SCHEMA_ID,
    AlignedRow,
    ComparedRun,
    CompareReport,
    ConfigDifference,
    UnreadRun,
)
from gradience.schema.document import FindingRef
from gradience.schema.reports import MonitorReport

_ROWS: Final = 12  # rows of the table by step
_SETS: Final = {"target_modules", "modules_to_save"}  # lists whose order means nothing
_SHORT: Final = 8  # characters of a run id shown in a run's name


class _Column(NamedTuple):
    steps: Sequence[int]  # rising
    losses: Sequence[float]

    def between(self, after: int, upto: int) -> list[float]:
        """The finite losses logged after step `after` and up to step `upto`."""
        part = self.losses[bisect_right(self.steps, after) : bisect_right(self.steps, upto)]
        return list(filter(math.isfinite, part))


class _Run(NamedTuple):
    path: Path
    report: MonitorReport
    train: _Column
    held_out: _Column  # of the split that the report shows


def compare_runs(
    paths: Sequence[str | os.PathLike[str]],
    *,
    gap_threshold: float = DEFAULT_GAP,
    all_runs: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: str | os.PathLike[str] | None = None,
) -> CompareReport:
    """Compare several runs.

    Args:
        paths: logs, folders of a run, folders of runs, or anything that `gradience import` reads.
        gap_threshold: held-out over train perplexity from which the gap is a finding.
        all_runs: every run of a log that holds several, not only the last.
        select: ids of detectors, or beginnings of ids, to apply; all by default.
        ignore: ids of detectors, or beginnings of ids, to leave out.
        settings: a file with settings, as for `monitor_run`.

    Raises:
        ConfigError: an id is not known, or the settings cannot be read.
        RecorderError: a path is missing or holds no run. Within a folder of runs such a log is listed as unread.
        SchemaError: a log is of another major version.
    """
    left_out = excluded_rules(DETECTED, select=select, ignore=ignore, settings=settings)
    runs: list[_Run] = []
    unread: list[UnreadRun] = []
    folders = [runs_in(given) for given in paths]
    for members in folders:
        for path in members:
            try:
                runs += _read(path, gap_threshold, left_out, all_runs=all_runs)
            except GradienceError as error:
                if len(members) == 1:
                    raise
                unread.append(UnreadRun(file=str(path), reason=str(error)))
    if not runs:
        raise RecorderError(f"no run could be read: {unread[0].file}: {unread[0].reason}")
    return CompareReport(
        schema=COMPARE_SCHEMA_ID,
        runs=[_column(name, run) for name, run in zip(_names(runs), runs, strict=True)],
        differences=_differences([run.report for run in runs]),
        aligned=list(_aligned(runs)),
        unread=unread,
        notes=[*_cut_short(folders), *_notes([run.report for run in runs])],
    )


def _read(path: Path, gap_threshold: float, left_out: Mapping[str, str], *, all_runs: bool) -> Iterator[_Run]:
    source = open_source(path)
    chosen = list(source.summary.runs.values())
    for series in chosen if all_runs else chosen[-1:]:
        report = report_of(source, series, gap_threshold=gap_threshold, left_out=left_out)
        rows = sorted_by_step(Series(series.steps, series.losses, (), in_order=not series.record.out_of_order))
        curve = series.losses_of(held_out_split(report))
        yield _Run(source.path, report, _Column(rows.steps, rows.losses), _Column(list(curve), list(curve.values())))


def _names(runs: Sequence[_Run]) -> list[str]:
    paths = list(dict.fromkeys(run.path for run in runs))
    short = dict(zip(paths, names_of(paths), strict=True))
    several = {path for path in paths if sum(run.path == path for run in runs) > 1}
    names = [
        f"{short[run.path]}#{str(run.report.run_id)[:_SHORT]}" if run.path in several else short[run.path]
        for run in runs
    ]
    if len(set(names)) < len(names):  # run ids begin alike, or a log was given twice
        names = [f"{number}:{name}" for number, name in enumerate(names, 1)]
    return names


def _column(name: str, run: _Run) -> ComparedRun:
    report, train = run.report, run.report.train
    point = held_out_of(report.evals)
    best = min(zip(run.held_out.losses, run.held_out.steps, strict=True), default=None)
    lora = report.config.lora
    return ComparedRun(
        name=name,
        file=report.file,
        run_id=report.run_id,
        story=report.story,
        status=report.status,
        rows=train.rows,
        last_step=train.last_step,
        max_steps=report.config.training.planned_steps,
        first_loss=train.first_loss,
        last_loss=train.last_loss,
        min_loss=train.min_loss,
        min_loss_step=train.min_loss_step,
        split=point.split if point else None,
        eval_loss=point.metrics.loss if point else None,
        best_eval_loss=best[0] if best else None,
        best_eval_step=best[1] if best else None,
        accuracy=point.metrics.accuracy if point else None,
        gap=report.gap.ratio if report.gap else None,
        signals={name: signal.last for name, signal in report.signals.items()},
        lr=report.account.schedule.peak,
        r=lora.r,
        alpha=lora.alpha,
        utilization_mean=number_in(report.lora_audit or {}, "utilization_mean"),
        duration_s=train.duration_s,
        findings=[FindingRef(id=f.id, severity=f.severity, message=f.message) for f in report.findings],
    )


def _differences(reports: Sequence[MonitorReport]) -> list[ConfigDifference]:
    """The settings of which two runs recorded different values: one that a run did not record may be the same."""
    columns = _settings(reports)
    return [ConfigDifference(key=key, values=values) for key, values in columns.items() if _differ(values)]


def _settings(reports: Sequence[MonitorReport]) -> dict[str, list[Json]]:
    """Every setting that a run recorded, with one value per run, None where it is not recorded."""
    flat = [dict(_flat(msgspec.to_builtins(report.config))) for report in reports]
    return {key: [each.get(key) for each in flat] for key in sorted({key for each in flat for key in each})}


def _differ(values: Iterable[Json]) -> bool:
    recorded = [value for value in values if value is not None]
    return any(value != recorded[0] for value in recorded)


def _flat(node: dict[str, Json], above: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        elif value not in ({}, []):  # nothing recorded
            unordered = key in _SETS and isinstance(value, list)
            yield f"{above}{key}", sorted(map(str, value)) if unordered else value


def _aligned(runs: Sequence[_Run]) -> Iterator[AlignedRow]:
    last = max((run.train.steps[-1] for run in runs if run.train.steps), default=0)
    sides = [run.train for run in runs], [run.held_out for run in runs]
    before = -1
    for step in sorted({math.ceil(last * part / _ROWS) for part in range(1, _ROWS + 1)} - {0}):
        trained, measured = ([column.between(before, step) for column in columns] for columns in sides)
        yield AlignedRow(
            step=step,
            train=[real(median(losses)) if losses else None for losses in trained],
            held_out=[real(losses[-1]) if losses else None for losses in measured],
        )
        before = step


def _cut_short(folders: Sequence[Sequence[Path]]) -> Iterator[str]:
    if any(len(members) == MAX_RUNS for members in folders):
        yield f"of a folder the first {MAX_RUNS} runs are read; there may be more"


def _notes(reports: Sequence[MonitorReport]) -> Iterator[str]:
    """Notes on why the losses may not be comparable."""
    asked: dict[str, set[str | None]] = {
        "models": {report.config.model_name for report in reports},
        "data sets": {report.config.dataset_name for report in reports},
        "objectives": {kind for report in reports if (kind := objective_of(report.config).kind) != "unknown"},
        "held-out splits": {held_out_split(report) for report in reports},
    }
    apart = [name for name, values in asked.items() if len(values - {None}) > 1]
    if apart:
        yield f"the runs differ in {' and '.join(apart)}: their losses may not be comparable"
    of_some = [values for values in _settings(reports).values() if None in values and not _differ(values)]
    if of_some:
        yield f"settings that only some of the runs recorded, and that were not compared: {len(of_some)}"
    known = {report.config.dataset_name for report in reports} - {None}
    if not known:
        yield "no log names its data set: whether the losses are comparable is for you to say"
