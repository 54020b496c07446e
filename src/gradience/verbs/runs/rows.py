"""One source of runs as rows: what monitor tells of each run, its training rows, its evaluations and its findings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.errors import GradienceError
from gradience.rules.objective import objective_of
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Eval
from gradience.schema.findings import by_severity
from gradience.schema.reports import MonitorReport
from gradience.schema.runs import RUNS_SCHEMA_ID, EvalRow, RunFindingRow, RunRow, StepRow
from gradience.schema.scalars import Real, as_float
from gradience.telemetry.series import RunSeries
from gradience.verbs.fleet.job import Job, encoded
from gradience.verbs.fleet.rows import number_column
from gradience.verbs.fleet.store import Tables
from gradience.verbs.monitor import report_of
from gradience.schema.scalars import number_in
from gradience.verbs.monitor.source import open_source

RUNS: Final = Tables(RUNS_SCHEMA_ID, {"runs": RunRow, "rows": StepRow, "evals": EvalRow, "findings": RunFindingRow})
MAX_RUNS: Final = 1000  # of one log: more are an error, as none is known to hold as many


def run_job(job: Job) -> bytes:
    """The rows of one source; of one that cannot be read a row with the error."""
    try:
        source = open_source(job.place)
        runs = list(source.summary.runs.values())
        if len(runs) > MAX_RUNS:
            raise GradienceError(f"{len(runs)} runs in one log, over the limit of {MAX_RUNS}")
        reports = [report_of(source, series) for series in runs]
    except (GradienceError, OSError, MemoryError) as error:
        return run_failed(job, str(error) or type(error).__name__)
    except Exception as error:  # noqa: BLE001  # the last resort: one log is no reason to end the job
        return run_failed(job, f"a bug of gradience, not of the log: {type(error).__name__}: {error}", crashed=True)
    pairs = list(zip(runs, reports, strict=True))
    return encoded(
        [_run(job, series, report) for series, report in pairs],
        [row for series in runs for row in _rows(job.path, series)],
        [row for series in runs for row in _evals(job.path, series)],
        [row for series, report in pairs for row in _findings(job.path, series.run_id, report)],
    )


def run_failed(job: Job, reason: str, *, crashed: bool = False) -> bytes:
    """The rows of a log without numbers. A crash has no stamp: the next call tries again."""
    stamp = "" if crashed else job.stamp
    return encoded([RunRow(path=job.path, error=" ".join(reason.split()), stamp=stamp, rules=job.rules)], [], [], [])


def _run(job: Job, series: RunSeries, report: MonitorReport) -> RunRow:
    config, train = report.config, report.train
    lora, loop = config.lora, config.training
    point = next((point for point in report.evals if point.split != "train"), None)
    best = _best(series.evals, point.split if point else None)
    worst = next((finding.severity for finding in by_severity(report.findings)), "none")
    targets = lora.target_modules
    return RunRow(
        path=job.path,
        run=series.run_id,
        stamp=job.stamp,
        rules=job.rules,
        model=config.model_name,
        data=config.dataset_name,
        objective=objective_of(config).kind,
        status=report.status,
        verdict=worst,
        findings=",".join(finding.id for finding in report.findings),
        story=report.story,
        r=lora.r if lora.r is not None and lora.r >= 0 else None,
        alpha=number_column(lora.alpha),
        targets=",".join(targets) if isinstance(targets, list) else targets,
        peft_type=lora.peft_type,
        optimizer=config.optimizer.name,
        lr=number_column(config.optimizer.lr if train.max_lr is None else train.max_lr),
        scheduler=loop.lr_scheduler,
        batch_size=loop.batch_size,
        seed=_seed(config),
        epochs=number_column(loop.epochs),
        steps=train.last_step,
        max_steps=loop.max_steps,
        rows=train.rows,
        first_loss=number_column(train.first_loss),
        last_loss=number_column(train.last_loss),
        best_loss=number_column(train.min_loss),
        best_loss_step=train.min_loss_step,
        split=point.split if point else None,
        eval_loss=number_column(point.metrics.loss) if point else None,
        best_eval_loss=best[0] if best else None,
        best_eval_step=best[1] if best else None,
        eval_accuracy=number_column(point.metrics.accuracy) if point else None,
        gap=number_column(report.gap.ratio) if report.gap else None,
        utilization_mean=number_in(report.lora_audit or {}, "utilization_mean"),
        started=series.first_ts,
        duration_s=train.duration_s,
    )


_MOST_INT: Final = 2**63 - 1  # of a column


def _seed(config: ConfigSnapshot) -> int | None:
    seed = config.training.seed
    return seed if seed is not None and abs(seed) <= _MOST_INT else None


def _best(events: Sequence[Eval], split: str | None) -> tuple[float, int] | None:
    losses = [
        (as_float(event.metrics.loss), event.step or 0)
        for event in events
        if event.split == split and event.metrics.loss is not None
    ]
    return min((pair for pair in losses if math.isfinite(pair[0])), default=None)


def _rows(path: str, series: RunSeries) -> list[StepRow]:
    run = series.run_id
    losses, rates, norms = (_finite(column) for column in (series.losses, series.rates, series.grad_norms))
    return [
        StepRow(path=path, run=run, step=step, loss=loss, lr=rate, grad_norm=norm)
        for step, loss, rate, norm in zip(series.steps, losses, rates, norms, strict=True)
    ]


def _finite(column: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column]


def _evals(path: str, series: RunSeries) -> Iterator[EvalRow]:
    for event in series.evals:
        named: dict[str, Real | None] = {
            "loss": event.metrics.loss,
            "ppl": event.metrics.ppl,
            "accuracy": event.metrics.accuracy,
        }
        extras = {name: number_in(event.metrics.extras, name) for name in event.metrics.extras}
        for metric, value in (named | extras).items():
            number = number_column(value)
            if number is not None:
                yield EvalRow(
                    path=path, run=series.run_id, step=event.step, split=event.split, metric=metric, value=number
                )


def _findings(path: str, run: str, report: MonitorReport) -> Iterator[RunFindingRow]:
    for place, finding in enumerate(report.findings):
        yield RunFindingRow(
            path=path,
            run=run,
            position=place,
            id=finding.id,
            severity=finding.severity,
            message=finding.message,
            action=finding.action,
            confidence=finding.confidence,
        )
