"""The audit: an adapter's files in, a typed report out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import msgspec

from gradience.adapters.config import read_config
from gradience.adapters.folder import AdapterFiles, find_files
from gradience.adapters.modules import Adapter, Module
from gradience.adapters.names import layer_index, module_type
from gradience.adapters.peft import read_peft
from gradience.adapters.tensors import SafetensorsFile, TensorSource
from gradience.policy.adapter_rules import adapter_findings, health
from gradience.policy.ranks import BUCKETS, bucket, percentile, suggest
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    GroupSummary,
    LayerSummary,
    LedgerEntry,
    ModuleAudit,
    NotAnalysed,
)
from gradience.schema.scalars import real
from gradience.spectral.batch import Factors, Spectrum, spectra
from gradience.spectral.null import null_stable_rank

__all__ = ["audit_adapter", "lora_audit_metrics"]

_EVENT_BYTES: Final = 56 * 1024  # of the 64 KiB a log line may have


def audit_adapter(
    path: str | os.PathLike[str],
    *,
    adapter_config: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    top_singular_values: int = 0,
) -> AuditReport:
    """Return the audit of one trained adapter.

    Args:
        path: the folder that PEFT saved, or its weights file.
        adapter_config: a config elsewhere than beside the weights.
        weights: a weights file of another name.
        top_singular_values: how many singular values (scaled, largest first) to keep per module.

    Raises:
        AdapterError: files are missing, damaged or of another format.
    """
    files = find_files(Path(path), config=_path(adapter_config), weights=_path(weights))
    adapter = read_peft(_open(files.weights), read_config(files.config))
    found = spectra([_load(module) for module in adapter.modules])
    modules = _with_shares(
        [_module(m, s, top_singular_values) for m, s in zip(adapter.modules, found, strict=True)]
    )
    return _report(Path(path), files, adapter, modules)


def lora_audit_metrics(report: AuditReport) -> dict[str, Any]:
    """Return the report as the payload of a `metrics` event of kind `lora_audit`: summary and modules.

    A log line holds 64 KiB. Where the modules do not fit, the least utilised are kept and
    `modules_omitted` says how many are not.
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
    for key in ("relative_errors", "top_singular_values", "null_stable_rank", "shape"):
        row.pop(key, None)
    return row


def _wastefulness(module: ModuleAudit) -> float:
    return 2.0 if module.utilization is None else module.utilization


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _open(weights: Path) -> TensorSource:
    if weights.suffix in {".bin", ".pt", ".pth"}:
        from gradience.hf.weights import TorchFile  # noqa: PLC0415  # torch only where it is needed

        return TorchFile(weights)
    return SafetensorsFile(weights)


def _load(module: Module) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


def _module(module: Module, spectrum: Spectrum, top: int) -> ModuleAudit:
    state = "non_finite" if not spectrum.finite else "zero" if spectrum.spectral_norm == 0.0 else "ok"
    common: dict[str, Any] = {
        "name": module.name,
        "module_type": module_type(module.name),
        "layer": layer_index(module.name),
        "kind": module.kind,
        "shape": list(module.shape),
        "r": module.r,
        "alpha": real(module.alpha),
        "scaling": real(module.scale),
        "params": module.params,
        "state": state,
    }
    if state != "ok":
        norm = 0.0 if state == "zero" else "NaN"
        return ModuleAudit(**common, spectral_norm=norm, frobenius_norm=norm)
    return ModuleAudit(
        **common,
        stable_rank=spectrum.stable_rank,
        effective_rank=spectrum.effective_rank,
        participation_ratio=spectrum.participation_ratio,
        utilization=spectrum.stable_rank / module.r,
        energy_rank_90=spectrum.energy_ranks[0],
        energy_rank_95=spectrum.energy_ranks[1],
        energy_rank_99=spectrum.energy_ranks[2],
        spectral_norm=spectrum.spectral_norm,
        frobenius_norm=spectrum.frobenius_norm,
        relative_errors={str(k): float(spectrum.relative_errors[k]) for k in BUCKETS if k < module.r},
        null_stable_rank=null_stable_rank(module.r, *module.shape),
        top_singular_values=[float(s) for s in spectrum.sigma[:top]],
    )


def _with_shares(modules: list[ModuleAudit]) -> list[ModuleAudit]:
    """Return the modules with their share of the adapter's squared Frobenius norm."""
    energies = [float(m.frobenius_norm) ** 2 if m.state == "ok" else 0.0 for m in modules]
    total = sum(energies)
    if total == 0.0:
        return modules
    return [
        msgspec.structs.replace(m, energy_share=energy / total) if m.state == "ok" else m
        for m, energy in zip(modules, energies, strict=True)
    ]


def _report(path: Path, files: AdapterFiles, adapter: Adapter, modules: list[ModuleAudit]) -> AuditReport:
    healthy = [m for m in modules if m.state == "ok"]
    summary = _summary(modules, healthy)
    verdict = health(modules, adapter.config.peft_type)
    ledger = _ledger(adapter)
    ranks = {"median": summary.suggested_r_global_median, "p90": summary.suggested_r_global_90}
    return AuditReport(
        schema=AUDIT_SCHEMA_ID,
        peft_dir=str(path),
        config_path=str(files.config),
        weights_path=str(files.weights),
        format=adapter.format,
        peft_type=adapter.config.peft_type,
        base_model=adapter.config.base_model_name_or_path,
        health=verdict,
        summary=summary,
        suggested={name: suggest(healthy, rank) for name, rank in ranks.items() if rank is not None},
        modules=modules,
        layers=_layers(modules),
        ledger=ledger,
        not_analysed=[NotAnalysed(name=item.name, reason=item.reason) for item in adapter.skipped],
        findings=adapter_findings(modules, summary, verdict, ledger),
        notes=adapter.notes,
    )


def _summary(modules: Sequence[ModuleAudit], healthy: Sequence[ModuleAudit]) -> AuditSummary:
    params = sum(m.params for m in modules)
    if not healthy:
        return AuditSummary(total_lora_params=params, n_layers=len(modules))
    stable = [m.stable_rank or 0.0 for m in healthy]
    k90 = [float(m.energy_rank_90 or 0) for m in healthy]
    weight = sum(m.params for m in healthy)
    cap = max(m.r for m in healthy)
    return AuditSummary(
        total_lora_params=params,
        n_layers=len(modules),
        stable_rank_mean=fmean(stable),
        stable_rank_median=median(stable),
        stable_rank_weighted_mean=sum(s * m.params for s, m in zip(stable, healthy, strict=True)) / weight,
        effective_rank_mean=fmean(m.effective_rank or 0.0 for m in healthy),
        utilization_mean=fmean(m.utilization or 0.0 for m in healthy),
        energy_rank_90_p50=percentile(k90, 0.5),
        energy_rank_90_p90=percentile(k90, 0.9),
        by_type=_by_type(modules),
        suggested_r_global_median=bucket(percentile(k90, 0.5), cap),
        suggested_r_global_90=bucket(percentile(k90, 0.9), cap),
        energy_concentration=sum((m.energy_share or 0.0) ** 2 for m in healthy),
    )


def _by_type(modules: Iterable[ModuleAudit]) -> dict[str, GroupSummary]:
    groups: dict[str, list[ModuleAudit]] = {}
    for module in modules:
        groups.setdefault(module.module_type, []).append(module)
    return {kind: _group(members) for kind, members in sorted(groups.items())}


def _group(members: Sequence[ModuleAudit]) -> GroupSummary:
    healthy = [m for m in members if m.state == "ok"]
    size = {"n": len(members), "params": sum(m.params for m in members)}
    if not healthy:
        return GroupSummary(**size)
    return GroupSummary(
        **size,
        stable_rank_mean=fmean(m.stable_rank or 0.0 for m in healthy),
        effective_rank_mean=fmean(m.effective_rank or 0.0 for m in healthy),
        utilization_mean=fmean(m.utilization or 0.0 for m in healthy),
        energy_rank_90_p50=percentile([float(m.energy_rank_90 or 0) for m in healthy], 0.5),
        energy_share=min(1.0, sum(m.energy_share or 0.0 for m in healthy)),
    )


def _layers(modules: Iterable[ModuleAudit]) -> list[LayerSummary]:
    layers: dict[int, list[ModuleAudit]] = {}
    for module in modules:
        if module.layer is not None:
            layers.setdefault(module.layer, []).append(module)
    return [_layer(index, members) for index, members in sorted(layers.items())]


def _layer(index: int, members: Sequence[ModuleAudit]) -> LayerSummary:
    stable = [m.stable_rank for m in members if m.stable_rank is not None]
    shares = [m.energy_share for m in members if m.energy_share is not None]
    return LayerSummary(
        layer=index,
        n=len(members),
        stable_rank_mean=fmean(stable) if stable else None,
        energy_share=min(1.0, sum(shares)) if shares else None,
    )


def _ledger(adapter: Adapter) -> list[LedgerEntry]:
    total = sum(info.nbytes for info in adapter.tensors.values())
    by_role: dict[str, list[str]] = {}
    for name, role in adapter.roles.items():
        by_role.setdefault(role, []).append(name)
    entries = []
    for role, names in by_role.items():
        infos = [adapter.tensors[name] for name in names]
        nbytes = sum(info.nbytes for info in infos)
        entries.append(
            LedgerEntry(
                role=role,  # type: ignore[arg-type]  # the keys are roles
                tensors=len(infos),
                params=sum(info.size for info in infos),
                bytes=nbytes,
                share=nbytes / total if total else 0.0,
            )
        )
    return sorted(entries, key=lambda entry: -entry.bytes)
