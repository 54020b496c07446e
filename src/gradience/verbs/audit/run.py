"""The audit of one adapter: open its files, measure its modules, judge them, and report.

Each step is a function from one record to the next: `Documents`, `AdapterNumbers`, `AuditJudgement`, the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Unpack

import msgspec

from gradience.adapters.formats import SUFFIXES
from gradience.errors import GradienceError, RecorderError
from gradience.folder import Documents, open_run
from gradience.folder.found import ARCHIVE, weights_alone
from gradience.io import PathLike, Progress
from gradience.rules import excluded_rules
from gradience.rules.judged import ALL, IDS
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.verbs.audit.options import AuditKeywords, AuditOptions
from gradience.verbs.audit.report import audit_documents, with_joint

_DEFAULTS: Final = AuditOptions()
_EVENT_BYTES: Final = 56 * 1024  # of the 64 KiB that a log line may have
_KEPT: Final = (  # the fields of a module's row in an event (SCIENCE.md, section 1); the others are in the report only
    *("name", "module_type", "layer", "r", "alpha", "scaling", "params", "state"),
    *("stable_rank", "effective_rank", "participation_ratio", "utilization"),
    *("energy_rank_90", "energy_rank_95", "energy_rank_99", "spectral_norm", "frobenius_norm"),
    *("udr", "sdi", "relative_frobenius"),
)


def audit_adapter(
    path: PathLike,
    *,
    adapter_config: PathLike | None = None,
    weights: PathLike | None = None,
    options: AuditOptions = _DEFAULTS,
    progress: Progress | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
    **keywords: Unpack[AuditKeywords],
) -> AuditReport:
    """Return the audit of one trained adapter.

    Args:
        path: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        adapter_config: a config that does not lie beside the weights.
        weights: a weights file of another name.
        options: the base and what is compared with it, suggestions, singular values. A base adds `udr`, `sdi`,
            `relative_frobenius` and `base` to the modules.
        progress: called with (modules done, modules in all, the module's name) while they, and then the base, are read.
        select: ids of rules, or beginnings of ids, to apply; all by default. The verdict does not depend on it.
        ignore: ids of rules, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`, whose `select` and `ignore` apply if
            the arguments of that name are empty. No file is searched for.
        keywords: single options by name, such as `base="llama"`; they win over `options`.

    Raises:
        ConfigError: an id is not known, or the settings cannot be read.
        AdapterError: files are missing, damaged or of another format.
        OptionError: an option is out of its range, or intruders are asked for without a base.
        TypeError: no option has such a name.

    >>> audit_adapter("runs/toy/peft").summary.stable_rank_mean  # doctest: +SKIP
    1.47
    """
    options = options.completed(keywords)
    left_out = excluded_rules(ALL, select=select, ignore=ignore, settings=settings)
    documents = _opened(Path(path), _path(adapter_config), _path(weights))
    if documents.in_hand is not None:
        # Its arrays have names of their own, so that nothing tells which weights of a base or a fleet are theirs.
        options = AuditOptions(top_singular_values=options.top_singular_values, optimizer=options.optimizer)
    own = {rule: why for rule, why in left_out.items() if rule in IDS["weights"]}
    report = audit_documents(documents, options, left_out=own, progress=progress)
    return with_joint(report, documents, left_out)


def _opened(path: Path, adapter_config: Path | None, weights: Path | None) -> Documents:
    """The run in a folder, whose adapter is chosen as every verb chooses it; else the adapter that was named alone."""
    if adapter_config is None and weights is None:
        if path.is_dir():
            with suppress(GradienceError):  # of several runs, which `find_files` tells by its adapters
                if (run := open_run(path)).weights.path is not None:
                    return run
        archive = path / ARCHIVE if path.is_dir() else path
        if archive.suffix in SUFFIXES and archive.is_file():
            from gradience.verbs.audit.arrays import open_archive  # few have such files

            return Documents.of_adapter(open_archive(archive))
    return Documents(weights_alone(path), adapter_config=adapter_config, weights_file=weights)


def _path(place: PathLike | None) -> Path | None:
    return None if place is None else Path(place)


def lora_audit_metrics(report: AuditReport) -> dict[str, Any]:
    """Return the report as the payload of a `metrics` event of kind `lora_audit`: summary and modules.

    A log line holds 64 KiB. If the modules do not fit, the least utilised are kept, and `modules_omitted` counts the
    others.
    """
    payload: dict[str, Any] = msgspec.to_builtins(report.summary)
    payload["verdict"] = report.health.verdict
    rows = [_event_row(module) for module in sorted(report.modules, key=_wastefulness)]
    room = _EVENT_BYTES - len(msgspec.json.encode(payload))
    kept: list[dict[str, Any]] = []
    for row in rows:
        room -= len(msgspec.json.encode(row)) + 1
        if room < 0:
            break
        kept.append(row)
    payload["modules"] = kept
    if len(kept) < len(rows):
        payload["modules_omitted"] = len(rows) - len(kept)
    return payload


def _event_row(module: ModuleAudit) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(module)
    return {key: row[key] for key in _KEPT if key in row}


def _wastefulness(module: ModuleAudit) -> float:
    # Above every utilization, which is at most 1: modules without one come last.
    return 2.0 if module.utilization is None else module.utilization


def append_audit(log: Path, report: AuditReport) -> None:
    """Add a `metrics` event of kind `lora_audit` to the log, under its last run's run_id.

    Raises:
        RecorderError: the log is missing, holds no run, or is being written by another process.
    """
    from gradience.telemetry.reader import TelemetryReader  # the recorder, only if a log is written
    from gradience.telemetry.writer import TelemetryWriter  # the same

    run = TelemetryReader(log).summarize().last
    if run is None:
        raise RecorderError(f"{log} holds no run to append to", advice="give the run.jsonl of the run")
    writer = TelemetryWriter(log, run_id=run.run_id, siblings=False, on_error="raise")
    with closing(writer):  # as a context it would record that the run has crashed if this fails
        writer.metrics(run.last_step, kind="lora_audit", metrics=lora_audit_metrics(report))
