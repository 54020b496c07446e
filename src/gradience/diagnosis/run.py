"""The crossing: what check, monitor and audit say, each with its reason where it says nothing, joined into causes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gradience.check import check_config
from gradience.diagnosis.checkpoints import Choice, choose
from gradience.diagnosis.disk import disk_signs
from gradience.diagnosis.sources import Found, PathLike, Sources, find_sources
from gradience.diagnosis.verdict import IDS, coverage_of, headline, is_complete, unjudged, verdict_of
from gradience.errors import GradienceError
from gradience.monitor.run import report_of
from gradience.monitor.source import open_source
from gradience.policy.joins import Sign, join_signs
from gradience.policy.joins_config import Stated, disagreements, recorded_disagreements
from gradience.policy.joins_signs import config_signs, log_signs, weights_signs
from gradience.policy.joins_table import JOINS
from gradience.policy.run_detectors import DEFAULT_GAP
from gradience.schema.audit import AuditReport
from gradience.schema.config import ConfigSnapshot
from gradience.schema.diagnose import (
    DIAGNOSE_SCHEMA_ID,
    SOURCES,
    Cause,
    DiagnosedSource,
    DiagnoseReport,
    Piece,
    Source,
    Unjudged,
)
from gradience.schema.findings import SEVERITIES
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.telemetry.summary import RunSeries

__all__ = ["diagnose", "diagnose_sources"]


class _Log(NamedTuple):
    report: MonitorReport
    run: RunSeries


class _Read(NamedTuple):
    """What was read, and for each source how that went."""

    states: dict[Source, DiagnosedSource]
    check: CheckReport | None
    log: _Log | None
    audit: AuditReport | None


def diagnose(
    path: PathLike | None = None,
    *,
    run: PathLike | None = None,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    task: str | None = None,
    gap_threshold: float = DEFAULT_GAP,
) -> DiagnoseReport:
    """Return one verdict on a run from its configuration, its log and its weights, with causes that join them.

    Args:
        path: the folder that a run left; log, adapter and configuration are looked for in it.
        run: the log, where it is elsewhere: anything that `gradience monitor` reads.
        adapter: the adapter, where it is elsewhere: anything that `gradience audit` reads.
        config: the configuration, where it is elsewhere: anything that `gradience check` reads.
        base: the base model, for the audit.
        task: what was trained (`sst2`, `sft`, `dpo`, ...), for the check.
        gap_threshold: held-out over train perplexity from which the gap is a finding.

    Raises:
        GradienceError: nothing was given, a path does not exist, or the folder holds several runs.
    """
    sources = find_sources(path, run=run, adapter=adapter, config=config)
    return diagnose_sources(sources, base=base, task=task, gap_threshold=gap_threshold)


def diagnose_sources(
    sources: Sources,
    *,
    base: PathLike | None = None,
    task: str | None = None,
    gap_threshold: float = DEFAULT_GAP,
) -> DiagnoseReport:
    """Return the verdict on sources that were found; what cannot be read is said, and the rest is judged."""
    read = _read(sources, base, task, gap_threshold)
    monitor = read.log.report if read.log else None
    choice = Choice([])
    if read.log:
        choice = choose(sources.checkpoints, read.log.run.evals, read.log.report, sources.weights.path)
    states = [read.states[source] for source in SOURCES]
    not_run = unjudged(states, read.check, monitor, read.audit)
    coverage = coverage_of(not_run)
    causes = _causes(sources, read, choice, not_run)
    complete = is_complete(states, coverage)
    verdict = verdict_of(causes, complete=complete)
    return DiagnoseReport(
        schema=DIAGNOSE_SCHEMA_ID,
        path=str(sources.path),
        verdict=verdict,
        headline=headline(verdict, states, causes, coverage),
        complete=complete,
        sources=states,
        causes=causes,
        coverage=coverage,
        not_run=not_run,
        checkpoints=choice.checkpoints,
        best_checkpoint=choice.best,
        check=read.check,
        monitor=monitor,
        audit=read.audit,
        notes=[*sources.notes, *(monitor.notes if monitor else []), *(read.audit.notes if read.audit else [])],
    )


def _read(sources: Sources, base: PathLike | None, task: str | None, gap_threshold: float) -> _Read:
    states: dict[Source, DiagnosedSource] = {}
    log, states["log"] = _read_log(sources.log, gap_threshold)
    audit, states["weights"] = _read_weights(sources.weights, base)
    check, states["config"] = _read_config(sources, log.report.config if log else None, task)
    return _Read(states, check, log, audit)


def _state(source: Source, found: Found, *, holds: str = "", fault: GradienceError | None = None) -> DiagnosedSource:
    path = None if found.path is None else str(found.path)
    if fault is not None:
        return DiagnosedSource(source=source, state="unreadable", path=path, chosen=found.chosen, reason=str(fault))
    if found.path is None:
        return DiagnosedSource(source=source, state="absent", reason=found.reason)
    return DiagnosedSource(source=source, state="read", path=path, chosen=found.chosen, holds=holds)


def _read_log(found: Found, gap_threshold: float) -> tuple[_Log | None, DiagnosedSource]:
    if found.path is None:
        return None, _state("log", found)
    try:
        source = open_source(found.path)
        run = source.summary.last
        assert run is not None  # noqa: S101  # open_source refuses a source without a run
        log = _Log(report_of(source, run, gap_threshold=gap_threshold), run)
    except GradienceError as fault:
        return None, _state("log", found, fault=fault)
    rows, evals = log.report.train.rows, len(run.evals)
    holds = f"{_plural(rows, 'row')}, {_plural(evals, 'evaluation')}, status {log.report.status.replace('_', ' ')}"
    return log, _state("log", found, holds=holds)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _read_weights(found: Found, base: PathLike | None) -> tuple[AuditReport | None, DiagnosedSource]:
    if found.path is None:
        return None, _state("weights", found)
    from gradience.audit import audit_adapter  # noqa: PLC0415  # imports jax: only where there are weights

    try:
        audit = audit_adapter(found.path, base=base)
    except GradienceError as fault:
        return None, _state("weights", found, fault=fault)
    holds = f"{_plural(len(audit.modules), 'module')}, {audit.health.verdict.replace('_', ' ')}"
    return audit, _state("weights", found, holds=holds)


def _read_config(
    sources: Sources, logged: ConfigSnapshot | None, task: str | None
) -> tuple[CheckReport | None, DiagnosedSource]:
    """Return the check of what the log states, below the files: what was named, else arguments and adapter config."""
    logged = None if logged == ConfigSnapshot() else logged
    named, training = sources.config.path, sources.training
    beside = _config_beside(sources.weights.path) if named is None else None
    if logged is None and named is None and training is None and beside is None:
        return None, _state("config", sources.config)
    found = Found(named or training or beside or sources.log.path, chosen=sources.config.chosen)
    try:
        check = check_config(logged, document=named, peft=beside, training=None if named else training, task=task)
    except GradienceError as fault:
        return None, _state("config", found, fault=fault)
    files = [Path(file.path).name for file in check.sources]
    holds = ", ".join(dict.fromkeys([*(["settings in the log"] if logged else []), *files]))
    return check, _state("config", found, holds=holds)


def _config_beside(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    path = (weights if weights.is_dir() else weights.parent) / "adapter_config.json"
    return path if path.is_file() else None


def _causes(sources: Sources, read: _Read, choice: Choice, not_run: list[Unjudged]) -> list[Cause]:
    """Return the joined causes, and each finding that none of them took by itself; the gravest first."""
    signs = list(_signs(sources, read, choice))
    gone = {(item.source, item.id) for item in not_run} | {(sign.source, sign.id) for sign in signs}
    quiet = frozenset((source, rule) for source, ids in IDS.items() for rule in ids if (source, rule) not in gone)
    joined = join_signs(JOINS, signs, quiet)
    causes = [*joined.causes, *(_alone(sign) for sign in joined.left if sign.finding is not None)]
    return sorted(causes, key=lambda cause: (-SEVERITIES.index(cause.severity), not cause.joined))


def _signs(sources: Sources, read: _Read, choice: Choice) -> Iterator[Sign]:
    if read.check:
        yield from config_signs(read.check)
    if read.log:
        yield from log_signs(read.log.report)
        yield from disk_signs(sources, choice, read.log.report, read.log.run)
    if read.audit:
        yield from weights_signs(read.audit)
        yield from disagreements(_stated(sources, read), read.audit)
        if read.log:
            yield from recorded_disagreements(read.log.report, read.audit)


def _stated(sources: Sources, read: _Read) -> Iterator[Stated]:
    """Yield what is stated of the adapter elsewhere than in its own folder."""
    if read.log and sources.log.path and sources.log.path.is_file():  # a folder's import has the adapter's own config
        yield Stated("the log's run_start", read.log.report.config.lora)
    if read.check and sources.config.path:
        yield Stated(sources.config.path.name, check_config(document=sources.config.path).config.lora)


def _alone(sign: Sign) -> Cause:
    if sign.finding is None:
        raise ValueError(f"a fact is no cause: {sign.id}")
    finding = sign.finding
    piece = Piece(source=sign.source, id=sign.id, severity=finding.severity, says=finding.message)
    return Cause(**msgspec.structs.asdict(finding), pieces=[piece])
