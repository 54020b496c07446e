"""Report on one run of a source: gather its facts, then judge them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import lt
from types import MappingProxyType
from typing import Final

import msgspec

from gradience.judge.monitor.pace import pace_of
from gradience.judge.monitor.source import LogSource, open_source
from gradience.rules import excluded_rules, without
from gradience.rules.log import DETECTED, RULE_OF, detect, in_order
from gradience.rules.log.account import account, kept_step
from gradience.rules.log.advice import advice
from gradience.rules.log.choice import marks
from gradience.rules.log.divergence import other_scale
from gradience.rules.log.facts import DEFAULT_GAP, PROBES, RunFacts, Series, Signal, ends
from gradience.rules.log.learning import learning
from gradience.rules.log.signals import SIGNALS
from gradience.rules.log.story import line_of, noisy_levels, story_parts
from gradience.schema import MAX_INT, NonFinite, number_in, real
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import (
    MONITOR_SCHEMA_ID,
    EvalPoint,
    GapReading,
    LossPair,
    MonitorReport,
    RunAccount,
    SignalSummary,
    TrainSummary,
)
from gradience.telemetry.reader import RunSummary, version_notes
from gradience.telemetry.series import Column, RunSeries

_HELD_OUT: Final = ("test", "eval", "validation", "valid", "val", "dev")
_DERIVED: Final = "n_derived_from"
_DERIVATION: Final = "runtime * samples_per_second"
_FEW_EXAMPLES: Final = 200  # under it, a difference of a few points is chance, so the count is told
_CLASSES: Final = {  # number of classes of a data set, used if the log does not state it
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


def monitor_run(
    path: str | os.PathLike[str],
    *,
    gap_threshold: float = DEFAULT_GAP,
    run: str | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: str | os.PathLike[str] | None = None,
) -> MonitorReport:
    """Report on the last run in a log, or on one run by its id.

    What other programs leave (an output folder, a trainer_state.json, a table, ...) is imported in memory: nothing is
    written, and a note says what was read.

    Args:
        path: a run.jsonl, a folder that holds one, or anything that `gradience import` reads.
        gap_threshold: held-out over train perplexity from which the gap is a finding.
        run: id, or name in an import, of the run to show; the last if None.
        select: ids of detectors, or beginnings of ids, to apply; all by default.
        ignore: ids of detectors, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`. Its `select` and `ignore` apply if the
            arguments of that name are empty. If None, no file is looked for.

    Raises:
        RecorderError: the log is missing, empty, or holds no event at all, or no such run.
        ConfigError: an id is not known, or the settings cannot be read.
        SchemaError: the log is of another major version.
    """
    left_out = excluded_rules(DETECTED, select=select, ignore=ignore, settings=settings)
    source = open_source(path, run)
    shown = source.summary.last
    assert shown is not None  # noqa: S101  # open_source refuses a source without a run
    return report_of(source, shown, gap_threshold=gap_threshold, left_out=left_out)


def report_of(
    source: LogSource,
    run: RunSeries,
    *,
    gap_threshold: float = DEFAULT_GAP,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> MonitorReport:
    """The report on one run of a source; detectors left out are listed with their reasons."""
    summary, config = source.summary, run.config or ConfigSnapshot()
    facts = in_order(facts_of(summary, run, config, gap_threshold))
    train = _train(run, facts)
    findings, not_run = without(*detect(facts), left_out)
    parts = story_parts(facts, findings, train)
    of = msgspec.structs.replace(
        account(facts),
        comparable=_on_one_scale(facts),
        learns=_learns(facts, findings),
        marks=marks(facts),
        kept_step=kept_step(account(facts)),
    )
    audit = run.latest_metrics.get("lora_audit")
    fed = run.latest_metrics.get("data")
    return MonitorReport(
        schema=MONITOR_SCHEMA_ID,
        story=line_of(parts),
        story_parts=parts,
        file=str(source.path),
        run_id=run.run_id,
        other_runs=[run_id for run_id in summary.runs if run_id != run.run_id],
        sessions=len(run.record.sessions),
        config=config,
        status=facts.status,
        status_reason=facts.status_reason,
        events=dict(summary.counts),
        train=train,
        signals={name: _signal(column, least=2) for name, column in facts.signals.items()},
        probes={name.partition("/")[2]: _signal(_by_step(run.columns[name])) for name in PROBES if name in run.columns},
        objective=facts.objective.kind,
        account=of,
        evals=list(facts.evals),
        gap=gap_of(of.last_pair) if of.comparable and _as_perplexity(facts, of) else None,
        lora_audit=audit.metrics if audit else None,
        lora_audit_step=audit.step if audit else None,
        data=fed.metrics if fed else None,
        pace=pace_of(run.paces),
        alerts=run.alerts,
        recommendations=run.recommendations,
        findings=findings,
        advice=advice(facts, findings),
        not_run=not_run,
        issues=summary.issues,
        issues_total=summary.issues_total,
        notes=[*source.notes, *_notes(summary, run), *derived_notes(facts.evals)],
    )


def facts_of(
    summary: RunSummary, run: RunSeries, config: ConfigSnapshot, gap_threshold: float = DEFAULT_GAP
) -> RunFacts:
    """The facts of one run of a log, as the rules judge them."""
    evals = [point for point in latest_evals(run) if not _is_foreign(run, point.step)]
    record = run.record
    audit, data = run.latest_metrics.get("lora_audit"), run.latest_metrics.get("data")
    chosen = run.latest_metrics.get("selection")
    return RunFacts(
        series=Series(
            run.steps, run.losses, run.grad_norms, run.rates, frozenset(run.lost_norms), not record.out_of_order
        ),
        evals=evals,
        held_out=held_out_of(evals),
        num_labels=_num_labels(config),
        epoch=run.last_epoch,
        audit=audit.metrics if audit else None,
        data=data.metrics if data else None,
        status=run.end.status if run.end else "no_run_end",
        status_reason=run.end.reason if run.end else None,
        last_step=run.last_step,
        issues=summary.issues,
        issues_total=summary.issues_total,
        gap_threshold=gap_threshold,
        config=config,
        logged=frozenset(run.columns),
        signals={
            name: _by_step(run.columns[name]) for name in SIGNALS if name in run.columns and run.columns[name].steps
        },
        history=[event for event in run.evals if not _is_foreign(run, event.step)],
        record=record,
        wirings=run.wirings,
        fed=run.fed,
        fed_before=run.fed_before,
        paces=run.paces,
        chosen=chosen.metrics if chosen else {},
    )


def _is_foreign(run: RunSeries, step: int | None) -> bool:
    """Whether an evaluation was of another model, or of this one without its adapter: it tells nothing of the run.

    An evaluation that called the same as the one before has no event of its own.
    """
    seen = [at.evaluation for at in run.wirings if at.evaluation is not None and (at.step or 0) <= (step or 0)]
    return bool(seen) and (not seen[-1].called or seen[-1].adapted is False)


def _by_step(column: Column) -> Signal:
    """A column sorted by step; of a step that was logged again, the last value."""
    steps, values = column.steps, column.values
    if all(map(lt, steps, islice(steps, 1, None))):
        return Signal(steps, values)
    last = dict(zip(steps, values, strict=True))
    return Signal(sorted(last), [last[step] for step in sorted(last)])


def _num_labels(config: ConfigSnapshot) -> int | None:
    if config.num_labels:
        return config.num_labels
    recorded = config.extras.get("num_labels")
    if isinstance(recorded, int):
        return recorded
    name = (config.dataset_name or "").lower().replace("-", "_").rsplit("/", 1)[-1]
    return _CLASSES.get(name)


def _train(run: RunSeries, facts: RunFacts) -> TrainSummary:
    losses, steps = run.losses, run.steps
    lowest = _known(facts.loss.lowest)
    levels = noisy_levels(facts)
    return TrainSummary(
        rows=len(losses),
        superseded_rows=run.superseded,
        non_finite_rows=len(losses) - len(facts.loss.values),
        first_step=steps[0] if steps else None,
        last_step=run.last_step,
        first_loss=_real(losses, 0),
        last_loss=_real(losses, -1),
        first_level=levels.start if levels is not None else None,
        last_level=levels.end if levels is not None else None,
        min_loss=lowest,
        min_loss_step=None if lowest is None else steps[losses.index(lowest)],
        max_lr=_known(facts.peak_rate),
        duration_s=None if run.first_ts is None or run.last_ts is None else run.last_ts - run.first_ts,
    )


def _signal(column: Signal, *, least: int = 1) -> SignalSummary:
    """The column's medians over its first and last fifth, of at least so many rows, and its range."""
    first, last, _ = ends(column, least)
    values = column.values
    return SignalSummary(rows=len(values), first=first, last=last, lowest=min(values), highest=max(values))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _real(values: Sequence[float], index: int) -> float | NonFinite | None:
    return real(values[index]) if values else None


def _notes(summary: RunSummary, run: RunSeries) -> list[str]:
    notes = []
    if run.config is None:
        notes.append("no run_start in the log: the configuration is unknown")
    if len(summary.runs) > 1:
        others = ", ".join(run_id for run_id in summary.runs if run_id != run.run_id)
        notes.append(f"{len(summary.runs)} runs in this log; {run.run_id} is shown; 'gradience runs': {others} too")
    if run.record.resumed_from:
        steps = ", ".join(map(str, run.record.resumed_from))
        notes.append(f"resumed from step {steps}; {run.superseded} superseded rows are not shown")
    if summary.unknown:
        known = ", ".join(f"{name} ({n})" for name, n in summary.unknown.items())
        notes.append(f"events of a name unknown here were kept and not used: {known}")
    notes += version_notes(summary.version, summary.softened)
    if summary.bare_tokens:
        notes.append(f"{summary.bare_tokens} lines hold bare NaN or Infinity, which is not JSON; they were read anyway")
    return notes


def latest_evals(run: RunSeries) -> list[EvalPoint]:
    """The newest evaluation of every split, train first, then held-out splits, then others."""
    newest = {event.split: event for event in run.evals}
    order = {split: place for place, split in enumerate(("train", *_HELD_OUT))}
    splits = sorted(newest, key=lambda split: (order.get(split, len(order)), split))
    return [_with_count(EvalPoint(split=s, step=newest[s].step, metrics=newest[s].metrics)) for s in splits]


def _with_count(point: EvalPoint) -> EvalPoint:
    """The evaluation with its number of examples, computed from runtime and speed if the log lacks it."""
    metrics = point.metrics
    rate, runtime = (number_in(metrics.extras, key) for key in ("samples_per_second", "runtime"))
    if metrics.n is not None or rate is None or runtime is None or not 0.5 < rate * runtime < MAX_INT:  # noqa: PLR2004  # rounds to one example at least
        return point
    extras = {**metrics.extras, _DERIVED: _DERIVATION}
    counted = msgspec.structs.replace(metrics, n=round(rate * runtime), extras=extras)
    return msgspec.structs.replace(point, metrics=counted)


def derived_notes(evals: Sequence[EvalPoint]) -> list[str]:
    """A note on the numbers of examples that were computed from runtime and speed, if they are few."""
    few = [point for point in evals if _DERIVED in point.metrics.extras and (point.metrics.n or 0) < _FEW_EXAMPLES]
    counts = [f"{point.split} {point.metrics.n}" for point in few]
    return [f"examples per evaluation, derived as {_DERIVATION} (about): {', '.join(counts)}"] if counts else []


def held_out_of(evals: Sequence[EvalPoint]) -> EvalPoint | None:
    """The evaluation that stands for held-out data: the first that is not of the train split; or None."""
    return next((point for point in evals if point.split != "train"), None)


def _learns(facts: RunFacts, findings: Iterable[Finding]) -> bool | None:
    """Whether the run learns; False if a finding denies it, None if nothing shows it."""
    if any(found.severity != "info" and "learning" in RULE_OF[found.id].covered_by(found) for found in findings):
        return False
    return True if learning(facts).shown else None


def _on_one_scale(facts: RunFacts) -> bool:
    """Whether training and held-out loss measure the same; preferences and rewards have no such gap."""
    return account(facts).loss not in {"preference", "reward", "rl"} and other_scale.observe(facts) is None


def _as_perplexity(facts: RunFacts, of: RunAccount) -> bool:
    logged = facts.held_out is not None and facts.held_out.metrics.ppl is not None
    return logged or of.loss == "language_model"


def gap_of(pair: LossPair | None) -> GapReading | None:
    """The gap between the losses of a pair, as perplexities; None without a pair."""
    if pair is None:
        return None
    nats = pair.held_out - pair.train
    try:
        ratio = math.exp(nats)
    except OverflowError:
        ratio = math.inf
    return GapReading(
        train_split="train" if pair.rows == 0 else _named(pair),
        test_split=pair.split,
        ratio=real(ratio),
        nats=real(nats),
        same_step=True,
        step=pair.step,
        train_loss=pair.train,
        test_loss=pair.held_out,
    )


def _named(pair: LossPair) -> str:
    if pair.rows == 1:
        return f"the training row of step {pair.first_step}"
    return f"training rows of steps {pair.first_step} to {pair.last_step}"
