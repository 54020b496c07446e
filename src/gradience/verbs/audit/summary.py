"""An adapter's numbers summed up: shares of its norm, means by module type and layer, and the ledger of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

import msgspec

from gradience.adapters import layer_label
from gradience.adapters.layout import Adapter
from gradience.rules.weights.ranks import measured, percentile
from gradience.schema.audit import AuditSummary, GroupSummary, LayerSummary, LedgerEntry, ModuleAudit, Role


def with_shares(modules: list[ModuleAudit]) -> list[ModuleAudit]:
    """Return the rows with each module's share of the adapter's squared Frobenius norm."""
    norms = [float(m.frobenius_norm or 0.0) if m.state == "ok" else 0.0 for m in modules]
    largest = max(norms, default=0.0)
    if not 0.0 < largest < float("inf"):
        return modules
    energies = [(norm / largest) ** 2 for norm in norms]  # relative to the largest, so that no square overflows
    total = sum(energies)
    return [
        msgspec.structs.replace(m, energy_share=energy / total) if m.state == "ok" else m
        for m, energy in zip(modules, energies, strict=True)
    ]


def summary_of(modules: Sequence[ModuleAudit]) -> AuditSummary:
    """Return the summary of an adapter from its modules' rows."""
    params = sum(m.params for m in modules)
    healthy = measured(modules)
    if not healthy:
        return AuditSummary(total_lora_params=params, n_layers=len(modules), by_type=_by_type(modules))
    stable = [m.stable_rank or 0.0 for m in healthy]
    k90 = [float(m.energy_rank_90 or 0) for m in healthy]
    weight = sum(m.params for m in healthy) or 1
    size = math.hypot(*(float(m.frobenius_norm or 0.0) for m in healthy))
    return AuditSummary(
        total_lora_params=params,
        n_layers=len(modules),
        stable_rank_mean=fmean(stable),
        stable_rank_median=median(stable),
        stable_rank_weighted_mean=sum(s * m.params for s, m in zip(stable, healthy, strict=True)) / weight,
        effective_rank_mean=_mean(healthy, lambda m: m.effective_rank),
        utilization_mean=_mean(healthy, lambda m: m.utilization),
        energy_rank_90_p50=percentile(k90, 0.5),
        energy_rank_90_p90=percentile(k90, 0.9),
        by_type=_by_type(modules),
        energy_concentration=min(1.0, sum((m.energy_share or 0.0) ** 2 for m in modules)),
        null_stable_rank_mean=_mean(healthy, lambda m: m.null_stable_rank),
        update_norm=size,
        # Over the norm of weights of these shapes with Glorot's variance of an entry, 2 / (d_in + d_out).
        update_size=size / math.sqrt(sum(2.0 * math.prod(m.shape) / sum(m.shape) for m in healthy)),
    )


def _mean(modules: Iterable[ModuleAudit], read: Callable[[ModuleAudit], float | None]) -> float | None:
    values = [value for m in modules if (value := read(m)) is not None]
    return fmean(values) if values else None


def _by_type(modules: Iterable[ModuleAudit]) -> dict[str, GroupSummary]:
    groups: dict[str, list[ModuleAudit]] = {}
    for module in modules:
        groups.setdefault(module.module_type, []).append(module)
    return {kind: _group(members) for kind, members in sorted(groups.items())}


def _group(members: Sequence[ModuleAudit]) -> GroupSummary:
    healthy = measured(members)
    k90 = [float(m.energy_rank_90 or 0) for m in healthy]
    return GroupSummary(
        n=len(members),
        params=sum(m.params for m in members),
        stable_rank_mean=_mean(healthy, lambda m: m.stable_rank),
        effective_rank_mean=_mean(healthy, lambda m: m.effective_rank),
        utilization_mean=_mean(healthy, lambda m: m.utilization),
        energy_rank_90_p50=percentile(k90, 0.5) if k90 else None,
        energy_share=_share(members),
    )


def _share(members: Iterable[ModuleAudit]) -> float | None:
    shares = [m.energy_share for m in members if m.energy_share is not None]
    return min(1.0, sum(shares)) if shares else None


def layer_summaries(modules: Iterable[ModuleAudit]) -> list[LayerSummary]:
    """Return each layer's mean stable rank and share of the squared norm, in the order of the layers."""
    layers: dict[int, list[ModuleAudit]] = {}
    for module in modules:
        if module.layer is not None:
            layers.setdefault(module.layer, []).append(module)
    return [
        LayerSummary(
            layer=index,
            label=layer_label(members[0].name) or str(index),
            n=len(members),
            stable_rank_mean=_mean(members, lambda m: m.stable_rank),
            energy_share=_share(members),
        )
        for index, members in sorted(layers.items())
    ]


def ledger_of(adapter: Adapter) -> list[LedgerEntry]:
    """Return the tensors' count, parameters and bytes by role, the role with most bytes first."""
    total = sum(info.nbytes for info in adapter.tensors.values())
    by_role: dict[Role, list[str]] = {}
    for name, role in adapter.roles.items():
        by_role.setdefault(role, []).append(name)
    entries = []
    for role, names in by_role.items():
        infos = [adapter.tensors[name] for name in names]
        nbytes = sum(info.nbytes for info in infos)
        entries.append(
            LedgerEntry(
                role=role,
                tensors=len(infos),
                params=sum(info.size for info in infos),
                bytes=nbytes,
                share=nbytes / total if total else 0.0,
            )
        )
    return sorted(entries, key=lambda entry: -entry.bytes)


def bytes_per_param(ledger: Iterable[LedgerEntry]) -> float:
    """Return the mean number of bytes per parameter of the LoRA factors; 0 if there are none."""
    pairs = [entry for entry in ledger if entry.role == "lora_pair"]
    params = sum(entry.params for entry in pairs)
    return sum(entry.bytes for entry in pairs) / params if params else 0.0
