"""The crossing: what check, monitor and audit say, each with its reason where it says nothing, joined into causes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from gradience.base.folder import find_shards
from gradience.check import check_config
from gradience.diagnosis.checkpoints import Choice, choose
from gradience.diagnosis.disk import disk_signs
from gradience.diagnosis.read import Read, read_sources
from gradience.diagnosis.sources import PathLike, Sources, find_sources
from gradience.diagnosis.verdict import IDS, coverage_of, headline, is_complete, unjudged, verdict_of
from gradience.policy.joins import Join, Sign, join_signs
from gradience.policy.joins_config import Stated, disagreements, recorded_disagreements
from gradience.policy.joins_signs import config_signs, log_signs, weights_signs
from gradience.policy.joins_table import JOINS
from gradience.policy.run_detectors import DEFAULT_GAP
from gradience.schema.diagnose import (
    DIAGNOSE_SCHEMA_ID,
    SOURCES,
    Cause,
    DiagnoseReport,
    Piece,
    PieceSource,
    Unjudged,
)
from gradience.schema.findings import SEVERITIES, Finding
from gradience.selected import rules_left_out

__all__ = ["diagnose", "diagnose_sources", "judge_sources"]

_ALL: Final = [*dict.fromkeys(rule for ids in IDS.values() for rule in ids), *(join.id for join in JOINS)]


def diagnose(
    path: PathLike | None = None,
    *,
    run: PathLike | None = None,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
    task: str | None = None,
    gap_threshold: float = DEFAULT_GAP,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> DiagnoseReport:
    """Return one verdict on a run from its configuration, its log and its weights, with causes that join them.

    Args:
        path: the folder that a run left; log, adapter and configuration are looked for in it.
        run: the log, where it is elsewhere: anything that `gradience monitor` reads.
        adapter: the adapter, where it is elsewhere: anything that `gradience audit` reads.
        config: the configuration, where it is elsewhere: anything that `gradience check` reads.
        base: the base model, for the audit and the check: a folder or `organisation/name` in the hub's local cache.
        task: what was trained (`sst2`, `sft`, `dpo`, ...), for the check.
        gap_threshold: held-out over train perplexity from which the gap is a finding.
        select: ids of rules, detectors, checks and joins, or beginnings of ids, to apply; all by default.
        ignore: ids, or beginnings of ids, to leave out; what is left out is in no cause.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`, whose `select` and `ignore` apply where
            the arguments of that name are empty. None is looked for.

    Raises:
        GradienceError: an id is not known, nothing was given, a path does not exist, or the folder holds several runs.
    """
    sources = find_sources(path, run=run, adapter=adapter, config=config)
    return diagnose_sources(
        sources, base=base, task=task, gap_threshold=gap_threshold, select=select, ignore=ignore, settings=settings
    )


def diagnose_sources(
    sources: Sources,
    *,
    base: PathLike | None = None,
    task: str | None = None,
    gap_threshold: float = DEFAULT_GAP,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> DiagnoseReport:
    """Return the verdict on sources that were found; what cannot be read is said, and the rest is judged."""
    left_out = rules_left_out(_ALL, select=select, ignore=ignore, settings=settings)
    if base is not None:
        find_shards(Path(base))  # what was named and cannot be read is said at once
    return judge_sources(sources, read_sources(sources, base, task, gap_threshold, left_out=left_out), left_out)


def judge_sources(sources: Sources, read: Read, left_out: Mapping[str, str] = MappingProxyType({})) -> DiagnoseReport:
    """Return the verdict on what was read; a join left out is named with its reason."""
    monitor = read.log.report if read.log else None
    choice = Choice([])
    if read.log:
        choice = choose(sources.checkpoints, read.log.run.evals, read.log.report, sources.weights.path)
    states = [read.states[source] for source in SOURCES]
    not_run = unjudged(states, read.check, monitor, read.audit, left_out)
    coverage = coverage_of(not_run)
    causes = _causes([join for join in JOINS if join.id not in left_out], list(_signs(sources, read, choice)), not_run)
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


def _causes(joins: Iterable[Join], signs: list[Sign], not_run: list[Unjudged]) -> list[Cause]:
    """Return the joined causes, and each finding that none of them took by itself; the gravest first."""
    gone = {(item.source, item.id) for item in not_run} | {(sign.source, sign.id) for sign in signs}
    quiet = frozenset((source, rule) for source, ids in IDS.items() for rule in ids if (source, rule) not in gone)
    joined = join_signs(joins, signs, quiet)
    causes = [*joined.causes, *(_alone(sign.source, sign.finding) for sign in joined.left if sign.finding)]
    return sorted(causes, key=lambda cause: (-SEVERITIES.index(cause.severity), not cause.joined))


def _signs(sources: Sources, read: Read, choice: Choice) -> Iterator[Sign]:
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


def _stated(sources: Sources, read: Read) -> Iterator[Stated]:
    """Yield what is stated of the adapter elsewhere than in its own folder."""
    if read.log and sources.log.path and sources.log.path.is_file():  # a folder's import has the adapter's own config
        yield Stated("the log's settings", read.log.report.config.lora)
    if read.check and sources.config.path:
        yield Stated(sources.config.path.name, check_config(document=sources.config.path).config.lora)


def _alone(source: PieceSource, finding: Finding) -> Cause:
    piece = Piece(source=source, id=finding.id, severity=finding.severity, says=finding.message)
    return Cause(**msgspec.structs.asdict(finding), pieces=[piece])
