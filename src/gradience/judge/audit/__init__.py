"""The audit of one adapter: open the files, compute spectra, summarise them, and apply the rules on weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final, Unpack

import msgspec

from gradience.adapters.formats import SUFFIXES
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.base.weights import factors_of
from gradience.configs.training import TRAINING_NAMES, read_training_dir
from gradience.errors import ConfigError, RecorderError, require
from gradience.io import PathLike, Progress
from gradience.io.safetensors import is_known
from gradience.judge.audit.beside import beside
from gradience.judge.audit.rows import (
    Shown,
    bytes_per_param,
    layer_summaries,
    ledger_of,
    module_row,
    summary_of,
    unknown_row,
    with_shares,
)
from gradience.judge.audit.tied import listed_once
from gradience.judge.options import AuditKeywords, AuditOptions
from gradience.rules import excluded_rules, without
from gradience.rules.weights import JUDGED_SHARE, health, suggests_ranks
from gradience.rules.weights.ranks import (
    candidates,
    disagreements,
    measured,
    of_pattern,
    priced_ranks,
    rank_pattern,
    rank_rules,
    suggest,
    suggested_ranks,
)
from gradience.rules.weights.rules import WEIGHTS_RULES, judge_adapter
from gradience.schema.audit import AUDIT_SCHEMA_ID, AuditReport, BaseReport, ModuleAudit, NotAnalysed, RankPattern
from gradience.spectral.batch import SINGLE_ERROR, Spectrum, spectra
from gradience.spectral.devices import has_float64
from gradience.spectral.grams import Factors, Grams, Loads

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
            `relative_frobenius` and `base` to the modules; `against` adds `standing`.
        progress: called with (modules done, modules in all, the module's name) while they, and then the base, are read.
        select: ids of checks, or beginnings of ids, to apply; all by default. The verdict does not depend on it.
        ignore: ids of checks, or beginnings of ids, to leave out.
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
    ids = [rule.id for rule in WEIGHTS_RULES]
    left_out = excluded_rules(ids, select=select, ignore=ignore, settings=settings)
    if adapter_config is None and weights is None and Path(path).suffix in SUFFIXES and Path(path).is_file():
        from gradience.judge.audit.arrays import audit_array_file  # it takes `audit_opened` from here

        top = options.top_singular_values
        return audit_array_file(Path(path), top_singular_values=top, select=select, ignore=ignore, settings=settings)
    if options.against is not None:
        require("duckdb", "pyarrow", extra="fleet", what="a comparison with a fleet")
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    report = audit_opened(Path(path), files, adapter, options, progress=progress)
    if options.against is not None:
        from gradience.judge.audit.standing import with_standing  # duckdb, of the extra [fleet]

        report = with_standing(report, options.against)
    findings, not_run = without(report.findings, report.not_run, left_out)
    return msgspec.structs.replace(report, findings=findings, not_run=not_run)


def audit_opened(
    path: Path,
    files: AdapterFiles,
    adapter: Adapter,
    options: AuditOptions = _DEFAULTS,
    *,
    grams: Sequence[Grams] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """The audit of an opened adapter, by all rules.

    Args:
        path: the path that the user gave, for the report.
        files: the adapter's files, from `open_adapter`.
        adapter: the adapter, from `open_adapter`. Each of its modules is loaded once, rarely twice.
        options: those of `audit_adapter`; all but `against`.
        grams: the Gram matrices of the modules, in order, if the caller has them.
        progress: as of `audit_adapter`.

    Raises:
        AdapterError: a tensor or the base cannot be read.
    """
    waiting = adapter.by_peft or bool(adapter.base_dependent)
    on_base = waiting or any(module.dense is not None for module in adapter.modules)
    every_rank = on_base and options.base is not None
    rows = _rows(adapter, options.top_singular_values, every_rank=every_rank, grams=grams, progress=progress)
    adapter, rows, shared = listed_once(adapter, rows)
    compared = None
    if options.base is not None:
        from gradience.judge.audit.against_base import compare  # keeps a plain audit quick

        base = Path(options.base)
        adapter, rows, compared = compare(adapter, rows, options, base=base, config=files.config, progress=progress)
        rows = _priced(rows) if on_base else rows
    modules = with_shares(rows)
    facts = _facts(path, files, adapter)
    optimizer = options.optimizer or _optimizer(files.config)
    facts = msgspec.structs.replace(facts, optimizer=optimizer, notes=[*facts.notes, *shared])
    return _judged(facts, adapter, modules, compared, per_layer=options.suggest_per_layer)


def _optimizer(config: Path) -> str | None:
    """The optimizer by the training arguments beside an adapter's config; None if none can be read there."""
    if not config.is_file() or not any((config.parent / name).is_file() for name in TRAINING_NAMES):
        return None
    try:
        return read_training_dir(config.parent).config.optimizer.name
    except ConfigError:  # of a class of the user's own: nothing is known of the optimizer
        return None


def _rows(
    adapter: Adapter, top: int, *, every_rank: bool, grams: Sequence[Grams] | None, progress: Progress | None
) -> list[ModuleAudit]:
    """The rows that follow from the factors alone.

    With `every_rank` they hold the errors at every rank. The ranks to report are chosen once the base has given the
    remaining spectra (`_priced`).
    """
    loads = [factors_of(module) for module in adapter.modules]
    found = spectra(loads if progress is None else _told(loads, adapter.modules, progress), grams)
    usable = [s.energy_ranks[0] for s in found if s.finite and s.spectral_norm > 0.0]
    cap = max((module.r for module in adapter.modules), default=0)
    ranks = range(1, cap) if every_rank else priced_ranks(usable, cap)
    start = adapter.config.init_lora_weights
    from_zero = start in {None, True} or str(start).lower() == "gaussian"  # PEFT's name for a Gaussian A
    shown = Shown(top, ranks, transposed=adapter.config.fan_in_fan_out, from_zero=from_zero)
    return [_row(m, s, shown) for m, s in zip(adapter.modules, found, strict=True)]


def _told(loads: Loads, modules: Sequence[Module], progress: Progress) -> Loads:
    """The loads, which say how many of them were called; threads call them, in any order."""
    done, total = count(1), len(loads)

    def told(load: Callable[[], Factors], name: str) -> Callable[[], Factors]:
        def loaded() -> Factors:
            found = load()
            progress(min(next(done), total), total, name)
            return found

        return loaded

    return [told(load, module.name) for load, module in zip(loads, modules, strict=True)]


def _row(module: Module, spectrum: Spectrum, shown: Shown) -> ModuleAudit:
    """The row of a module without the base; factors that are not finite are reported even if the update is unknown."""
    if spectrum.finite and (module.dense is not None or module.is_unknown):
        return unknown_row(module)
    return module_row(module, spectrum, shown)


def _priced(rows: list[ModuleAudit]) -> list[ModuleAudit]:
    """The rows with only the errors at the ranks that the report prices, and at a module's own rank."""
    cap = max((m.r for m in rows), default=0)
    kept = {str(rank) for rank in priced_ranks([m.energy_rank_90 or 1 for m in measured(rows)], cap)}
    return [
        msgspec.structs.replace(
            m, relative_errors={k: e for k, e in m.relative_errors.items() if k in kept or int(k) == m.r}
        )
        for m in rows
    ]


def _facts(path: Path, files: AdapterFiles, adapter: Adapter) -> AuditReport:
    """The report with the fields that follow from the files, before anything is judged."""
    return AuditReport(
        schema=AUDIT_SCHEMA_ID,
        peft_dir=str(path),
        config_path=str(files.config) if files.config.is_file() else None,
        weights_path=str(files.weights),
        weights_paths=[str(p) for p in adapter.weights] if len(adapter.weights) > 1 else [],
        format=adapter.format,
        peft_type=adapter.config.peft_type,
        base_model=adapter.config.base_model_name_or_path,
        beside=beside(path, adapter.config.base_model_name_or_path),
        task_type=adapter.config.task_type,
        health=health([]),
        summary=summary_of([]),
        ledger=ledger_of(adapter),
        not_analysed=[NotAnalysed(name=item.name, reason=item.reason, cause=item.cause) for item in adapter.skipped],
        unmatched_patterns=[*adapter.unmatched_rank_patterns, *adapter.unmatched_alpha_patterns],
        notes=[*adapter.notes, *_unknown_dtypes(adapter), *_precision()],
    )


def _unknown_dtypes(adapter: Adapter) -> Iterator[str]:
    """Yield a note on each dtype that safetensors does not know, because other programs cannot open such a file."""
    strange: dict[str, list[str]] = {}
    for name, info in adapter.tensors.items():
        if not is_known(info.dtype):
            strange.setdefault(info.dtype, []).append(name)
    for dtype, names in strange.items():
        yield f"{len(names)} tensors of dtype {dtype!r}, which safetensors does not know (first: {names[0]})"


def _precision() -> Iterator[str]:
    """Yield a note if singular values are computed in float32."""
    if not has_float64():
        yield (
            "computed in float32, because the device has no float64: the error of each singular value is at most"
            f" {SINGLE_ERROR:.0e} of the product of the factors' spectral norms; --device cpu computes in float64"
        )


def _judged(
    facts: AuditReport,
    adapter: Adapter,
    modules: list[ModuleAudit],
    against: BaseReport | None,
    *,
    per_layer: bool,
) -> AuditReport:
    """Return the report with its summary, suggestions, verdict and findings."""
    price = bytes_per_param(facts.ledger)
    named = {m.name for m in modules}
    left = [item for item in facts.not_analysed if item.name not in named]
    verdict = health(
        modules,
        peft_type=facts.peft_type,
        not_analysed=left,
        relative_frobenius=_size_beside(against, modules),
        optimizer=facts.optimizer,
    )
    report = msgspec.structs.replace(facts, health=verdict, summary=summary_of(modules), modules=modules)
    if suggests_ranks(verdict.verdict) and not adapter.by_peft:
        report = _with_ranks(report, price, rank_pattern(modules, bytes_per_param=price))
    report = msgspec.structs.replace(
        report,
        per_layer=report.per_layer if per_layer and _takes_patterns(adapter) else None,
        layers=layer_summaries(modules),
        not_analysed=left,
        base=against,
    )
    own = (adapter.config.lora_alpha, adapter.config.r) if _takes_patterns(adapter) else (None, None)
    whole = adapter.config.modules_to_save or []
    judged = judge_adapter(report, alpha=own[0], r=own[1], modules_to_save=whole)
    return msgspec.structs.replace(report, findings=judged.findings, not_run=judged.not_run)


def _size_beside(against: BaseReport | None, modules: Sequence[ModuleAudit]) -> float | None:
    """The norm of the update over the base's, if enough of the modules were compared to speak of the adapter."""
    if against is None or against.compared < JUDGED_SHARE.value * len(modules):
        return None
    return against.relative_frobenius


def _with_ranks(report: AuditReport, price: float, pattern: RankPattern | None) -> AuditReport:
    """The report with suggested ranks to compress to; `price` is the mean bytes per parameter."""
    healthy = measured(report.modules)
    ranks = suggested_ranks([m.energy_rank_90 or 1 for m in healthy], max((m.r for m in healthy), default=0))
    summary = msgspec.structs.replace(
        report.summary, suggested_r_global_median=ranks.get("median"), suggested_r_global_90=ranks.get("p90")
    )
    return msgspec.structs.replace(
        report,
        summary=summary,
        suggested={name: suggest(healthy, rank, bytes_per_param=price) for name, rank in ranks.items()},
        like_suggested=None if pattern is None else of_pattern(pattern),
        candidates=candidates(healthy, bytes_per_param=price),
        rank_rules=rank_rules(healthy),
        rank_disagreements=disagreements(healthy),
        per_layer=pattern,
    )


def _takes_patterns(adapter: Adapter) -> bool:
    """Whether PEFT's LoraConfig describes the adapter, so that it can have a rank_pattern."""
    return adapter.format == "peft" and adapter.config.peft_type in {"LORA", None}


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
