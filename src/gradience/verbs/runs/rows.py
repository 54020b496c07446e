"""Rows of runs: the numbers of each run's report, in the columns of the table of runs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from gradience.errors import GradienceError, RecorderError
from gradience.folder.runs import RunList, run_list
from gradience.importers.sources import MAX_RUNS
from gradience.io import PathLike
from gradience.reading import Reading
from gradience.rules import excluded_rules
from gradience.rules.judged import ALL
from gradience.rules.log.account import rate_of_run
from gradience.rules.log.facts import DEFAULT_GAP, held_out_of
from gradience.schema import Json, number_in
from gradience.schema.document import by_severity
from gradience.schema.events import ConfigSnapshot
from gradience.schema.fleet import RunRow
from gradience.schema.reports import MonitorReport, Pace
from gradience.tables import number_column
from gradience.telemetry.series import RunSeries
from gradience.verbs.monitor.run import monitored

_NO_SETTING: Final = re.compile(
    r"seed|(?:^|_)(?:dir|file|id|name|names|notes|path|resumes|url)$"
)  # alike but for these


def read_rows(
    *paths: PathLike | RunList,
    gap_threshold: float = DEFAULT_GAP,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> list[RunRow]:
    """The rows of some logs, read now and kept nowhere.

    Args:
        paths: logs, folders of a run, or folders of runs, of which a log that cannot be read is a row with its error;
            or the runs of one, if they are listed already.
        gap_threshold: held-out over train perplexity from which the gap is a finding.
        select: ids of detectors, or beginnings of ids, to apply; all by default.
        ignore: ids of detectors, or beginnings of ids, to leave out.
        settings: a file with settings, as for `monitor_run`.

    Raises:
        ConfigError: an id is not known, or the settings cannot be read.
        RecorderError: a path that is one run cannot be read, no run can, or a folder has more than are looked for.
    """
    left_out = excluded_rules(ALL, select=select, ignore=ignore, settings=settings)
    rows: list[RunRow] = []
    for place in paths:
        runs = place if isinstance(place, RunList) else run_list(place)
        if len(runs.places) >= MAX_RUNS:
            folder = os.path.commonpath(runs.places)
            raise RecorderError(
                f"{folder}: {MAX_RUNS} runs or more", advice=f"'gradience runs {folder}' lists them all"
            )
        for path in runs.places:
            try:
                rows += _rows_of(runs.read(path), gap_threshold, left_out)
            except GradienceError as error:
                if len(runs.places) == 1:
                    raise
                rows.append(RunRow(path=str(path), error=" ".join(error.message.split())))
    if all(row.error for row in rows):
        raise RecorderError(f"no run could be read: {rows[0].path}: {rows[0].error}")
    return rows


def _rows_of(reading: Reading, gap_threshold: float, left_out: Mapping[str, str]) -> Iterator[RunRow]:
    for each in reading.of_each_run():
        report = monitored(each, gap_threshold=gap_threshold, left_out=left_out)
        yield run_row(str(each.path), each.run, report)


def run_row(path: str, series: RunSeries, report: MonitorReport, *, stamp: str = "", rules: str = "") -> RunRow:
    """The row of one run: what monitor reports of it, and for the store the versions of its files and of the rules."""
    config, train = report.config, report.train
    lora, loop = config.lora, config.training
    point = held_out_of(report.evals)
    loss = report.account.held_out_loss
    worst = next((finding.severity for finding in by_severity(report.findings)), "none")
    targets = lora.target_modules
    return RunRow(
        path=path,
        run=series.run_id,
        stamp=stamp,
        rules=rules,
        model=config.model_name,
        data=config.dataset_name,
        objective=report.objective,
        status=report.status,
        finished=report.account.ending.finished,
        settings=_digest(config),
        verdict=worst,
        findings=",".join(finding.id for finding in report.findings),
        story=report.story,
        r=lora.r if lora.r is not None and lora.r >= 0 else None,
        alpha=number_column(lora.alpha),
        targets=",".join(sorted(targets)) if isinstance(targets, list) else targets,
        peft_type=lora.peft_type,
        optimizer=config.optimizer.name,
        lr=rate_of_run(report.account.schedule),
        scheduler=loop.lr_scheduler,
        batch_size=loop.batch_size,
        seed=config.training.seed,
        epochs=number_column(loop.epochs),
        steps=train.last_step,
        max_steps=loop.planned_steps,
        rows=train.rows,
        first_loss=number_column(train.first_loss),
        last_loss=number_column(train.last_loss),
        best_loss=number_column(train.min_loss),
        best_loss_step=train.min_loss_step,
        split=point.split if point else None,
        eval_loss=number_column(point.metrics.loss) if point else None,
        best_eval_loss=loss.best if loss is not None else None,
        best_eval_step=loss.best_step if loss is not None else None,
        eval_accuracy=number_column(point.metrics.accuracy) if point else None,
        gap=number_column(report.gap.ratio) if report.gap else None,
        utilization_mean=number_in(report.lora_audit or {}, "utilization_mean"),
        started=series.first_ts,
        duration_s=train.duration_s,
        **_cost(report.pace or Pace(windows=0)),
    )


def _cost(pace: Pace) -> dict[str, Any]:
    """The columns of speed and memory."""
    rate = pace.tokens_per_second if pace.tokens_per_second is not None else pace.padded_tokens_per_second
    return {
        "seconds_per_step": number_column(pace.seconds_per_step),
        "waiting_share": number_column(pace.waiting_share),
        "tokens_per_second": number_column(rate),
        "padding_share": number_column(pace.padding_share),
        "peak_bytes": pace.reserved_bytes if pace.peak_bytes is None else pace.peak_bytes,
    }


def _digest(config: ConfigSnapshot) -> str:
    """A digest that is equal for configurations that differ in their seeds, names and notes alone."""
    settings = msgspec.json.encode(_settings(msgspec.to_builtins(config)), order="sorted")
    return hashlib.sha256(settings).hexdigest()[:12]


def _settings(held: Json) -> Json:
    if not isinstance(held, dict):
        return held
    return {key: _settings(value) for key, value in held.items() if not _NO_SETTING.search(key)}
