"""The audit of one adapter: open the files, compute spectra, summarise them, and apply the rules on weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gradience.adapters.formats import SUFFIXES
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.base.weights import factors_of
from gradience.errors import RecorderError, require
from gradience.io import PathLike, Progress
from gradience.io.safetensors import is_known
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
from gradience.rules import excluded_rules, without
from gradience.rules.weights import health, suggests_ranks
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
from gradience.spectral.grams import Grams

if TYPE_CHECKING:
    from gradience.judge.audit.against_base import BaseOptions

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
    top_singular_values: int = 0,
    suggest_per_layer: bool = False,
    base: PathLike | None = None,
    intruders: bool = False,
    intruder_k: int = 10,
    intruder_eps: float = 0.5,
    norms_cache: bool = True,
    against: PathLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> AuditReport:
    """Return the audit of one trained adapter.

    Args:
        path: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        adapter_config: a config that does not lie beside the weights.
        weights: a weights file of another name.
        top_singular_values: how many singular values (scaled, largest first) to keep per module.
        suggest_per_layer: add `per_layer`, a rank_pattern and alpha_pattern for PEFT's LoraConfig.
        base: the base model: a folder with safetensors, or `organisation/name` in the hub's local cache.
            Adds `udr`, `sdi`, `relative_frobenius` and `base` to the modules. Nothing is downloaded.
        intruders: with a base, count intruder dimensions (arXiv 2410.21228); slower.
        intruder_k: how many leading left singular vectors of W + dW to look at.
        intruder_eps: a vector is an intruder if its overlap with every left singular vector of W is below this.
        norms_cache: keep norms of base weights in the user's cache folder until the base's files change.
        against: a fleet written by `audit_fleet`; adds `standing`, the percentiles among its healthy adapters.
        seed: of the iterative methods.
        progress: called with (modules done, modules in all, the module's name) while the base is read.
        select: ids of checks, or beginnings of ids, to apply; all by default. The verdict does not depend on it.
        ignore: ids of checks, or beginnings of ids, to leave out.
        settings: a gradience.toml, or a pyproject.toml with `[tool.gradience]`, whose `select` and `ignore` apply if
            the arguments of that name are empty. No file is searched for.

    Raises:
        ConfigError: an id is not known, or the settings cannot be read.
        AdapterError: files are missing, damaged or of another format.
        ValueError: an option is out of its range.

    >>> audit_adapter("runs/toy/peft").summary.stable_rank_mean  # doctest: +SKIP
    1.47
    """
    if intruder_k < 1 or not 0.0 < intruder_eps <= 1.0:
        raise ValueError(f"expected intruder_k >= 1 and 0 < intruder_eps <= 1, got {intruder_k} and {intruder_eps}")
    ids = [rule.id for rule in WEIGHTS_RULES]
    left_out = excluded_rules(ids, select=select, ignore=ignore, settings=settings)
    if adapter_config is None and weights is None and Path(path).suffix in SUFFIXES and Path(path).is_file():
        from gradience.judge.audit.arrays import audit_array_file  # it takes `audit_opened` from here

        top = top_singular_values
        return audit_array_file(Path(path), top_singular_values=top, select=select, ignore=ignore, settings=settings)
    if against is not None:
        require("duckdb", "pyarrow", extra="fleet", what="a comparison with a fleet")
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    beside = None
    if base is not None:
        from gradience.judge.audit.against_base import BaseOptions  # keeps a plain audit quick

        beside = BaseOptions(
            Path(base), intruders, intruder_k, intruder_eps, seed, norms_cache, progress, top_singular_values
        )
    report = audit_opened(
        Path(path), files, adapter, top=top_singular_values, beside=beside, per_layer=suggest_per_layer
    )
    if against is not None:
        from gradience.judge.audit.standing import with_standing  # duckdb, of the extra [fleet]

        report = with_standing(report, against)
    findings, not_run = without(report.findings, report.not_run, left_out)
    return msgspec.structs.replace(report, findings=findings, not_run=not_run)


def audit_opened(
    path: Path,
    files: AdapterFiles,
    adapter: Adapter,
    *,
    top: int = 0,
    beside: BaseOptions | None = None,
    per_layer: bool = False,
    grams: Sequence[Grams] | None = None,
) -> AuditReport:
    """The audit of an opened adapter, by all rules.

    Args:
        path: the path that the user gave, for the report.
        files: the adapter's files, from `open_adapter`.
        adapter: the adapter, from `open_adapter`. Each of its modules is loaded once, rarely twice.
        top: how many singular values to keep per module.
        beside: the base and what to compute with it, if one was given.
        per_layer: add `per_layer`.
        grams: the Gram matrices of the modules, in order, if the caller has them.

    Raises:
        AdapterError: a tensor or the base cannot be read.
    """
    waiting = adapter.by_peft or bool(adapter.base_dependent)
    on_base = waiting or any(module.dense is not None for module in adapter.modules)
    rows = _rows(adapter, top, every_rank=on_base and beside is not None, grams=grams)
    compared = None
    if beside is not None:
        from gradience.judge.audit.against_base import compare  # keeps a plain audit quick

        adapter, rows, compared = compare(adapter, rows, beside, config=files.config)
        rows = _priced(rows) if on_base else rows
    return _judged(_facts(path, files, adapter), adapter, with_shares(rows), compared, per_layer=per_layer)


def _rows(adapter: Adapter, top: int, *, every_rank: bool, grams: Sequence[Grams] | None) -> list[ModuleAudit]:
    """The rows that follow from the factors alone.

    With `every_rank` they hold the errors at every rank. The ranks to report are chosen once the base has given the
    remaining spectra (`_priced`).
    """
    found = spectra([factors_of(module) for module in adapter.modules], grams)
    usable = [s.energy_ranks[0] for s in found if s.finite and s.spectral_norm > 0.0]
    cap = max((module.r for module in adapter.modules), default=0)
    ranks = range(1, cap) if every_rank else priced_ranks(usable, cap)
    start = adapter.config.init_lora_weights
    from_zero = not isinstance(start, str) or start.lower() == "gaussian"  # PEFT's name for a Gaussian A
    shown = Shown(top, ranks, transposed=adapter.config.fan_in_fan_out, from_zero=from_zero)
    return [_row(m, s, shown) for m, s in zip(adapter.modules, found, strict=True)]


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
        relative_frobenius=against.relative_frobenius if against is not None else None,
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
