"""Judge the parts of a run by check, monitor and audit. A part that cannot be read gets a state and raises no error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from gradience.adapters.files import WEIGHT_NAMES
from gradience.errors import DamagedError, GradienceError
from gradience.folder import Documents, Part, Place
from gradience.importers.files import is_pointer
from gradience.io import PathLike
from gradience.reading import Reading
from gradience.rules.config import RULES
from gradience.rules.config.facts import CheckContext
from gradience.rules.log import DETECTED
from gradience.rules.log.facts import RunFacts
from gradience.rules.weights.rules import ADAPTER_RULES
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import DiagnosedSource, SourceKind
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.verbs.check.run import CheckOptions, judged, when_of
from gradience.verbs.monitor.run import facts_of, report_of

_NOT_SETTINGS: Final = frozenset({"base", "trainer state"})  # roles of files that are not named as a configuration


class JudgedLog(NamedTuple):
    """A run's log as it was read, its facts, and monitor's report on it."""

    reading: Reading
    facts: RunFacts
    report: MonitorReport


class SourceReports(NamedTuple):
    """The reports that could be made of a run's parts, and the state of each part."""

    documents: Documents
    states: dict[SourceKind, DiagnosedSource]
    check: CheckReport | None
    log: JudgedLog | None
    audit: AuditReport | None


def read_sources(
    documents: Documents,
    base: PathLike | None,
    task: str | None,
    gap_threshold: float,
    *,
    top_singular_values: int = 0,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> SourceReports:
    """The reports of check, monitor and audit on the parts that exist; rules left out have their reasons."""
    states: dict[SourceKind, DiagnosedSource] = {}
    log, states["log"] = _judge_log(documents.log, gap_threshold, left_out)
    audit, states["weights"] = _judge_weights(documents, base, top_singular_values, left_out)
    check, states["config"] = _judge_settings(documents, log, base, task, left_out)
    return SourceReports(documents, states, check, log, audit)


def _state(source: SourceKind, at: Place, *, holds: str = "", fault: GradienceError | None = None) -> DiagnosedSource:
    path = None if at.path is None else str(at.path)
    if fault is not None:
        return DiagnosedSource(
            source=source,
            state="unreadable",
            path=path,
            chosen=at.chosen,
            reason=fault.message,
            damaged=isinstance(fault, DamagedError),
        )
    if at.path is None:
        return DiagnosedSource(source=source, state="absent", reason=at.reason)
    return DiagnosedSource(source=source, state="read", path=path, chosen=at.chosen, holds=holds)


def _judge_log(
    log: Part[Reading], gap_threshold: float, left_out: Mapping[str, str]
) -> tuple[JudgedLog | None, DiagnosedSource]:
    if (reading := log.held) is None:
        return None, _state("log", log.place, fault=log.fault)
    facts = facts_of(reading, gap_threshold)
    try:
        report = report_of(reading, facts=facts, left_out=_of(DETECTED, left_out))
    except GradienceError as fault:
        return None, _state("log", log.place, fault=fault)
    rows, evals = report.train.rows, len(reading.run.evals)
    holds = f"{_plural(rows, 'row')}, {_plural(evals, 'evaluation')}, status {report.status.replace('_', ' ')}"
    return JudgedLog(reading, facts, report), _state("log", log.place, holds=holds)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _judge_weights(
    documents: Documents, base: PathLike | None, top: int, left_out: Mapping[str, str]
) -> tuple[AuditReport | None, DiagnosedSource]:
    at = documents.weights
    if at.path is None:
        return None, _state("weights", at)
    from gradience.verbs.audit.options import AuditOptions  # only if there are weights
    from gradience.verbs.audit.report import audit_documents  # imports jax, the same

    if (pointer := _pointer(at.path)) is not None:
        return None, _state(
            "weights", Place(reason=f"{pointer} is a git-lfs pointer: 'git lfs pull' fetches the weights")
        )
    unwanted = _of((rule.id for rule in ADAPTER_RULES), left_out)
    try:
        audit = audit_documents(
            documents, AuditOptions().completed({"base": base, "top_singular_values": top}), left_out=unwanted
        )
    except GradienceError as fault:
        return None, _state("weights", at, fault=fault)
    holds = f"{_plural(len(audit.modules), 'module')}, {audit.health.verdict.replace('_', ' ')}"
    return audit, _state("weights", at, holds=holds)


def _pointer(place: Path) -> str | None:
    """The name of a weights file that is only git-lfs's pointer to one, or None."""
    files = [place / name for name in WEIGHT_NAMES] if place.is_dir() else [place]
    file = next((file for file in files if file.is_file()), None)
    return file.name if file is not None and is_pointer(file) else None


def _judge_settings(
    documents: Documents,
    log: JudgedLog | None,
    base: PathLike | None,
    task: str | None,
    left_out: Mapping[str, str],
) -> tuple[CheckReport | None, DiagnosedSource]:
    settings = documents.settings
    if (whole := settings.held) is None:
        return None, _state("config", settings.place, fault=settings.fault)
    pace = None if log is None else log.report.pace
    longest = None if pace is None else pace.longest  # so that what is foretold is of the longest batch that was seen
    named = documents.found.config.path
    given = CheckOptions(document=named, base=base, task=task, max_length=longest)
    given.runs[documents.found.path] = documents
    reasons = _of((rule.id for rule in RULES), left_out)
    around = when_of(whole) if log is None else _weighed(log)
    try:
        check = judged(whole, given, unwanted=reasons, around=around)
    except GradienceError as fault:
        return None, _state("config", settings.place, fault=fault)
    files = [Path(file.path) for file in check.sources if file.role not in _NOT_SETTINGS]
    log_at = documents.log.place.path
    names = ["settings in the log" if path == log_at else path.name for path in files]
    holds = ", ".join(dict.fromkeys([*(["settings in the log"] if whole.log else []), *names]))
    return check, _state("config", settings.place, holds=holds)


def _weighed(log: JudgedLog) -> CheckContext:
    """The context of a configuration whose run's log is read beside it."""
    return CheckContext(
        moment="weighed", begun=f"the log in {Path(log.report.file).name}", epochs_seen=log.reading.run.last_epoch
    )


def _of(ids: Iterable[str], left_out: Mapping[str, str]) -> dict[str, str]:
    """The reasons in `left_out` for these rule ids."""
    return {rule: left_out[rule] for rule in ids if rule in left_out}
