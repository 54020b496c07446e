"""The monitor report as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gradience.render.text import banner, clean, finding_lines, not_run_lines, number, percent
from gradience.schema.events import EvalMetrics
from gradience.schema.reports import EvalPoint, GapReading, MonitorReport
from gradience.schema.scalars import NonFinite, as_float

__all__ = ["monitor_text"]

_SHOWN_MODULES = 3


def monitor_text(report: MonitorReport, *, verbose: bool = False) -> str:
    """Return the report for a terminal."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: MonitorReport, *, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE MONITOR")
    yield f"Story: {clean(report.story)}"
    yield f"File: {clean(report.file)}"
    yield f"Model:   {clean(report.config.model_name or '-')}"
    yield f"Dataset: {clean(report.config.dataset_name or '-')}"
    yield f"Profile: {report.config.task_profile}"
    yield f"Status:  {_status(report)}"
    yield ""
    yield from _training(report)
    yield from _signals(report)
    yield from _evals(report)
    yield from _diagnostics(report)
    yield from _alerts(report)
    yield from _recommendations(report, verbose=verbose)
    if verbose:
        yield from _coverage(report)
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Findings are hypotheses: verify on held-out data."


def _status(report: MonitorReport) -> str:
    reason = f" ({clean(report.status_reason)})" if report.status_reason else ""
    step = report.train.last_step
    planned = report.config.training.max_steps
    at = "" if step is None else f", step {step}" + (f" of {planned}" if planned else "")
    return f"{report.status.replace('_', ' ')}{reason}{at}"


def _training(report: MonitorReport) -> Iterator[str]:
    t = report.train
    if not t.rows:
        yield "Training: no loss was recorded"
        yield ""
        return
    yield f"Training ({t.rows} rows):"
    yield f"  Loss: {number(t.first_loss, '.4g')} -> {number(t.last_loss, '.4g')}" + (
        f"  (lowest {number(t.min_loss, '.4g')} at step {t.min_loss_step})" if t.min_loss is not None else ""
    )
    if t.max_lr is not None:
        yield f"  Peak LR: {number(t.max_lr, '.3g')}"
    yield ""


def _signals(report: MonitorReport) -> Iterator[str]:
    if not report.signals:
        return
    yield "Rewards and the like (medians of the first and of the last fifth of the rows):"
    for name, s in report.signals.items():
        span = f"{number(s.lowest, '.4g')} to {number(s.highest, '.4g')}"
        yield f"  {clean(name)}: {number(s.first, '.4g')} -> {number(s.last, '.4g')}  ({span})"
    yield ""


def _ppl(metrics: EvalMetrics) -> float | NonFinite | None:
    if metrics.ppl is not None or metrics.loss is None:
        return metrics.ppl
    try:
        return math.exp(as_float(metrics.loss))
    except OverflowError:
        return "Infinity"


def _label(point: EvalPoint) -> str:
    return f"{clean(point.split).capitalize():<5}"


def _evals(report: MonitorReport) -> Iterator[str]:
    yield "Latest eval signals:"
    if not report.evals:
        yield "  none recorded"
    for point in report.evals:
        yield f"  {_label(point)} PPL: {number(_ppl(point.metrics))}"
    if report.gap is not None:
        yield f"  Gap:       {number(report.gap.ratio)}x{_basis(report.gap)}"
    for point in report.evals:
        if point.metrics.accuracy is not None:
            yield f"  {_label(point)} Acc: {percent(point.metrics.accuracy)}"
    yield ""


def _basis(gap: GapReading) -> str:
    """Return what the gap compares, where that is not simply train and test."""
    return "" if gap.train_split == "train" else f"  ({clean(gap.test_split)} over {gap.train_split})"


def _diagnostics(report: MonitorReport) -> Iterator[str]:
    audit = report.lora_audit
    if audit is None:
        return
    yield "Diagnostics:"
    yield f"  Stable rank (mean): {number(_number(audit, 'stable_rank_mean'))}"
    yield f"  Utilization (mean): {percent(_number(audit, 'utilization_mean'))}"
    yield ""
    at = "" if report.lora_audit_step is None else f" (step {report.lora_audit_step})"
    yield f"LoRA audit{at}:"
    if "verdict" in audit:
        yield f"  Verdict: {clean(str(audit['verdict'])).upper().replace('_', ' ')}"
    yield f"  Energy rank k@90% (p50/p90): {_g(audit, 'energy_rank_90_p50')}/{_g(audit, 'energy_rank_90_p90')}"
    median, tail = _g(audit, "suggested_r_global_median"), _g(audit, "suggested_r_global_90")
    yield f"  Suggested r (median/p90): {median}/{tail}, after training; verify with eval"
    modules = audit.get("modules")
    for module in modules[:_SHOWN_MODULES] if isinstance(modules, list) else []:
        if isinstance(module, dict):
            name = clean(str(module.get("name", "-")))
            yield f"  least used: util={percent(_number(module, 'utilization'))}  {name}"
    yield ""


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _g(values: dict[str, Any], key: str) -> str:
    return number(_number(values, key), "g")


def _alerts(report: MonitorReport) -> Iterator[str]:
    yield f"Alerts ({len(report.alerts)}):"
    for alert in report.alerts:
        at = "" if alert.step is None else f" at step {alert.step}"
        yield f"  [{alert.severity.upper()}] {clean(alert.code)}{at}: {clean(alert.message)}"
    if not report.alerts:
        yield "  none recorded"
    yield ""


def _recommendations(report: MonitorReport, *, verbose: bool) -> Iterator[str]:
    total = len(report.findings) + len(report.recommendations)
    yield f"Recommendations ({total}):"
    yield from finding_lines(report.findings, verbose=verbose)
    for item in report.recommendations:
        yield f"  [{item.severity.upper()}] {clean(item.action)}: {clean(item.message)} (recorded in the log)"
    if not total:
        yield "  none"
    yield ""


def _coverage(report: MonitorReport) -> Iterator[str]:
    if report.not_run:
        yield f"Not judged ({len(report.not_run)}):"
        yield from not_run_lines(report.not_run)
        yield ""
    events = ", ".join(f"{name} {n}" for name, n in report.events.items())
    yield f"Events: {events}"
    yield f"Run: {clean(report.run_id or '-')}, sessions recorded: {report.sessions}"
    yield ""
