"""The report on a run as text, and the lines and frames that show a run while it is being trained.

The report gives the story, then training, signals such as rewards, evaluations, the audit in the log, alerts and
recommendations. The live view draws a curve of the loss, or under RL of the reward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gradience.blocks import (
    Block,
    Columns,
    Heading,
    Title,
    brief,
    clean,
    count,
    facts,
    findings,
    number,
    part,
    percent,
    skipped,
    table,
    words,
)
from gradience.blocks.plots import curve_lines
from gradience.blocks.text import as_text, printed
from gradience.reading.follow import LiveRun
from gradience.render.pace import pace_words
from gradience.render.ranks import update_size, utilization
from gradience.rules.log.account import rate_of_run
from gradience.rules.log.held_out import of_metric
from gradience.rules.log.recorded import no_weights
from gradience.rules.weights import suggests_ranks
from gradience.schema import Json, NonFinite, Real, as_float, number_in
from gradience.schema.events import Alert, Eval, EvalMetrics, Event, RunEnd, RunStart, UnknownEvent
from gradience.schema.reports import (
    Advice,
    EvalPoint,
    EvaluationMark,
    LossKind,
    MetricAccount,
    MonitorReport,
    Schedule,
    SignalSummary,
    TrainSummary,
)
from gradience.telemetry.series import RunSeries

_ALERTS: Final = 3  # alerts in a frame
_SIGNALS: Final = 5  # columns shown without --verbose
_METRICS: Final = 6  # metrics of an evaluation
_FAR: Final = 0.5  # a held-out perplexity so far under the training one is of another scale, and no gap

_ROUNDING: Final = 1e-9  # less is no noise between evaluations, but of floats
_PROBES: Final = {"update_norm": "norm of the update", "stable_rank_mean": "stable rank, mean"}

_RANKS: Final = ("energy_rank_90_p50", "energy_rank_90_p90", "suggested_r_global_median", "suggested_r_global_90")


@as_text
def monitor_text(report: MonitorReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report on a run for a terminal; `verbose` adds the evidence of findings, skipped rules, and event counts."""
    yield Title("GRADIENCE MONITOR")
    yield facts((("Story", report.story), ("File", report.file)), width=0)
    yield facts((("Model", report.config.model_name), *run_facts(report)), width=9)
    yield ""
    yield from part(
        "Signals (medians of the first and of the last fifth of the rows)", _signals(report, verbose=verbose)
    )
    probes = max((probe.rows for probe in report.probes.values()), default=0)
    adapter = (f"  {line}" for line in probe_lines(report))
    yield from part(f"Adapter in training ({probes} probes of spectral_every)", adapter)
    yield from _evals(report)
    if shown := fed(report):
        yield from (*shown, "")
    yield from _recorded_audit(report, verbose=verbose)
    yield from part(f"Alerts ({len(report.alerts)})", map(_alert, report.alerts))
    yield from _recommendations(report, verbose=verbose)
    yield from skipped(report.not_run, verbose=verbose)
    if verbose:
        yield ""
        yield f"Events: {', '.join(f'{name} {n}' for name, n in report.events.items())}"
        yield f"Run: {report.run_id or '-'}, sessions recorded: {report.sessions}"
        yield ""
    yield from (f"Note: {note}." for note in dict.fromkeys(report.notes))
    if verbose or any(each.severity != "info" for each in report.findings):
        yield "Findings are hypotheses: verify on held-out data."


def _signals(report: MonitorReport, *, verbose: bool) -> Iterator[str]:
    """A line for each column that tells, at most five without `verbose`."""
    telling = list(_telling(report.signals))
    shown = telling if verbose else telling[:_SIGNALS]
    yield from (f"  {_moved(name, signal, '.4g')}" for name, signal in shown)
    if len(shown) < len(telling):
        yield f"  and {len(telling) - len(shown)} more (--verbose)"


def run_facts(report: MonitorReport) -> Iterator[tuple[str, str | None]]:
    """What was trained, how far it came, and its training loss: labels and values."""
    yield "Dataset", report.config.dataset_name
    yield "Profile", "" if report.config.task_profile == "unknown" else report.config.task_profile
    step, planned = report.train.last_step, report.config.training.planned_steps
    reason = f" ({report.status_reason})" if report.status_reason else ""
    reached = "" if step is None else f", step {step}" + (f" of {planned}" if planned else "")
    broken = report.status == "ok" and any(finding.severity in {"error", "critical"} for finding in report.findings)
    yield "Status", f"{'ended' if broken else words(report.status)}{reason}{reached}"
    if report.train.rows:  # the story says it where there is none, and between which losses
        yield "Rows", _rows(report.train) if report.objective != "rl" else f"{report.train.rows}"
    yield "Peak LR", _peak(report.account.schedule) if report.train.rows else ""
    yield "Pace", "" if report.pace is None else pace_words(report.pace)


def _rows(t: TrainSummary) -> str:
    """How many rows have a training loss, and the lowest one, if the run did not end with it."""
    if t.rows == 1:
        return "1" if t.first_step is None else f"1 (step {t.first_step})"
    lowest = f" (lowest loss {number(t.min_loss, '.4g')} at step {t.min_loss_step})"
    return f"{t.rows}{lowest if t.min_loss and t.min_loss != t.last_loss else ''}"


def _peak(schedule: Schedule) -> str:
    """The peak learning rate: as configured, else the largest logged, which may be lower; empty if unknown."""
    if not schedule.peak:
        return ""
    rate = rate_of_run(schedule)
    remark = ""
    if schedule.peak_from == "logged":
        remark = "  (largest logged)"
    elif schedule.in_warmup:
        remark = f"  ({_rate(schedule.logged_peak)} reached)"
    elif not rate:
        return f"{_rate(schedule.peak)} is configured"
    elif rate != schedule.peak:
        remark = f"  (largest logged; {_rate(schedule.peak)} is configured)"
    return f"{_rate(rate)}{remark}"


def _rate(rate: Real | None) -> str:
    return brief(None if rate is None else as_float(rate))


def _moved(name: str, signal: SignalSummary, spec: str) -> str:
    """What a column was at first and at last, and its range."""
    first, last, lowest, highest = (
        number(value, spec) for value in (signal.first, signal.last, signal.lowest, signal.highest)
    )
    return f"{name}: {first} -> {last}  ({lowest} to {highest})"


def _telling(signals: Mapping[str, SignalSummary]) -> Iterator[tuple[str, SignalSummary]]:
    """The signals but those that are 0 throughout, rewards excepted, and those that repeat another one."""
    shown: list[SignalSummary] = []
    for name, signal in signals.items():
        if (signal.lowest == signal.highest == 0.0 and "reward" not in name) or signal in shown:
            continue
        shown.append(signal)
        yield name, signal


def probe_lines(report: MonitorReport) -> Iterator[str]:
    """A line for each probed quantity of the adapter (size, rank), with its values over the steps."""
    return (_moved(_PROBES[name], probe, ".3g") for name, probe in report.probes.items())


def _evals(report: MonitorReport) -> Iterator[Block]:
    if lines := [*_cells(report)]:
        yield from ("Latest eval signals:", *lines, "")


def _cells(report: MonitorReport) -> Iterator[Block]:
    """The newest values of held-out data, but for those that the story says."""
    of = report.account
    for point in report.evals:
        restored = point.split == of.split and of.shown_step not in {None, point.step}
        at = f"  (the weights of step {of.shown_step}, restored)" if restored else ""
        if (shown := perplexity(point.metrics, of.loss)) is not None and math.isfinite(as_float(shown)):
            yield f"  {_label(point)} PPL: {number(shown)}{at}"
        elif (loss := point.metrics.loss) is not None and not _told(report, point, "loss", _four(loss)):
            yield f"  {_label(point)} loss: {_four(loss)}{at}"
    yield from _gap(report)
    for point in report.evals:
        yield from _metrics(report, point)
    if of.kept_step is not None and of.marks:
        how = "restored" if of.selection.restored else "the last"
        yield f"  Kept:      step {of.kept_step} ({how})"


def _metrics(report: MonitorReport, point: EvalPoint) -> Iterator[Block]:
    values = [] if point.metrics.accuracy is None else [("accuracy", "Acc", percent(point.metrics.accuracy))]
    metrics = [metric for metric in report.account.metrics if metric.name in point.metrics.extras]
    for metric in metrics[:_METRICS]:
        course = _course(point, metric) if metric.split == point.split else _value(point, metric)
        values.append((metric.name, metric.name, course))
    yield from (
        f"  {_label(point)} {label}: {value}" for name, label, value in values if not _told(report, point, name, value)
    )
    if len(metrics) > _METRICS:
        yield f"  {_label(point)} and {len(metrics) - _METRICS} more metrics (--json)"


def _told(report: MonitorReport, point: EvalPoint, name: str, value: str) -> bool:
    """Whether the story says so, be it with more words behind it."""
    words = f"{point.split} {name} {value}"
    return any(f"{part.says} ".startswith((f"{words} ", f"{words},")) for part in report.story_parts)


def _four(value: float | NonFinite) -> str:
    return number(value, ".4g")


def _value(point: EvalPoint, metric: MetricAccount) -> str:
    return number(number_in(point.metrics.extras, metric.name), ".4g")


def _course(point: EvalPoint, metric: MetricAccount) -> str:
    """The value of a metric, with its first and its best one where they differ."""
    value = _value(point, metric)
    others = [("first", metric.first, "")] if metric.count > 1 else []
    if metric.best is not None and metric.best not in {metric.first, metric.last}:
        others.append(("best", metric.best, "" if metric.best_step is None else f" at step {metric.best_step}"))
    shown = [f"{name} {number(at, '.4g')}{step}" for name, at, step in others if number(at, ".4g") != value]
    return value + (f"  ({', '.join(shown)})" if shown else "")


def _marks_title(marks: Sequence[EvaluationMark]) -> str:
    """What the table of evaluations shows, and what chance explains of it."""
    losses = [mark for mark in marks if mark.loss_noise is not None and as_float(mark.loss_noise) > _ROUNDING]
    known = [f"loss +/- {mark.loss_noise:.2g}" for mark in losses[:1]]
    known += [f"{m.metric} +/- {number(m.value_noise, '.2g')}" for m in marks if m.metric is not None][:1]
    return "Evaluations that matter" + (f" ({'; '.join(known)}; same: within that of the best)" if known else "")


def marks(report: MonitorReport | None) -> list[Block]:
    """The evaluations that the choice of weights rests on; nothing without one."""
    shown = [] if report is None else report.account.marks
    return [Heading(_marks_title(shown)), table(_MARKS, shown, told=_mark)] if shown else []


def _mark(mark: EvaluationMark) -> str:
    step, loss, value, roles = (cell(mark) for _, _, cell in _MARKS)
    return f"  step {step:<8} loss {loss}{', ' if value else ''}{value}: {roles}"


def _loss(mark: EvaluationMark) -> str:
    return "" if mark.loss is None else number(mark.loss, ".4g") + _ties(mark.loss_ties)


def _metric(mark: EvaluationMark) -> str:
    if mark.value is None:
        return ""
    return f"{mark.metric} {of_metric(mark.metric or '', mark.value)}" + _ties(mark.value_ties)


def _ties(ties: bool | None) -> str:  # None is not known
    return " (same)" if ties else ""


_MARKS: Final[Columns[EvaluationMark]] = (
    ("step", "", lambda mark: str(mark.step)),
    ("loss", ">6", _loss),
    ("metric", "", _metric),
    ("what it is", "", lambda mark: ", ".join(mark.roles)),
)


def _gap(report: MonitorReport) -> Iterator[Block]:
    """The gap as perplexities; of a loss without a perplexity, the two losses."""
    if report.gap is not None and as_float(report.gap.ratio) >= _FAR:
        train, test = report.gap.train_split, report.gap.test_split
        yield f"  Gap:       {number(report.gap.ratio)}x" + ("" if train == "train" else f"  ({test} over {train})")
    elif (pair := report.account.last_pair if report.account.comparable else None) is not None:
        losses = f"{pair.split} loss {number(pair.held_out, '.4g')}, training loss {number(pair.train, '.4g')}"
        yield f"  Gap:       {losses} (step {pair.step})"


def _label(point: EvalPoint) -> str:
    return f"{point.split.capitalize():<5}"


def perplexity(metrics: EvalMetrics, loss: LossKind) -> float | NonFinite | None:
    """The perplexity as logged, else exp of a language model's loss (nats); else None."""
    if metrics.ppl is not None or metrics.loss is None or loss != "language_model":
        return metrics.ppl
    try:
        return math.exp(as_float(metrics.loss))
    except OverflowError:
        return "Infinity"


def fed(report: MonitorReport | None) -> list[Block]:
    """What the model was fed in the watched batches; nothing if that was not recorded."""
    rows = fed_rows((report.data if report is not None else None) or {})
    return [Heading("Fed to the model"), facts(rows, indent=2, width=13)] if rows else []


def fed_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels and values of a `data` event; empty if the event has no counts."""
    counts = {name: n for name, n in data.items() if isinstance(n, int) and not isinstance(n, bool)}
    if not {"batches", "watched", "rows", "tokens"} <= counts.keys():
        return []
    total, padding = counts["tokens"], counts.get("padding", 0)
    rows = [
        ("Watched", f"{counts['watched']:,} of {counts['batches']:,} micro-batches, {counts['rows']:,} rows"),
        ("Tokens", f"{count(total)}, and {percent(padding / max(total + padding, 1))} of the batches is padding"),
    ]
    if "supervised" in counts:
        none = counts.get("rows_unsupervised", 0)
        share = percent(counts["supervised"] / max(total, 1))
        rows.append(("Supervised", f"{share} of the tokens; {none:,} rows without a supervised token"))
    if "label_min" in counts and "label_max" in counts:
        rows.append(("Labels", f"{counts['label_min']} to {counts['label_max']}"))
    return rows


def _recorded_audit(report: MonitorReport, *, verbose: bool) -> Iterator[Block]:
    """The audit in the log: two numbers, and the verdict if it is not `trained`; `verbose` adds the rest."""
    audit = report.lora_audit
    if audit is None:
        return
    if no_weights(audit):
        yield "LoRA audit: no LoRA weights were found"
        yield ""
        return
    verdict = str(audit.get("verdict", "trained"))
    yield "Diagnostics:"
    yield f"  Stable rank (mean): {number(number_in(audit, 'stable_rank_mean'))}"
    yield f"  Utilization (mean): {utilization(number_in(audit, 'utilization_mean'), report.readings)}"
    if verdict != "trained" and not verbose:
        yield f"  LoRA audit: {words(verdict.upper())}"
    yield ""
    if verbose:
        yield from _audit_in_full(report, audit, verdict)


def _audit_in_full(report: MonitorReport, audit: Mapping[str, Json], verdict: str) -> Iterator[Block]:
    at = "" if report.lora_audit_step is None else f" (step {report.lora_audit_step})"
    yield f"LoRA audit{at}:"
    if "verdict" in audit:
        yield f"  Verdict: {words(verdict.upper())}"
    p50, p90, median, tail = (number(number_in(audit, key), "g") for key in _RANKS)
    yield f"  Energy rank k@90% (p50/p90): {p50}/{p90}"
    if (size := update_size(number_in(audit, "update_norm"), number_in(audit, "update_size"))) is not None:
        yield f"  Update size: {size}"
    if suggests_ranks(verdict):
        yield f"  Suggested r (median/p90): {median}/{tail}, after training; verify with eval"
    yield ""


def _alert(alert: Alert) -> str:
    at = "" if alert.step is None else f" at step {alert.step}"
    return f"  [{alert.severity.upper()}] {alert.code}{at}: {alert.message}"


def _recommendations(report: MonitorReport, *, verbose: bool) -> Iterator[Block]:
    """What was found, gravest first, and the advice; `verbose` adds the grounds."""
    total = len(report.findings) + len(report.recommendations)
    yield f"Recommendations ({total}):{'' if total else ' none'}"
    yield findings(report.findings, verbose=verbose)
    for item in report.recommendations:
        yield f"  [{item.severity.upper()}] {item.action}: {item.message} (recorded in the log)"
    yield from advice_lines(report.advice)


def advice_lines(advice: Advice | None) -> Iterator[Block]:
    """The one piece of advice, and its alternative."""
    if advice is not None:
        yield f"  Next: {advice.text}."
        if advice.alternative is not None:
            yield f"  Or: {advice.alternative}."


def progress_line(live: LiveRun) -> str:
    """The step of the run, and its newest numbers, on one line."""
    run = live.run
    planned = run.config.training.planned_steps if run.config else None
    parts = [f"step {'-' if run.last_step is None else run.last_step}" + (f" of {planned}" if planned else "")]
    parts += [f"{name} {at:.4g}" for name, at in (("loss", live.loss), ("reward", live.reward)) if at is not None]
    parts += [] if live.rate is None else [f"lr {brief(live.rate)}"]
    evals = live.evals
    for split in dict.fromkeys(split for split, _, _ in evals):
        step, loss = next((step, loss) for name, step, loss in reversed(evals) if name == split)
        parts.append(f"{split} loss {loss:.4g} @ {step}")
    if live.not_finite:
        parts.append(f"{live.not_finite} losses not finite")
    if live.bad_lines:
        parts.append(f"{live.bad_lines} lines are not events")
    return clean("  ".join(parts))


def frame_lines(live: LiveRun, *, width: int = 72, height: int = 10, dots: bool = True) -> list[str]:
    """One frame: the model, the progress, the newest alerts, and a curve of the loss, or under RL of the reward."""
    rewards, model = live.rewards, live.run.config.model_name if live.run.config else None
    held_out = [(step, loss) for split, step, loss in live.evals if split != "train" and not rewards]
    curve = curve_lines(rewards or live.points, marks=held_out, width=width, height=height, dots=dots)
    what = "reward" if rewards else "training loss"
    legend = [f"          {what}" + (", o held-out loss" if held_out else "")] if curve else []
    alerts = [f"[{a.severity.upper()}] {a.code}: {a.message}" for a in live.run.alerts[-_ALERTS:]]
    lines = [f"Model: {model or '-'}", progress_line(live), *alerts, *curve, *legend]
    return [line[:width] for line in printed(lines)]


def chart_lines(run: RunSeries, split: str | None, *, width: int, height: int, dots: bool) -> list[str]:
    """The training loss over the steps with the held-out loss as `o`, for a terminal; nothing for under two rows."""
    points = list(zip(map(float, run.steps), run.losses, strict=True))
    marks = [(float(step), loss) for step, loss in run.losses_of(split).items()] if split else []
    curve = curve_lines(points, marks=marks, width=width, height=height, dots=dots) if len(points) > 1 else []
    return [*curve, f"          training loss{f', o {split} loss' if marks else ''}"] if curve else []


def event_line(event: Event | UnknownEvent) -> str | None:
    """A line about an event that is not a training row; None for an event that needs no line."""
    match event:
        case RunStart():
            resumed = "" if event.resumed_from_step is None else f", resumed from step {event.resumed_from_step}"
            return clean(f"run {event.run_id} starts{resumed}")
        case Eval():
            loss = "" if event.metrics.loss is None else f"  loss {as_float(event.metrics.loss):.4g}"
            accuracy = "" if event.metrics.accuracy is None else f"  accuracy {as_float(event.metrics.accuracy):.1%}"
            split = "" if event.split == "eval" else f" of {event.split}"
            return clean(f"evaluation{split} at step {event.step}{loss}{accuracy}")
        case Alert():
            return clean(f"[{event.severity.upper()}] {event.code}: {event.message}")
        case RunEnd():
            return clean(f"run {event.run_id} ends: {event.status}")
    return None
