"""Diagnose a run: read the reports of check, monitor and audit, and join their findings into causes and one verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Unpack

from gradience.base.weights import find_shards
from gradience.blocks import counted
from gradience.folder import Documents, Found, find
from gradience.folder.runs import log_place
from gradience.io import PathLike
from gradience.rules import Verdict as PartVerdict, excluded_rules
from gradience.rules.joins.run import JOINS
from gradience.rules.judged import ALL, IDS, NOT_BORNE_OUT, Judged
from gradience.rules.log.facts import DEFAULT_GAP
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import (
    DIAGNOSE_SCHEMA_ID,
    SOURCES,
    VERDICT_LABELS,
    Cause,
    CauseAdvice,
    Checkpoint,
    DiagnosedSource,
    DiagnoseReport,
    Piece,
    SourceCoverage,
    SourceKind,
    Unjudged,
    Verdict,
)
from gradience.schema.document import SEVERITIES, NotRun
from gradience.schema.reports import CheckReport, MonitorReport, SourceLocation
from gradience.verbs.check.run import source_locations as config_locations
from gradience.verbs.diagnose.checkpoints import CheckpointChoice, choose, disk_symptoms
from gradience.verbs.diagnose.options import DiagnoseKeywords, DiagnoseOptions
from gradience.verbs.diagnose.sources import SourceReports, read_sources
from gradience.verbs.diagnose.spare import spare_checkpoints
from gradience.verbs.diagnose.verdict import doubts, verdict_of

_DEFAULTS: Final = DiagnoseOptions()


def source_locations(report: DiagnoseReport) -> list[SourceLocation | None]:
    """The source location of each cause, in order: that of its first piece that has one."""
    of_source = {
        "log": log_place(report.monitor.file) if report.monitor else None,
        "weights": SourceLocation(report.audit.weights_path) if report.audit else None,
    }
    of_config: dict[str, SourceLocation | None] = {}
    if report.check is not None:
        for finding, place in zip(report.check.findings, config_locations(report.check), strict=True):
            of_config.setdefault(finding.id, place)  # the first finding of a rule counts

    def location(piece: Piece) -> SourceLocation | None:
        return of_config.get(piece.id) if piece.source == "config" else of_source.get(piece.source)

    return [next(filter(None, map(location, cause.pieces)), None) for cause in report.findings]


def unjudged(
    sources: Iterable[DiagnosedSource],
    check: CheckReport | None,
    monitor: MonitorReport | None,
    audit: AuditReport | None,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> list[Unjudged]:
    """Every rule, detector, check and join that did not run or was left out, with its reason."""
    skipped: dict[SourceKind, list[NotRun] | None] = {
        "config": check.not_run if check else None,
        "log": monitor.not_run if monitor else None,
        "weights": audit.not_run if audit else None,
    }
    read = frozenset(source.source for source in sources if source.state == "read")
    not_judged: list[Unjudged] = []
    for source in sources:
        items = skipped[source.source]
        if items is None:
            items = [NotRun(id=rule, reason=source.reason) for rule in IDS[source.source]]
        not_judged += [Unjudged(source=source.source, id=item.id, reason=item.reason) for item in items]
    lacking = ((join.id, left_out.get(join.id) or join.missing(read)) for join in JOINS)
    return not_judged + [Unjudged(source="join", id=rule, reason=why) for rule, why in lacking if why is not None]


def coverage_of(not_run: Iterable[Unjudged]) -> list[SourceCoverage]:
    """The number of rules of each source, and of joins, that ran."""
    gone: dict[str, set[str]] = {}
    for item in not_run:
        gone.setdefault(item.source, set()).add(item.id)
    counts = [
        SourceCoverage(source=source, judged=len(set(ids) - gone.get(source, set())), total=len(ids))
        for source, ids in IDS.items()
    ]
    lost = len(gone.get("join", set()))
    return [*counts, SourceCoverage(source="join", judged=len(JOINS) - lost, total=len(JOINS))]


def is_complete(sources: Iterable[DiagnosedSource], coverage: Iterable[SourceCoverage]) -> bool:
    """Whether at least one rule was judged and every source that exists could be read."""
    judged = sum(item.judged for item in coverage if item.source != "join")
    return judged > 0 and all(source.state != "unreadable" for source in sources)


def headline(
    verdict: Verdict,
    sources: Sequence[DiagnosedSource],
    causes: Sequence[Cause],
    coverage: Sequence[SourceCoverage],
    runs: str = "",
    *,
    analysed: bool = True,
) -> str:
    """The verdict in one line, with the number of causes, the rules that ran, the missing sources, and other runs.

    `analysed` says whether the weights that are there, if any, were.

    >>> headline("could_not_judge", [DiagnosedSource(source="log", state="absent")], [], [])
    'could not judge; checked: nothing; not there: log'
    """
    ran = {item.source: f"{item.judged} of {item.total}" for item in coverage}
    read, absent, unreadable = (
        [source.source for source in sources if source.state == state] for state in ("read", "absent", "unreadable")
    )
    dark = [] if analysed else [name for name in read if name == "weights"]
    alone = verdict == "could_not_judge" and set(read) - set(dark) == {"config"} and not unreadable
    counts = ", ".join([*(["settings alone"] if alone else []), *_counts(causes)])
    checked = f"checked: {', '.join(f'{source} {ran[source]}' for source in read) or 'nothing'}"
    # "No problems found" is worth as much as was checked, so that comes first. Else the severities come first.
    first, second = (checked, counts) if verdict in {"no_fault_found", "worth_a_look"} else (counts, checked)
    missing = (("not there", absent), ("not analysed", dark), ("there but not readable", unreadable))
    parts = (runs, second, *(f"{label}: {', '.join(names)}" for label, names in missing if names))
    return "; ".join([VERDICT_LABELS[verdict] + (f" ({first})" if first else ""), *(part for part in parts if part)])


def runs_here(monitor: MonitorReport | None, checkpoints: Iterable[Checkpoint]) -> str:
    """How many runs the sources hold and which one was judged, for the headline; empty if there is only one.

    >>> runs_here(None, [])
    ''
    """
    if monitor is None:
        return ""
    named = list(checkpoints)
    strange = [item.name for item in named if item.of_run is False]
    count = max(1 + len(monitor.other_runs), 1 + bool(strange))
    if count == 1:
        return ""
    own = [item.name for item in named if item.of_run]
    which = f"that of {own[-1]}" if own else f"the one that reached step {monitor.train.last_step}"
    if not strange:
        return f"{count} runs here, and {which} is judged"
    others = count - 1
    left = f"that of {strange[-1]}" if others == 1 else f"the {others} others ({strange[-1]} is of one)"
    return f"{count} runs here, and {which} is judged, not {left}"


def _counts(causes: Sequence[Cause]) -> list[str]:
    counts = Counter(cause.severity for cause in causes)
    return [counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]


def diagnose(
    path: PathLike | None = None,
    *,
    options: DiagnoseOptions = _DEFAULTS,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
    **keywords: Unpack[DiagnoseKeywords],
) -> DiagnoseReport:
    """Diagnose a run from its configuration, log and weights: one verdict, with causes that join their findings.

    Args:
        path: the folder that a run left; log, adapter and configuration are looked for in it.
        options: where the run's parts are, if they are elsewhere; its base, its task, and the gap to find.
        select: ids of rules, detectors, checks and joins, or beginnings of ids, to apply; all by default.
        ignore: ids, or beginnings of ids, to leave out; what is left out is in no cause.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`. Its `select` and `ignore` apply if the
            arguments of that name are empty. If None, no file is looked for.
        keywords: single options by name, such as `adapter="peft"`; they win over `options`.

    Raises:
        GradienceError: an id is not known, nothing was given, a path does not exist, or the folder holds several runs.
        OptionError: an option is out of its range.
        TypeError: no option has such a name.
    """
    options = options.completed(keywords)
    found = find(path, run=options.run, adapter=options.adapter, config=options.config)
    return diagnose_found(found, options, select=select, ignore=ignore, settings=settings)


def diagnose_found(
    found: Found,
    options: DiagnoseOptions,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> DiagnoseReport:
    """Diagnose what was found. A part that cannot be read is reported, and the others are judged."""
    left_out = excluded_rules(ALL, select=select, ignore=ignore, settings=settings)
    if options.base is not None:
        find_shards(Path(options.base))  # a base that cannot be read is an error at once
    gap = DEFAULT_GAP if options.gap_threshold is None else options.gap_threshold
    return judge_sources(read_sources(Documents(found), options.base, options.task, gap, left_out=left_out), left_out)


def judge_sources(read: SourceReports, left_out: Mapping[str, str] = MappingProxyType({})) -> DiagnoseReport:
    """Judge what was read; a join left out is listed with its reason."""
    monitor, documents, choice = read.log.report if read.log else None, read.documents, CheckpointChoice([])
    if read.log:
        log, weights = read.log, documents.weights.path
        choice = choose(documents.checkpoints, log.reading.run, log.report, weights, documents.digest_of)
    states = [read.states[source] for source in SOURCES]
    causes, foregone = _judged(read, choice).together(left_out)
    not_run = unjudged(states, read.check, monitor, read.audit, left_out)
    not_run += [Unjudged(source="config", id=rule, reason=NOT_BORNE_OUT) for rule in foregone]
    caused = {cause.id for cause in causes}
    not_run = [item for item in not_run if item.source != "join" or item.id not in caused]
    coverage = coverage_of(not_run)
    analysed = read.audit is None or read.audit.health.verdict != "not_analysed"
    complete, alone = is_complete(states, coverage), monitor is None and (read.audit is None or not analysed)
    adapter = documents.weights.path is not None or documents.config_fields.place.path is not None
    lost = adapter and not alone and read.states["weights"].state == "absent"
    doubt = any(doubts(monitor, read.check, read.audit, lost=lost))
    verdict = verdict_of(causes, complete=complete, doubt=doubt, alone=alone)
    return DiagnoseReport(
        schema=DIAGNOSE_SCHEMA_ID,
        path=str(documents.found.path),
        verdict=verdict,
        headline=headline(verdict, states, causes, coverage, runs_here(monitor, choice.checkpoints), analysed=analysed),
        complete=complete,
        sources=states,
        findings=causes,
        advice=advice_of(causes, monitor),
        coverage=coverage,
        not_run=not_run,
        checkpoints=choice.checkpoints,
        best_checkpoint=choice.best,
        spare=spare_checkpoints(choice, documents.weights.path),
        check=read.check,
        monitor=monitor,
        audit=read.audit,
        notes=[
            *documents.found.notes,
            *(monitor.notes if monitor else []),
            *(read.audit.notes if read.audit else []),
        ],
    )


def advice_of(causes: Sequence[Cause], monitor: MonitorReport | None) -> CauseAdvice | None:
    """What to do next, for the leading cause: as the files on disk allow, else as the log's account does."""
    if not causes or SEVERITIES.index(causes[0].severity) < SEVERITIES.index("warning"):
        return None
    lead = causes[0]
    of_log = monitor.advice if monitor is not None else None
    if (
        of_log is not None
        and any(c.id == of_log.finding for c in causes if c.severity == lead.severity)
        and not lead.joined
    ):
        return CauseAdvice(cause=of_log.finding, text=of_log.text, alternative=of_log.alternative)
    return CauseAdvice(cause=lead.id, text=lead.action) if lead.action else None


def _judged(read: SourceReports, choice: CheckpointChoice) -> Judged:
    """The verdicts of the reports as one record."""
    log, check, weights = read.log, read.check, read.states["weights"]
    disk = [] if log is None else disk_symptoms(read.documents, choice, log.report, log.reading.run)
    return Judged(
        documents=read.documents,
        config=None if check is None else check.config,
        settings=None if check is None else PartVerdict(check.findings, check.not_run, check.readings),
        facts=None if log is None else log.facts,
        log=None if log is None else PartVerdict(log.report.findings, log.report.not_run, log.report.readings),
        weights=read.audit,
        damaged=weights.reason if weights.damaged else "",
        disk=list(disk),
    )
