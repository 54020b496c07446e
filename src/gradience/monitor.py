"""The monitor: a log in, the high-level story of its last run out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.errors import RecorderError
from gradience.policy.run_detectors import DEFAULT_GAP, RunFacts, Series, detect
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import EvalMetrics, TrainStep
from gradience.schema.reports import MONITOR_SCHEMA_ID, EvalPoint, GapReading, MonitorReport, TrainSummary
from gradience.schema.scalars import MAX_INT, SCHEMA_PREFIX, NonFinite, as_float, real
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.summary import RunSeries, RunSummary

__all__ = ["monitor_run"]

_HELD_OUT: Final = ("test", "eval", "validation", "valid", "val", "dev")
_WINDOW: Final = 10  # training rows averaged where the train split was never evaluated
_HEAD: Final = 4096  # bytes
_FIRST_ROWS: Final = 50
_DERIVED: Final = "n_derived_from"
_DERIVATION: Final = "runtime * samples_per_second"
_CLASSES: Final = {  # of data sets whose logs do not say
    "sst2": 2,
    "cola": 2,
    "mrpc": 2,
    "qqp": 2,
    "qnli": 2,
    "rte": 2,
    "wnli": 2,
    "mnli": 3,
    "imdb": 2,
    "ag_news": 4,
}


def monitor_run(path: str | os.PathLike[str], *, gap_threshold: float = DEFAULT_GAP) -> MonitorReport:
    """Return the story of the last run in a log.

    What other programs leave (an output folder, a trainer_state.json, a table, ...) is imported in memory:
    nothing is written, and the notes say so.

    Args:
        path: a run.jsonl, a folder that holds one, or anything that `gradience import` reads.
        gap_threshold: held-out over train perplexity from which the gap is a finding.

    Raises:
        RecorderError: the log is missing, empty, or holds no event at all.
        SchemaError: the log is of another major version.
    """
    place = Path(path)
    if _is_log(place / "run.jsonl"):
        place /= "run.jsonl"
    summary, notes = _read(place)
    run = summary.last
    if run is None:
        first = summary.issues[0].reason if summary.issues else "it holds none of the known events"
        raise RecorderError(f"{path} holds no event of a run: {first}", advice="give the run.jsonl that a run wrote")
    report = _report(place, summary, run, gap_threshold)
    return msgspec.structs.replace(report, notes=[*notes, *report.notes])


def _is_log(path: Path) -> bool:
    """Whether a file begins as a log of ours does: then nothing else need be asked, or imported."""
    try:
        if not path.is_file():  # a pipe can be read once only
            return False
        with path.open("rb") as file:
            return SCHEMA_PREFIX.encode() in file.read(_HEAD)
    except (OSError, ValueError):
        return False


def _read(path: Path) -> tuple[RunSummary, list[str]]:
    """Return what the log holds, and what is to be said of where it comes from."""
    if not _is_log(path):
        from gradience.importers import is_foreign  # noqa: PLC0415  # a log of ours need not pay for it

        if is_foreign(path):
            return _import(path)
    return TelemetryReader(path).summarize(), []


def _import(path: Path) -> tuple[RunSummary, list[str]]:
    """Return what a source of another program holds, in memory."""
    from gradience.importers import read_source  # noqa: PLC0415  # the same

    imported = read_source(path)
    summary = RunSummary(path)
    for told in imported.runs:
        run = summary.runs[told.run_id] = RunSeries(told.run_id)
        for event in told.events:
            run.take(event)
        summary.counts.update(told.counts)
    files = ", ".join(os.path.relpath(file, path) if path.is_dir() else file.name for file in imported.files)
    notes = [f"imported in memory from {files} ({imported.format}); no file was written", *imported.notes]
    if imported.skipped:
        first = imported.skipped[0]
        rows = "1 row was" if len(imported.skipped) == 1 else f"{len(imported.skipped)} rows were"
        notes.append(f"{rows} not imported; the first: {first.file} {first.line}: {first.reason}")
    return summary, notes


def _report(path: Path, summary: RunSummary, run: RunSeries, gap_threshold: float) -> MonitorReport:
    config = run.config or ConfigSnapshot()
    evals = [_with_count(point) for point in _latest(run)]
    gap = _gap(run, evals)
    audit = run.latest_metrics.get("lora_audit")
    status = run.end.status if run.end else "no_run_end"
    facts = RunFacts(
        series=Series(
            run.steps, run.losses, run.grad_norms, run.rates, frozenset(run.lost_norms), not run.out_of_order
        ),
        evals=evals,
        gap=gap,
        held_out=_held_out(evals),
        num_labels=_num_labels(config),
        epoch=_epoch(run),
        utilization_mean=_number(audit.metrics, "utilization_mean") if audit else None,
        status=status,
        last_step=run.last_step,
        max_steps=config.training.max_steps,
        issues=summary.issues,
        issues_total=summary.issues_total,
        gap_threshold=gap_threshold,
        config=config,
        logged=frozenset(run.logged) or _logged(path, run.run_id),
        history=run.evals,
        sessions=len(run.sessions),
        resumed_from=run.resumed_from,
        replaced=run.replaced,
        duplicates=run.duplicates,
        out_of_order=run.out_of_order,
        interleaved=run.interleaved,
        missing=run.missing,
    )
    findings, not_run = detect(facts)
    return MonitorReport(
        schema=MONITOR_SCHEMA_ID,
        file=str(path),
        run_id=run.run_id,
        other_runs=[run_id for run_id in summary.runs if run_id != run.run_id],
        sessions=len(run.sessions),
        config=config,
        status=status,
        status_reason=run.end.reason if run.end else None,
        events=dict(summary.counts),
        train=_train(run),
        evals=evals,
        gap=gap,
        lora_audit=audit.metrics if audit else None,
        lora_audit_step=audit.step if audit else None,
        alerts=run.alerts,
        recommendations=run.recommendations,
        findings=findings,
        not_run=not_run,
        issues=summary.issues,
        issues_total=summary.issues_total,
        notes=_notes(summary, run) + _derived(evals),
    )


def _logged(path: Path, run_id: str) -> frozenset[str]:
    """Return the names of further values in the first training rows: a summary does not keep them."""
    if not _is_log(path):
        return frozenset()
    rows = islice(TelemetryReader(path).of(TrainStep), _FIRST_ROWS)
    return frozenset(name for row in rows if row.run_id == run_id for name in row.extras)


def _latest(run: RunSeries) -> list[EvalPoint]:
    """Return the newest evaluation of every split, train first, then held-out splits, then others."""
    newest = {event.split: event for event in run.evals}
    order = {split: place for place, split in enumerate(("train", *_HELD_OUT))}
    splits = sorted(newest, key=lambda split: (order.get(split, len(order)), split))
    return [EvalPoint(split=s, step=newest[s].step, metrics=newest[s].metrics) for s in splits]


def _with_count(point: EvalPoint) -> EvalPoint:
    """Return the evaluation with its number of examples, worked out where a log has only its speed."""
    metrics = point.metrics
    rate, runtime = (_number(metrics.extras, key) for key in ("samples_per_second", "runtime"))
    if metrics.n is not None or rate is None or runtime is None or not 0.5 <= rate * runtime < MAX_INT:  # noqa: PLR2004
        return point
    extras = {**metrics.extras, _DERIVED: _DERIVATION}
    return msgspec.structs.replace(
        point, metrics=msgspec.structs.replace(metrics, n=round(rate * runtime), extras=extras)
    )


def _held_out(evals: Sequence[EvalPoint]) -> EvalPoint | None:
    return next((point for point in evals if point.split != "train"), None)


def _nats(metrics: EvalMetrics) -> float | None:
    """Return the loss, or the logarithm of the perplexity where only that was recorded."""
    if metrics.loss is not None:
        return as_float(metrics.loss)
    if metrics.ppl is None or not as_float(metrics.ppl) > 0.0:
        return None
    return math.log(as_float(metrics.ppl))


def _gap(run: RunSeries, evals: Sequence[EvalPoint]) -> GapReading | None:
    held_out = _held_out(evals)
    if held_out is None or (test := _nats(held_out.metrics)) is None:
        return None
    train = next((point for point in evals if point.split == "train"), None)
    if train is not None and (nats := _nats(train.metrics)) is not None:
        return _reading("train", nats, held_out.split, test, same_step=train.step == held_out.step)
    window = _recent(run, held_out.step)
    if not window:
        return None
    name = f"train rows (mean of {len(window)})"
    return _reading(name, sum(window) / len(window), held_out.split, test, same_step=True)


def _recent(run: RunSeries, step: int | None) -> list[float]:
    """Return the finite training losses logged last up to a step."""
    backwards = zip(reversed(run.steps), reversed(run.losses), strict=True)
    wanted = (loss for s, loss in backwards if (step is None or s <= step) and math.isfinite(loss))
    return list(islice(wanted, _WINDOW))


def _reading(train_split: str, train: float, test_split: str, test: float, *, same_step: bool) -> GapReading:
    nats = test - train
    try:
        ratio = math.exp(nats)
    except OverflowError:
        ratio = math.inf
    return GapReading(
        train_split=train_split,
        test_split=test_split,
        ratio=real(ratio),
        nats=real(nats),
        same_step=same_step,
    )


def _num_labels(config: ConfigSnapshot) -> int | None:
    if config.num_labels:
        return config.num_labels
    recorded = config.extras.get("num_labels")
    if isinstance(recorded, int):
        return recorded
    name = (config.dataset_name or "").lower().replace("-", "_").rsplit("/", 1)[-1]
    return _CLASSES.get(name)


def _epoch(run: RunSeries) -> float | None:
    """Return how often the data was seen, where the log says so."""
    return run.last_epoch


def _number(metrics: dict[str, Any], key: str) -> float | None:
    value = metrics.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _train(run: RunSeries) -> TrainSummary:
    losses, steps = run.losses, run.steps
    finite = _finite(losses)
    lowest = min(finite, default=None)
    return TrainSummary(
        rows=len(losses),
        superseded_rows=run.superseded,
        non_finite_rows=len(losses) - len(finite),
        first_step=steps[0] if steps else None,
        last_step=run.last_step,
        first_loss=_real(losses, 0),
        last_loss=_real(losses, -1),
        min_loss=lowest,
        min_loss_step=None if lowest is None else steps[losses.index(lowest)],
        max_lr=max(_finite(run.rates), default=None),
        duration_s=None if run.first_ts is None or run.last_ts is None else run.last_ts - run.first_ts,
    )


def _finite(values: Sequence[float]) -> Sequence[float]:
    return values if math.isfinite(sum(values)) else list(filter(math.isfinite, values))


def _real(values: Sequence[float], index: int) -> float | NonFinite | None:
    return real(values[index]) if values else None


def _notes(summary: RunSummary, run: RunSeries) -> list[str]:
    notes = []
    if run.config is None:
        notes.append("no run_start in the log: the configuration is unknown")
    if len(summary.runs) > 1:
        others = ", ".join(run_id for run_id in summary.runs if run_id != run.run_id)
        notes.append(f"{len(summary.runs)} runs in this log; the last is shown, the others are {others}")
    if run.resumed_from:
        notes.append(
            f"resumed from step {', '.join(map(str, run.resumed_from))}; {run.superseded} superseded rows are not shown"
        )
    if summary.unknown:
        known = ", ".join(f"{name} ({n})" for name, n in summary.unknown.items())
        notes.append(f"events of a name unknown here were kept and not used: {known}")
    if summary.bare_tokens:
        notes.append(f"{summary.bare_tokens} lines hold bare NaN or Infinity, which is not JSON; they were read anyway")
    return notes


def _derived(evals: Sequence[EvalPoint]) -> list[str]:
    counts = [f"{point.split} {point.metrics.n}" for point in evals if _DERIVED in point.metrics.extras]
    return [f"examples per evaluation, derived as {_DERIVATION} (about): {', '.join(counts)}"] if counts else []
