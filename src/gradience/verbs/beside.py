"""Adapters beside each other, module by module: how the updates of each pair lie, and each adapter's own numbers.

Every module's factors are read once for all its pairs, and its own spectrum follows from what was summed for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.layout import Module
from gradience.base.update import factors_of
from gradience.spectral.grams import Grams, bucket_of, inner_size, narrowed
from gradience.spectral.subspace import Floats, PairGeometry, Stacked, row_geometries
from gradience.verbs.sides import Matching, Side

if TYPE_CHECKING:
    from gradience.spectral.batch import Spectrum

Places: TypeAlias = tuple[int, int]
Take: TypeAlias = Callable[[Places, Module, Module, PairGeometry], object]

_HELD: Final = 1 << 21  # numbers of Gram matrices that wait for their spectra (16 MiB)
_VOUCHED: Final = 1e-2  # of the sum of squares of the parts |b_k| |a_k|: above it the norm is good to 1e-12


class Own(NamedTuple):
    """The squared norm of each module's update by name, NaN where it is not finite; and its spectrum where asked."""

    energies: dict[str, float]
    spectra: dict[str, Spectrum]


def beside(sides: Sequence[Side], found: Matching, pairs: Sequence[Places], take: Take, *, whole: bool) -> list[Own]:
    """Call `take` with the geometry of each module that both of a pair have, and return each adapter's own numbers.

    Args:
        sides: the adapters.
        found: their modules by name.
        pairs: places of two adapters, the lesser first.
        take: called by module, in the order of `found`, and by pair within it.
        whole: return the spectra of all modules.
    """
    owns = _Owns(sides, whole=whole)
    rows = [[None if module is None else _stacked(module) for module in row] for row in found.rows.values()]
    for row, seen in zip(found.rows.values(), row_geometries(rows, pairs), strict=True):
        for (i, j), geometry in seen.pairs.items():
            if (one := row[i]) is not None and (two := row[j]) is not None:
                take((i, j), one, two, geometry)
        for place, grams in seen.own.items():
            if (module := row[place]) is not None:
                owns.put(place, module, *grams)
    return owns.finish()


class _Owns:
    """What each adapter's modules come to, from their Gram matrices as they arrive."""

    def __init__(self, sides: Sequence[Side], *, whole: bool) -> None:
        self._sides = sides
        self._whole = whole
        self._owns = [Own({}, {}) for _ in sides]
        self._open: list[tuple[int, Module, Grams]] = []
        self._held = 0

    def put(self, place: int, module: Module, gram_b: Floats, gram_a: Floats) -> None:
        energy = None if self._whole else _energy(gram_b, gram_a, module.scale)
        if energy is not None:
            self._owns[place].energies[module.name] = energy
            return
        grams = Grams(_padded(gram_a), _padded(gram_b), module.r, module.scale)
        self._open.append((place, module, grams))
        self._held += 2 * grams.gram_a.size
        if self._held >= _HELD:
            self._close()

    def finish(self) -> list[Own]:
        """All of them, in the order of the adapters' modules: those that no pair has are read here."""
        from gradience.spectral.batch import spectra  # noqa: PLC0415  # jax, which a merge does without

        self._close()
        for place, side in enumerate(self._sides):
            rest = [module for module in side.adapter.modules if module.name not in self._owns[place].energies]
            self._keep([(place, module) for module in rest], spectra([factors_of(module) for module in rest]))
        names = [[module.name for module in side.adapter.modules] for side in self._sides]
        return [
            Own({name: own.energies[name] for name in some}, {name: own.spectra[name] for name in some if self._whole})
            for own, some in zip(self._owns, names, strict=True)
        ]

    def _close(self) -> None:
        from gradience.spectral.batch import spectra  # noqa: PLC0415  # as above

        loads = [factors_of(module) for _, module, _ in self._open]
        found = spectra(loads, [grams for _, _, grams in self._open])
        self._keep([(place, module) for place, module, _ in self._open], found)
        self._open, self._held = [], 0

    def _keep(self, modules: Sequence[tuple[int, Module]], found: Sequence[Spectrum]) -> None:
        for (place, module), spectrum in zip(modules, found, strict=True):
            own = self._owns[place]
            own.energies[module.name] = spectrum.frobenius_norm**2 if spectrum.finite else math.nan
            if self._whole:
                own.spectra[module.name] = spectrum


def _energy(gram_b: Floats, gram_a: Floats, scale: float) -> float | None:
    """The squared norm of scale * b @ a from B^T B and A A^T; None where these alone do not vouch for it."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not vouched for
        size = float(np.diagonal(gram_b) @ np.diagonal(gram_a))
        total = float(np.sum(gram_b * gram_a))
    vouched = math.isfinite(size) and (total > _VOUCHED * size or size == 0.0) and math.isfinite(total * scale**2)
    return total * scale**2 if vouched else None


def _padded(gram: Floats) -> Floats:
    """A Gram matrix, padded to the rank's bucket."""
    r = len(gram)
    padded = np.zeros((bucket_of(r), bucket_of(r)))
    padded[:r, :r] = gram
    return padded


def _stacked(module: Module) -> Stacked:
    return Stacked(lambda: narrowed(*module.load()), inner_size(module.r, *module.shape), module.scale)
