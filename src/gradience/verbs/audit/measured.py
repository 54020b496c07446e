"""The second step of an audit: the numbers of each module, one row each, from its factors alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters import layer_index, module_type
from gradience.adapters.layout import Adapter, Module
from gradience.base.weights import factors_of
from gradience.io import Progress
from gradience.schema import real
from gradience.schema.audit import BaseReport, ModuleAudit
from gradience.spectral.batch import SHARES, Spectrum, spectra, spectrum_of
from gradience.spectral.grams import Factors, Grams, Loads
from gradience.spectral.update import null_factor_stable_rank, null_stable_rank
from gradience.verbs.audit.tied import listed_once

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


class AdapterNumbers(NamedTuple):
    """The numbers of an adapter; beside a base, the adapter as the base showed it, and the summary of both."""

    adapter: Adapter
    modules: list[ModuleNumbers]
    notes: list[str]
    base: BaseReport | None = None


def measure(
    adapter: Adapter,
    singular_values: int,
    *,
    grams: Sequence[Grams] | None = None,
    progress: Progress | None = None,
) -> AdapterNumbers:
    """The numbers of every module. Each is loaded once, rarely twice.

    Args:
        adapter: the adapter.
        singular_values: how many of them the rows state.
        grams: the Gram matrices of the modules, in order, if the caller has them.
        progress: as of `audit_adapter`.

    Raises:
        AdapterError: a tensor cannot be read.
    """
    settings = settings_of(adapter, singular_values)
    loads = [factors_of(module) for module in adapter.modules]
    computed = spectra(loads if progress is None else _reported(loads, adapter.modules, progress), grams)
    kept, notes = listed_once(adapter)
    names = {module.name for module in kept.modules}
    each = zip(adapter.modules, computed, strict=True)
    rows = [_measurement(module, spectrum, settings) for module, spectrum in each if module.name in names]
    return AdapterNumbers(kept, rows, notes)


def _reported(loads: Loads, modules: Sequence[Module], progress: Progress) -> Loads:
    """The loads, which say how many of them were called; threads call them, in any order."""
    done, total = count(1), len(loads)

    def reporting(load: Callable[[], Factors], name: str) -> Callable[[], Factors]:
        def loaded() -> Factors:
            factors = load()
            # Factors that almost cancel are loaded a second time (`spectra`).
            progress(min(next(done), total), total, name)
            return factors

        return loaded

    return [reporting(load, module.name) for load, module in zip(loads, modules, strict=True)]


def _measurement(module: Module, spectrum: Spectrum, settings: RowSettings) -> ModuleNumbers:
    """A module without the base; factors that are not finite are reported even if the update is unknown."""
    if spectrum.finite and (module.dense is not None or module.is_unknown):
        return unknown_row(module)
    return module_row(module, spectrum, settings)


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
