"""One module's update as a LoRA pair: exact if its rank allows, else the best approximation of the rank asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.layout import LARGEST_ENTRY, Array, LoadFactors, Module, within_range
from gradience.errors import AdapterError
from gradience.spectral.grams import Floats
from gradience.spectral.update import LowRank, Part, decomposed, leading_part, part_with_energy, rank_for_energy
from gradience.verbs.writing import Spool

Method: TypeAlias = Literal["copied", "factors", "truncated", "dense"]

_FULL_RANK: Final = {"dora": "DoRA", "hira": "HiRA", "miss": "MiSS (bat)"}
_BLOCK: Final = 4096  # columns of a factor that are cast to float64 at a time

_FLOATS: Final = (np.dtype(np.float32), np.dtype(np.float32))


class Choice(NamedTuple):
    """How much of an update to keep: at most a rank, or a share of its energy (squared Frobenius norm), or all."""

    rank: int | None = None
    energy: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing may be left out."""
        return self.rank is None and self.energy is None

    def of(self, sigma: Floats) -> int:
        """Return the number of singular values to keep; sigma holds all of them, largest first."""
        if self.rank is not None:
            return min(self.rank, len(sigma))
        if self.energy is not None:
            return rank_for_energy(sigma, self.energy, float(np.sum(sigma * sigma))) or len(sigma)
        return len(sigma)


class Factored(NamedTuple):
    """The pair scale * b @ a, in the orientation of the base's weight.

    `norm` is the Frobenius norm of the update, `rest` that of the part left out.
    """

    rank: int
    scale: float
    shape: tuple[int, int]
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]
    load: LoadFactors
    method: Method
    norm: float
    rest: float

    @property
    def relative_error(self) -> float | None:
        """The relative Frobenius error rest / norm, or None if the update is zero."""
        return self.rest / self.norm if self.norm > 0.0 else None


def from_factors(module: Module, choice: Choice, spool: Spool, *, scale: float, copy: bool) -> Factored:
    """Return the module's own pair, cut to a lower rank if the choice asks for it.

    Args:
        module: a module whose factors can be loaded.
        choice: how much to keep.
        spool: where to put factors that are not the file's own.
        scale: the scale to write; if factors are copied, it must be the module's.
        copy: whether the file's own numbers are a LoRA pair, which is then copied bit for bit.

    Raises:
        AdapterError: a factor holds NaN or infinite values.
    """
    b, a = module.load()
    refuse_non_finite(module, b, a)
    norm, shape = abs(module.scale) * product_norm(b, a), (len(b), a.shape[1])
    if not copy:
        b, a = _without_zeros(b, a)
    if a.shape[0] > min(len(b), a.shape[1]) and not copy:
        return _truncated(decomposed(b, a, module.scale), Choice(min(len(b), a.shape[1])), choice, spool, scale)
    if not choice.everything:
        low = decomposed(b, a, module.scale)
        if (kept := choice.of(low.sigma)) < a.shape[0]:
            return _truncated(low, Choice(kept), Choice(), spool, scale)
    if copy:
        return Factored(a.shape[0], module.scale, shape, (b.dtype, a.dtype), module.load, "copied", norm, 0.0)
    ratio = module.scale / scale if scale else 1.0
    load = _kept(spool, b, a.astype(np.float64) * ratio)
    return Factored(a.shape[0], scale, shape, _FLOATS, load, "factors", norm, 0.0)


def _kept(spool: Spool, b: Array, a: Array) -> LoadFactors:
    """Put computed factors into the spool in float32, as they will be stored, and return their loader."""
    left, right = spool.keep(b.astype(np.float32)), spool.keep(a.astype(np.float32))
    return lambda: (left(), right())


def _truncated(low: LowRank, first: Choice, second: Choice, spool: Spool, scale: float) -> Factored:
    kept = max(1, min(first.of(low.sigma), second.of(low.sigma)))
    load = _kept(spool, *low.factors(kept, scale))
    norm = float(np.linalg.norm(low.sigma))
    rest = low.error(kept)
    method: Method = "truncated" if rest > 0.0 else "factors"
    return Factored(kept, scale, (len(low.u), low.v.shape[1]), _FLOATS, load, method, norm, rest)


def _without_zeros(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the pair without exactly zero rank-one terms, such as AdaLoRA prunes; at least one term is kept."""
    held = np.flatnonzero(b.any(axis=0) & a.any(axis=1))
    if len(held) == a.shape[0]:
        return b, a
    held = held if len(held) else np.zeros(1, dtype=np.intp)
    return b[:, held], a[held]


def product_norm(b: Array, a: Array) -> float:
    """Return the Frobenius norm of b @ a from two r x r Gram matrices."""
    return math.sqrt(max(0.0, float(np.sum(_gram(b.T) * _gram(a)))))


def _gram(rows: Array) -> Floats:
    """Return rows @ rows.T in float64, some columns at a time."""
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].astype(np.float64)
        gram += block @ block.T
    return gram


def refuse_non_finite(module: Module, *arrays: Array) -> None:
    """Refuse a module with numbers that are not finite or too large.

    Raises:
        AdapterError: an array holds NaN, infinite values, or values beyond float32's range.
    """
    if not within_range(*arrays):
        raise AdapterError(
            f"{module.name} holds NaN or infinite values, or some over the limit of {LARGEST_ENTRY:g}",
            advice="see 'gradience audit' for which modules do; nothing can be converted from them",
        )


def from_dense(
    module: Module, matrix: Callable[[], Floats], choice: Choice, spool: Spool, *, scale: float, bound: int | None
) -> Factored:
    """Return the leading part of a dense update; `bound` is an upper bound on its rank, if one is known.

    Raises:
        AdapterError: there is no bound and the choice is to keep everything, or the update is not finite.
    """
    if bound is None and choice.everything:
        raise AdapterError(
            f"{module.name}: {_FULL_RANK.get(module.kind, module.kind)} has updates of full rank, which no LoRA of "
            "low rank is exactly",
            advice="give the rank to keep with --rank N, or the share of its squared norm with --energy E",
        )
    dense = matrix()
    refuse_non_finite(module, dense)
    part = _part(dense, choice, min(dense.shape) if bound is None else min(bound, *dense.shape))
    kept = max(1, len(part.low.sigma))
    load = _kept(spool, *part.low.factors(kept, scale))
    return Factored(kept, scale, (dense.shape[0], dense.shape[1]), _FLOATS, load, "dense", part.norm, part.rest)


def _part(dense: Floats, choice: Choice, bound: int) -> Part:
    if choice.energy is not None:
        part = part_with_energy(dense, choice.energy)
        return part if len(part.low.sigma) <= bound else leading_part(dense, bound)
    return leading_part(dense, bound if choice.rank is None else min(choice.rank, bound))
