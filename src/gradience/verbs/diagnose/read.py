"""Read the three sources by check, monitor and audit. A source that cannot be read gets a state and raises no error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from gradience.configs.training import PICKLED, read_training
from gradience.errors import ConfigError, GradienceError
from gradience.io import PathLike
from gradience.rules.config import RULES
from gradience.rules.log import DETECTED
from gradience.rules.select import without
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import DiagnosedSource, Source
from gradience.schema.events import ConfigSnapshot
from gradience.schema.findings import NotRun
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.telemetry.series import RunSeries
from gradience.verbs.check import check_config
from gradience.verbs.diagnose.sources import Found, Sources
from gradience.verbs.monitor import report_of
from gradience.verbs.monitor.source import open_source

_OF_RUNS_TO_COME: Final = {
    "REC005": "about a run to come; this one was begun"
}  # REC005 would find the output folder in use, by this very run


class Log(NamedTuple):
    """The last run of a log: its report and its series."""

    report: MonitorReport
    run: RunSeries


class Read(NamedTuple):
    """The reports that could be made, and the state of each source."""

    states: dict[Source, DiagnosedSource]
    check: CheckReport | None
    log: Log | None
    audit: AuditReport | None


def read_sources(
    sources: Sources,
    base: PathLike | None,
    task: str | None,
    gap_threshold: float,
    *,
    top_singular_values: int = 0,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Read:
    """The reports of check, monitor and audit on the sources that exist; rules left out have their reasons."""
    states: dict[Source, DiagnosedSource] = {}
    log, states["log"] = _read_log(sources.log, gap_threshold, left_out)
    audit, states["weights"] = _read_weights(sources.weights, base, top_singular_values, left_out)
    check, states["config"] = _read_config(sources, log.report.config if log else None, base, task, left_out)
    return Read(states, check, log, audit)


def _state(source: Source, found: Found, *, holds: str = "", fault: GradienceError | None = None) -> DiagnosedSource:
    path = None if found.path is None else str(found.path)
    if fault is not None:
        return DiagnosedSource(source=source, state="unreadable", path=path, chosen=found.chosen, reason=str(fault))
    if found.path is None:
        return DiagnosedSource(source=source, state="absent", reason=found.reason)
    return DiagnosedSource(source=source, state="read", path=path, chosen=found.chosen, holds=holds)


def _read_log(found: Found, gap_threshold: float, left_out: Mapping[str, str]) -> tuple[Log | None, DiagnosedSource]:
    if found.path is None:
        return None, _state("log", found)
    try:
        source = open_source(found.path)
        run = source.summary.last
        assert run is not None  # noqa: S101  # open_source refuses a source without a run
        log = Log(report_of(source, run, gap_threshold=gap_threshold, left_out=_of(DETECTED, left_out)), run)
    except GradienceError as fault:
        return None, _state("log", found, fault=fault)
    rows, evals = log.report.train.rows, len(run.evals)
    holds = f"{_plural(rows, 'row')}, {_plural(evals, 'evaluation')}, status {log.report.status.replace('_', ' ')}"
    return log, _state("log", found, holds=holds)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _read_weights(
    found: Found, base: PathLike | None, top: int, left_out: Mapping[str, str]
) -> tuple[AuditReport | None, DiagnosedSource]:
    if found.path is None:
        return None, _state("weights", found)
    from gradience.verbs.audit import audit_adapter  # noqa: PLC0415  # imports jax: only if there are weights

    try:
        audit = audit_adapter(found.path, base=base, top_singular_values=top)
    except GradienceError as fault:
        return None, _state("weights", found, fault=fault)
    findings, not_run = without(audit.findings, audit.not_run, _of((rule.id for rule in WEIGHTS_RULES), left_out))
    audit = msgspec.structs.replace(audit, findings=findings, not_run=not_run)
    holds = f"{_plural(len(audit.modules), 'module')}, {audit.health.verdict.replace('_', ' ')}"
    return audit, _state("weights", found, holds=holds)


def _read_config(
    sources: Sources,
    logged: ConfigSnapshot | None,
    base: PathLike | None,
    task: str | None,
    left_out: Mapping[str, str],
) -> tuple[CheckReport | None, DiagnosedSource]:
    """Check the configuration.

    Files win over settings stated in the log. The files are the one named, or the adapter's config and training
    arguments.
    """
    logged = None if logged == ConfigSnapshot() else logged
    named, training = sources.config.path, sources.training
    beside = _config_beside(sources.weights.path) if named is None else None
    if logged is None and named is None and training is None and beside is None:
        return None, _state("config", sources.config)
    found = Found(named or training or beside or sources.log.path, chosen=sources.config.chosen)
    if named is None and training is not None and (unused := _unused(training)) and (logged or beside):
        found, training = Found(beside or sources.log.path, chosen=unused), None
    reasons = {**_of((rule.id for rule in RULES), left_out), **_OF_RUNS_TO_COME}
    try:
        check = check_config(
            logged,
            document=named,
            peft=beside,
            training=None if named else training,
            base=base,
            task=task,
            ignore=list(reasons),
        )
    except GradienceError as fault:
        return None, _state("config", found, fault=fault)
    files = [Path(file.path).name for file in check.sources if file.role != "base"]
    holds = ", ".join(dict.fromkeys([*(["settings in the log"] if logged else []), *files]))
    return _with_reasons(check, reasons), _state("config", found, holds=holds)


def _unused(training: Path) -> str:
    """The reason why pickled training arguments cannot be used, such as a class of the user's own; "" if they can."""
    try:
        if training.suffix in PICKLED:
            read_training(training)
    except ConfigError as fault:
        return f"{training.name} was not used: {str(fault).removeprefix(f'{training}: ')}"
    return ""


def _with_reasons(check: CheckReport, reasons: Mapping[str, str]) -> CheckReport:
    """The check report with the reasons for which rules were left out."""
    named = {rule: NotRun(id=rule, reason=reason) for rule, reason in reasons.items()}
    return msgspec.structs.replace(check, not_run=[named.get(item.id, item) for item in check.not_run])


def _of(ids: Iterable[str], left_out: Mapping[str, str]) -> dict[str, str]:
    """The reasons in `left_out` for these rule ids."""
    return {rule: left_out[rule] for rule in ids if rule in left_out}


def _config_beside(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    path = (weights if weights.is_dir() else weights.parent) / "adapter_config.json"
    return path if path.is_file() else None
