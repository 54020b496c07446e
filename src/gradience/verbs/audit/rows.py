"""Rows and summaries of an audit: one row per module, means by module type and layer, and the ledger of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters import layer_index, layer_label, module_type
from gradience.adapters.layout import Adapter, Module, Role
from gradience.rules.weights.ranks import measured, percentile
from gradience.schema import real
from gradience.schema.audit import AuditSummary, GroupSummary, LayerSummary, LedgerEntry, ModuleAudit
from gradience.spectral.batch import SHARES, Spectrum, spectrum_of
from gradience.spectral.update import null_factor_stable_rank, null_stable_rank

if TYPE_CHECKING:
    from gradience.spectral.dense import DenseSpectrum


_FROM_ZERO: Final = frozenset({"linear", "conv", "dora"})
"""Kinds of module whose lora_B starts at zero. For an embedding lora_A does; AdaLoRA's factors are both random."""

_EPS: Final = float(np.finfo(np.float64).eps)


class RowSettings(NamedTuple):
    """How an adapter stores its factors, and how many singular values its rows state."""

    singular_values: int = 0
    transposed: bool = False
    """Whether the base stores its matrices transposed to B A (Conv1D), so that the update's first factor is A^T."""
    from_zero: bool = False
    """Whether lora_B was zero before training, and not a part of the base or random numbers."""


_PLAIN: Final = RowSettings()


def settings_of(adapter: Adapter, singular_values: int) -> RowSettings:
    """The settings that follow from an adapter's config."""
    start = adapter.config.init_lora_weights
    from_zero = start in {None, True} or str(start).lower() == "gaussian"  # PEFT's name for a Gaussian A
    return RowSettings(singular_values, transposed=adapter.config.fan_in_fan_out, from_zero=from_zero)


class ModuleNumbers(NamedTuple):
    """A module's row, and its relative errors at rank 0, 1, ..., of which the report states a few."""

    row: ModuleAudit
    errors: Sequence[float] = ()


def module_row(
    module: Module, spectrum: Spectrum, settings: RowSettings = _PLAIN, *, limit: int | None = None
) -> ModuleNumbers:
    """Return the numbers of a module from all singular values of its update.

    Args:
        module: the module, with its shape known.
        spectrum: the spectrum of its update.
        settings: what else the row states.
        limit: the largest possible rank of the update; r by default. Errors are given below it, and up to r.
    """
    place = 1 if settings.transposed and module.kind != "conv" else 0  # lora_B's place among the update's two factors
    # Where r is larger than a side, random factors are no measure of B: `null_factor_stable_rank` needs r <= d.
    apart = settings.from_zero and module.kind in _FROM_ZERO and module.r <= min(module.shape)
    if not spectrum.finite:
        return broken_row(module)
    if spectrum.spectral_norm == 0.0:
        return _zero_row(module)
    limit = module.r if limit is None else limit
    row = ModuleAudit(
        **_common(module),
        stable_rank=spectrum.stable_rank,
        effective_rank=spectrum.effective_rank,
        participation_ratio=spectrum.participation_ratio,
        utilization=spectrum.stable_rank / limit,
        energy_rank_90=spectrum.energy_ranks[0],
        energy_rank_95=spectrum.energy_ranks[1],
        energy_rank_99=spectrum.energy_ranks[2],
        knee_rank=knee_rank(spectrum.relative_errors),
        spectral_norm=real(spectrum.spectral_norm),
        frobenius_norm=real(spectrum.frobenius_norm),
        null_stable_rank=null_stable_rank(limit, *module.shape),
        b_stable_rank=spectrum.factor_stable_ranks[place] if apart else None,
        b_null_stable_rank=null_factor_stable_rank(module.r, module.shape[place]) if apart else None,
        b_rms=spectrum.factor_norms[place] / math.sqrt(module.r * module.shape[place]) if apart else None,
        top_singular_values=[float(s) for s in spectrum.sigma[: settings.singular_values]],
    )
    count = min(limit, len(spectrum.relative_errors) - 1, module.r + 1)
    return ModuleNumbers(row, spectrum.relative_errors[:count].tolist())


def dense_row(module: Module, spectrum: DenseSpectrum, settings: RowSettings = _PLAIN) -> ModuleNumbers:
    """Return the numbers of a module whose update is a dense matrix.

    Its rank is not bounded by r, so there is no utilization and no null model of random factors. For a large matrix,
    quantities that need every singular value are None, and an energy rank is given only if its two bounds agree.
    """
    if spectrum.energy == 0.0:
        return _zero_row(module)
    if spectrum.is_whole:
        whole = module_row(module, spectrum_of(spectrum.sigma), settings, limit=spectrum.size)
        return whole._replace(row=msgspec.structs.replace(whole.row, utilization=None, null_stable_rank=None))
    ranks = [spectrum.energy_rank(share) for share in SHARES]
    k90, k95, k99 = (least if least == most else None for least, most in ranks)
    left_out = np.sqrt(np.maximum(1.0 - np.cumsum(spectrum.sigma**2) / spectrum.energy, 0.0))
    row = ModuleAudit(
        **_common(module),
        stable_rank=float(spectrum.energy / spectrum.sigma[0] ** 2),
        energy_rank_90=k90,
        energy_rank_90_bounds=list(ranks[0]) if k90 is None else None,
        energy_rank_95=k95,
        energy_rank_99=k99,
        spectral_norm=real(float(spectrum.sigma[0])),
        frobenius_norm=real(math.sqrt(spectrum.energy)),
        top_singular_values=[float(s) for s in spectrum.sigma[: settings.singular_values]],
    )
    return ModuleNumbers(row, [1.0, *left_out[: module.r].tolist()])


def unknown_row(module: Module) -> ModuleNumbers:
    """Return the row of a module whose update is not s B A and cannot be computed without the base, or at all."""
    how = "its update cannot be known" if module.is_unknown else "its update follows only with the base (--base)"
    common = _common(module) | {"note": f"{module.note}: {how}"}
    return ModuleNumbers(ModuleAudit(**common, state="not_known", spectral_norm=None, frobenius_norm=None))


def broken_row(module: Module) -> ModuleNumbers:
    """Return the row of a module whose update holds NaN or infinite values."""
    return ModuleNumbers(ModuleAudit(**_common(module), state="non_finite", spectral_norm="NaN", frobenius_norm="NaN"))


def _zero_row(module: Module) -> ModuleNumbers:
    return ModuleNumbers(ModuleAudit(**_common(module), state="zero", spectral_norm=0.0, frobenius_norm=0.0))


def _common(module: Module) -> dict[str, Any]:
    return {
        "name": module.name,
        "module_type": module_type(module.name),
        "layer": layer_index(module.name),
        "kind": module.kind,
        "shape": list(module.shape),
        "r": module.r,
        "config_r": module.config_r if module.config_r != module.r else None,
        "alpha": real(module.alpha),
        "scaling": real(module.scale),
        "rslora": module.rslora,
        "rank_pattern": module.rank_pattern,
        "alpha_pattern": module.alpha_pattern,
        "expert": module.expert,
        "params": module.params,
        "note": module.note,
    }


def knee_rank(relative_errors: npt.NDArray[np.float64]) -> int:
    """Return the knee of the cumulative energy: the k >= 1 at which it is farthest above the chord (0, 0) to (r, 1).

    `relative_errors` are those of the best rank-k approximations, k = 0..r. A straight curve has no knee, and gives r.
    """
    r = len(relative_errors) - 1
    above = [1.0 - error * error - k / r for k, error in enumerate(relative_errors.tolist())]
    most = max(above[1:])  # not by numpy, whose calls cost more than the work on so few numbers
    return above.index(most, 1) if most > r * _EPS else r


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
