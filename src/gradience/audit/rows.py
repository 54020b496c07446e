"""One module's row of the report: what the file says of it, and its spectrum."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.modules import Module
from gradience.adapters.names import layer_index, module_type
from gradience.policy.ranks import BUCKETS
from gradience.schema.audit import ModuleAudit
from gradience.schema.scalars import real
from gradience.spectral.batch import Spectrum
from gradience.spectral.null import null_stable_rank

__all__ = ["bare_row", "knee_rank", "module_row", "with_shares"]


def module_row(module: Module, spectrum: Spectrum, *, top: int) -> ModuleAudit:
    """Return the row of a module whose update is s B A, with its `top` largest singular values."""
    common = _common(module)
    if not spectrum.finite:
        return ModuleAudit(**common, state="non_finite", spectral_norm="NaN", frobenius_norm="NaN")
    if spectrum.spectral_norm == 0.0:
        return ModuleAudit(**common, state="zero", spectral_norm=0.0, frobenius_norm=0.0)
    return ModuleAudit(
        **common,
        stable_rank=spectrum.stable_rank,
        effective_rank=spectrum.effective_rank,
        participation_ratio=spectrum.participation_ratio,
        utilization=spectrum.stable_rank / module.r,
        energy_rank_90=spectrum.energy_ranks[0],
        energy_rank_95=spectrum.energy_ranks[1],
        energy_rank_99=spectrum.energy_ranks[2],
        knee_rank=knee_rank(spectrum.relative_errors),
        spectral_norm=real(spectrum.spectral_norm),
        frobenius_norm=real(spectrum.frobenius_norm),
        relative_errors={str(k): float(spectrum.relative_errors[k]) for k in BUCKETS if k < module.r},
        null_stable_rank=null_stable_rank(module.r, *module.shape),
        top_singular_values=[float(s) for s in spectrum.sigma[:top]],
    )


def bare_row(module: Module, *, spectral_norm: float, frobenius_norm: float) -> ModuleAudit:
    """Return the row of a module whose update has no low-rank factors, only its norms."""
    finite = np.isfinite(spectral_norm) and np.isfinite(frobenius_norm)
    zero = finite and spectral_norm == 0.0
    return ModuleAudit(
        **_common(module),
        state="zero" if zero else "ok" if finite else "non_finite",
        spectral_norm=real(spectral_norm),
        frobenius_norm=real(frobenius_norm),
        stable_rank=(frobenius_norm / spectral_norm) ** 2 if finite and not zero else None,
    )


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
    """Return the k >= 1 whose cumulative energy lies farthest above the chord from (0, 0) to (r, 1).

    `relative_errors` are those of the best rank k for k = 0..r. A straight curve has no knee: r.
    """
    r = len(relative_errors) - 1
    above = (1.0 - relative_errors**2) - np.arange(r + 1) / r
    best = int(np.argmax(above[1:])) + 1
    return best if above[best] > r * np.finfo(np.float64).eps else r


def with_shares(modules: list[ModuleAudit]) -> list[ModuleAudit]:
    """Return the modules with their share of the adapter's squared Frobenius norm."""
    energies = [float(m.frobenius_norm) ** 2 if m.state == "ok" else 0.0 for m in modules]
    total = sum(energies)
    if not 0.0 < total < float("inf"):
        return modules
    return [
        msgspec.structs.replace(m, energy_share=energy / total) if m.state == "ok" else m
        for m, energy in zip(modules, energies, strict=True)
    ]
