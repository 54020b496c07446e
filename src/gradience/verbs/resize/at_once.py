"""A resize to one rank in one pass: the header is known before any number is, so each module is measured as it is cut.

Where the ranks follow from the singular values, `plan` reads all factors before `cut` reads them again.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from gradience.adapters.layout import Adapter, Array
from gradience.adapters.pairs import StoredPair
from gradience.spectral.batch import Measuring
from gradience.spectral.grams import Factors, on_cpu
from gradience.spectral.reduced import Maps
from gradience.verbs.resize.criteria import Target
from gradience.verbs.resize.cut import Job
from gradience.verbs.resize.plan import (
    Plan,
    losses_of,
    measured_pairs,
    plan_of_files,
    refuse_broken,
    resizable_pairs,
    source_of,
    with_losses,
)


class AtOnce(NamedTuple):
    """The plan as far as it is known before the tensors are loaded: its rows are still to come."""

    adapter: Adapter
    plan: Plan
    jobs: list[Job]
    measuring: Measuring

    def finished(self) -> Plan:
        """Return the plan with its rows, once every tensor was loaded.

        Raises:
            AdapterError: a module that keeps its rank is not finite.
        """
        source, found = source_of(self.adapter), self.measuring.spectra()
        kept = iter(measured_pairs([job.pair for job in self.jobs if job.unchanged]))
        spectra = [next(kept).spectra if job.unchanged else [found[place]] for place, job in enumerate(self.jobs)]
        losses = [losses_of(source, job, some) for job, some in zip(self.jobs, spectra, strict=True)]
        return with_losses(self.plan, self.jobs, losses)


def planned_at_once(adapter: Adapter, target: Target, *, dtype: str | None) -> AtOnce | None:
    """Return the plan of an adapter that can be resized in one pass, or None where it takes two.

    Raises:
        AdapterError: the adapter cannot be resized.
    """
    if target.criterion != "rank" or adapter.format == "kohya" or not on_cpu():
        return None
    pairs = resizable_pairs(adapter)
    if not all(map(_is_plain, pairs)):
        return None
    measuring = Measuring()
    jobs = [
        Job(pair, int(target.value), measure=partial(_measured, measuring, place, pair))
        for place, pair in enumerate(pairs)
    ]
    return AtOnce(adapter, plan_of_files(source_of(adapter), jobs, dtype=dtype), jobs, measuring)


def _is_plain(pair: StoredPair) -> bool:
    """Whether a pair is the factors of one linear layer, as the file has them."""
    module, layout = pair.first, pair.layout
    turned = layout.transposed or layout.kernel or module.magnitude is not None or module.dense is not None
    return module.kind == "linear" and len(pair.modules) == 1 and module.expert is None and not turned


def _measured(measuring: Measuring, place: int, pair: StoredPair, b: Array, a: Array) -> Maps | None:
    module = pair.first
    maps, finite = measuring.maps_of(place, Factors(b, a, module.scale))
    refuse_broken(module, finite=finite)
    return maps
