"""The verb ``monitor``: a reading of a run, judged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from gradience.configs.commands import Known, known_of, with_commands
from gradience.folder import Documents
from gradience.folder.found import around
from gradience.folder.runs import read_run
from gradience.reading import Reading
from gradience.rules import Verdict, excluded_rules
from gradience.rules.judged import ALL, OF_RUNS, judge_parts, of_part
from gradience.rules.log import DETECTED, RULE_OF, detect
from gradience.rules.log.account import account, kept_step
from gradience.rules.log.advice import advice
from gradience.rules.log.choice import marks
from gradience.rules.log.divergence import other_scale
from gradience.rules.log.facts import DEFAULT_GAP, PROBES, RunFacts, Signal, by_step, derived_notes, ends
from gradience.rules.log.learning import learning
from gradience.rules.log.pace import pace_of
from gradience.rules.log.story import line_of, noisy_levels, story_parts
from gradience.schema import NonFinite, real
from gradience.schema.document import Finding
from gradience.schema.reports import (
    MONITOR_SCHEMA_ID,
    GapReading,
    LossPair,
    MonitorReport,
    RunAccount,
    SignalSummary,
    TrainSummary,
)
from gradience.telemetry.series import RunSeries


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
        select: ids of rules, or beginnings of ids, to apply; all by default.
        ignore: ids of rules, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`. Its `select` and `ignore` apply if the
            arguments of that name are empty. If None, no file is looked for.

    Raises:
        RecorderError: the log is missing, empty, or holds no event at all, or no such run.
        ConfigError: an id is not known, or the settings cannot be read.
        SchemaError: the log is of another major version.
    """
    left_out = excluded_rules(ALL, select=select, ignore=ignore, settings=settings)
    return monitored(read_run(path, run), gap_threshold=gap_threshold, left_out=left_out)


def monitored(
    reading: Reading,
    *,
    gap_threshold: float = DEFAULT_GAP,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> MonitorReport:
    """The report on a run that was read, with what its settings say of it."""
    facts, documents = facts_of(reading, gap_threshold), Documents(around(reading))
    own = {rule: why for rule, why in left_out.items() if rule in DETECTED}
    report = report_of(reading, facts=facts, left_out=own)
    log = Verdict(report.findings, report.not_run, report.readings)
    judged = judge_parts(documents, facts=facts, log=log, left_out=left_out, parts=("log", "config"))
    findings = of_part(judged.together(left_out).causes, "log", also=OF_RUNS)
    return msgspec.structs.replace(report, findings=findings)


def facts_of(reading: Reading, gap_threshold: float = DEFAULT_GAP) -> RunFacts:
    """The facts of a run that was read."""
    return RunFacts(reading.run, reading.log.issues, reading.log.issues_total, gap_threshold)


def report_of(
    reading: Reading,
    *,
    gap_threshold: float = DEFAULT_GAP,
    left_out: Mapping[str, str] = MappingProxyType({}),
    facts: RunFacts | None = None,
) -> MonitorReport:
    """The report on a run that was read; detectors left out are listed with their reasons."""
    run, log = reading.run, reading.log
    facts = facts or facts_of(reading, gap_threshold)
    train = _train(run, facts)
    verdict = detect(facts).without(left_out)
    findings = with_commands(verdict.findings, lambda: _words(reading, facts))
    told = [*findings, *verdict.readings]
    parts = story_parts(facts, told, train)
    of = msgspec.structs.replace(
        account(facts),
        comparable=_on_one_scale(facts),
        learns=_learns(facts, told),
        marks=marks(facts),
        kept_step=kept_step(account(facts)),
    )
    audit, fed = (run.latest_metrics.get(kind) for kind in ("lora_audit", "data"))
    return MonitorReport(
        schema=MONITOR_SCHEMA_ID,
        story=line_of(parts),
        story_parts=parts,
        file=str(reading.path),
        run_id=run.run_id,
        other_runs=reading.other_runs,
        sessions=len(run.record.sessions),
        config=facts.config,
        status=facts.status,
        status_reason=facts.status_reason,
        events=dict(log.counts),
        train=train,
        signals={name: _signal(column, least=2) for name, column in facts.signals.items()},
        probes={name.partition("/")[2]: _signal(by_step(run.columns[name])) for name in PROBES if name in run.columns},
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
        readings=with_commands(verdict.readings, lambda: _words(reading, facts)),
        advice=advice(facts, findings),
        not_run=verdict.not_run,
        issues=log.issues,
        issues_total=log.issues_total,
        notes=[*reading.notes(), *derived_notes(facts.evals)],
    )


def _words(reading: Reading, facts: RunFacts) -> Known:
    """What the words of commands stand for, by the log and what lies beside it."""
    documents = Documents(around(reading))
    adapter, base = documents.weights.path, documents.beside(facts.config.model_name)
    total = facts.run.paces[-1].total_bytes if facts.run.paces else None
    size = f"{total / 2**30:.4g}GiB" if total else None
    return {
        **known_of(None if adapter is None else str(adapter), base, rank=facts.config.lora.r),
        "RUN": str(reading.path),
        "SIZE": size,
    }


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


def _learns(facts: RunFacts, findings: Iterable[Finding]) -> bool | None:
    """Whether the run learns; False if a finding denies it, None if nothing shows it."""
    pairs = ((RULE_OF[each.id], each) for each in findings)
    if any("learning" in rule.covered_by(each) for rule, each in pairs if each.severity != "info" or rule.as_info):
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
        step=pair.step,
        train_loss=pair.train,
        test_loss=pair.held_out,
    )


def _named(pair: LossPair) -> str:
    if pair.rows == 1:
        return f"the training row of step {pair.first_step}"
    return f"training rows of steps {pair.first_step} to {pair.last_step}"
