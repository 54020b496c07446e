"""The tensors of the adapter that is to be served: their groups by the header, and the energy that some hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from gradience.adapters.groups import grouped
from gradience.adapters.layout import Adapter, parse_key
from gradience.errors import AdapterError
from gradience.folder import Documents
from gradience.folder.found import weights_alone
from gradience.rules.config.facts import CheckContext


def with_tensors(around: CheckContext, folder: Path) -> CheckContext:
    """Add the adapter's tensors to the surroundings, if its file can be read and has PEFT's names."""
    opened = Documents(weights_alone(folder)).adapter.held
    if opened is None or not opened.adapter.file_format.is_peft:
        return around
    return around._replace(groups=grouped(opened.adapter.tensors), energy=_share_of(opened.adapter))


def _share_of(adapter: Adapter) -> Callable[[Sequence[str]], float | None]:
    """A function that gives the share of the update's energy that modules hold; every factor is read at the first call.

    It gives None if some update is not known without the base, or if one of the modules has none that is known.
    """

    @cache
    def energies() -> dict[str, float] | None:
        from gradience.spectral.sums import gram_norm, pair_grams  # JAX: only where something is left out

        if adapter.base_dependent or not adapter.modules:
            return None
        sums: dict[str, float] = {}
        try:
            for one in adapter.modules:
                b, a = one.load()
                key = parse_key(next(iter(one.keys.values())))
                name = one.name if key is None else key.module
                sums[name] = sums.get(name, 0.0) + one.scale**2 * gram_norm(pair_grams(b, a), one.load)
        except AdapterError:
            return None
        return sums

    def share(modules: Sequence[str]) -> float | None:
        known = energies()
        total = sum(known.values()) if known else 0.0
        if not known or not total or not known.keys() >= set(modules):
            return None
        return sum(known[name] for name in modules) / total

    return share
