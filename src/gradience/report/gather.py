"""What a report is made of: the log, the config and the adapter, each read and judged by its own verb."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from gradience.check import check_config
from gradience.errors import ConfigError, GradienceError
from gradience.importers.files import is_folder, sha256_of
from gradience.monitor.run import report_of
from gradience.monitor.source import open_source
from gradience.schema.audit import AuditReport
from gradience.schema.config import ConfigSnapshot, LoraSnapshot
from gradience.schema.findings import Finding, NotRun
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.telemetry.series import RunSeries

__all__ = ["FileRead", "PathLike", "Story", "gather"]

PathLike: TypeAlias = str | os.PathLike[str]

_ALL_VALUES = 4096  # singular values kept per module: more than any adapter's rank


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file that was read: what for, and what tells it from every other."""

    role: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a run, by source; a source that was not given is None and named in `missing`."""

    run: MonitorReport | None = None
    series: RunSeries | None = None
    check: CheckReport | None = None
    audit: AuditReport | None = None
    files: list[FileRead] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[NotRun] = field(default_factory=list)

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """All findings with the source that showed them: the log's, the weights', then the config's."""
        reports = (("log", self.run), ("weights", self.audit), ("config", self.check))
        return [(source, found) for source, report in reports if report is not None for found in report.findings]

    @property
    def found(self) -> list[Finding]:
        """All findings."""
        return [finding for _, finding in self.findings]

    @property
    def not_run(self) -> list[tuple[str, NotRun]]:
        """What was not judged, with the source that would have shown it."""
        reports = (("log", self.run), ("config", self.check))
        return [
            *(("all", item) for item in self.missing),
            *((source, item) for source, report in reports if report is not None for item in report.not_run),
        ]


def gather(
    run: PathLike | None,
    *,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
    base: PathLike | None = None,
) -> Story:
    """Return what the sources say. Without a config, the one in the log is judged.

    Raises:
        GradienceError: a source that was given cannot be read, or none was given.
    """
    if run is None and adapter is None and config is None:
        raise GradienceError("nothing to report on", advice="give a run.jsonl, --adapter or --config")
    if base is not None and adapter is None:
        raise GradienceError("a base without an adapter says nothing", advice="give the adapter with --adapter")
    source = None if run is None else open_source(run)
    series = None if source is None else source.summary.last
    report = report_of(source, series) if source is not None and series is not None else None
    audit = None if adapter is None else _audit(adapter, base)
    check = _check(config, report, adapter)
    return Story(
        run=report,
        series=series,
        check=check,
        audit=audit,
        files=list(_files(source.path if source is not None else None, check, audit)),
        versions=_versions(with_jax=audit is not None),
        missing=list(_missing(report, check, audit)),
    )


def _audit(adapter: PathLike, base: PathLike | None) -> AuditReport:
    from gradience.audit import audit_adapter  # noqa: PLC0415  # imports jax: only a report on weights pays for it

    return audit_adapter(adapter, base=base, top_singular_values=_ALL_VALUES)


def _check(config: PathLike | None, report: MonitorReport | None, adapter: PathLike | None) -> CheckReport | None:
    """Judge the file that was given; else the log's config, completed by the adapter's where the log has none."""
    if config is not None:
        return check_config(document=config)
    logged = None if report is None or report.config == ConfigSnapshot() else report.config
    of_adapter = adapter if logged is None or logged.lora == LoraSnapshot() else None
    folder = Path(of_adapter) if of_adapter is not None else None
    if folder is not None and not is_folder(folder):
        folder = folder.parent
    try:
        return check_config(logged, peft_dir=folder) if logged is not None or folder is not None else None
    except ConfigError:
        return check_config(logged) if logged is not None else None  # an adapter of a format without a config


def _files(log: Path | None, check: CheckReport | None, audit: AuditReport | None) -> list[FileRead]:
    named = chain(
        [("log", str(log))] if log is not None else [],
        [("adapter config", audit.config_path)] if audit is not None and audit.config_path else [],
        [("weights", path) for path in audit.weights_paths or [audit.weights_path]] if audit is not None else [],
        [(source.role, source.path) for source in check.sources] if check is not None else [],
    )
    places = {os.path.realpath(path): (role, Path(path)) for role, path in reversed([*named])}
    found = [(role, path) for role, path in reversed(places.values()) if path.is_file()]
    return [FileRead(role, path, path.stat().st_size, sha256_of(path)) for role, path in found]


def _versions(*, with_jax: bool) -> dict[str, str]:
    names = ("gradience", "numpy", *(("jax",) if with_jax else ()))
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def _missing(report: MonitorReport | None, check: CheckReport | None, audit: AuditReport | None) -> list[NotRun]:
    told = (
        ("log", report, "no log was given: curves and detectors are not in this report"),
        ("weights", audit, "no adapter was given (--adapter DIR): the weights were not looked at"),
        ("config", check, "no config was given (--config FILE), and the log holds none: no rule was applied"),
    )
    missing = [NotRun(id=name, reason=reason) for name, source, reason in told if source is None]
    if audit is not None and audit.base is None:
        missing.append(
            NotRun(id="base", reason="no base model was given (--base DIR): no size relative to its weights")
        )
    return missing
