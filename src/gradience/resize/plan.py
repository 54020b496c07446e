"""Everything that is decided before a byte is written: ranks, tensors, config, and what each module loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gradience.adapters.modules import Adapter, Module
from gradience.adapters.tensors import TensorSource
from gradience.adapters.write import PlannedTensor, file_size
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.policy.pattern_keys import Patterns
from gradience.resize.config import new_patterns
from gradience.resize.criteria import Target
from gradience.resize.cut import SAFETENSORS_NAMES, Job, planned_file, refit_of
from gradience.resize.pairs import Pair, pairs_of
from gradience.resize.ranks import Measured, ranks_of
from gradience.schema.resize import ResizedModule
from gradience.spectral.batch import Factors, Spectrum, spectra
from gradience.spectral.grams import Grams, grams_of

__all__ = ["Plan", "plan_of"]

_METADATA: Final = {"format": "pt"}
_RECORD: Final = 4096  # bytes of a header that a short record of the operation may take


@dataclass(frozen=True, slots=True)
class Plan:
    """The new file, and what it costs. `relative_error` is None where every update is zero."""

    tensors: list[PlannedTensor]
    metadata: Mapping[str, str]
    patterns: Patterns
    rows: list[ResizedModule]
    relative_error: float | None

    @property
    def nbytes(self) -> int:
        """The size of the new weights file."""
        return file_size(self.tensors, metadata=self.metadata)


def plan_of(adapter: Adapter, target: Target, *, dtype: str | None = None, base: BaseWeights | None = None) -> Plan:
    """Return what to write; all factors are read once, one module at a time.

    Raises:
        AdapterError: the adapter is of a kind that cannot be resized, not finite, or larger than the budget.
    """
    source = adapter.source
    if source is None:
        raise AdapterError("the adapter's tensors cannot be read again", advice="open it from its files")
    metadata = source.metadata or _METADATA
    measured = _measured(pairs_of(adapter))
    whole = planned_file(source, [Job(one.pair, one.pair.r) for one in measured], dtype=dtype)
    own = {name for one in measured for name in (one.pair.a_name, one.pair.b_name)}
    other = file_size(whole, metadata=metadata) - sum(tensor.nbytes for tensor in whole if tensor.name in own)
    other += _RECORD if adapter.format == "kohya" else 0
    stored = None if dtype is None else SAFETENSORS_NAMES[dtype]
    ranks = ranks_of(target, measured, other_bytes=other, dtype=stored)
    jobs = [Job(one.pair, ranks[one.pair.path], one.grams, base) for one in measured]
    tensors = planned_file(source, jobs, dtype=dtype)
    lost = [_losses(source, job, one.spectra) for job, one in zip(jobs, measured, strict=True)]
    return Plan(tensors, metadata, new_patterns(jobs), _rows(jobs, lost), _whole(lost))


def _measured(pairs: Sequence[Pair]) -> list[Measured]:
    modules = [module for pair in pairs for module in pair.modules]
    loads = [_load(module) for module in modules]
    grams = grams_of(loads)
    found = zip(grams, spectra(loads, grams), strict=True)
    measured = [_together(pair, [next(found) for _ in pair.modules]) for pair in pairs]
    for one in measured:
        for module, spectrum in zip(one.pair.modules, one.spectra, strict=True):
            if not (spectrum.finite and math.isfinite(module.scale)):
                raise AdapterError(
                    f"{module.name} holds NaN or infinite numbers: it has no best update of a lower rank",
                    advice="'gradience audit' names all such modules",
                )
    return measured


def _together(pair: Pair, found: Sequence[tuple[Grams, Spectrum]]) -> Measured:
    r = pair.r
    sides = [pair.in_file_order(one.gram_b[:r, :r], one.gram_a[:r, :r]) for one, _ in found]
    return Measured(pair, tuple(s for _, s in found), tuple((gram_a, gram_b) for gram_b, gram_a in sides))


def _load(module: Module) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


def _losses(source: TensorSource, job: Job, found: Sequence[Spectrum]) -> list[tuple[float, float]]:
    """Return (squared norm lost, squared norm) of each module."""
    if job.pair.magnitude is not None and not job.kept:
        fit = refit_of(source, job)
        return [(fit.lost, fit.energy)]
    energies = [s.frobenius_norm**2 for s in found]
    return [
        (0.0 if job.kept else e * float(s.relative_errors[job.rank]) ** 2, e)
        for s, e in zip(found, energies, strict=True)
    ]


def _rows(jobs: Sequence[Job], lost: Sequence[Sequence[tuple[float, float]]]) -> list[ResizedModule]:
    return [
        ResizedModule(
            name=module.name,
            kind=module.kind,
            rank_before=module.r,
            rank_after=min(job.rank, module.r),
            relative_error=_relative(*part),
            params_before=job.pair.cost * module.r // len(job.pair.modules),
            params_after=job.pair.cost * min(job.rank, module.r) // len(job.pair.modules),
        )
        for job, parts in zip(jobs, lost, strict=True)
        for module, part in zip(job.pair.modules, parts, strict=True)
    ]


def _whole(lost: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    parts = [part for some in lost for part in some]
    return _relative(sum(part[0] for part in parts), sum(part[1] for part in parts))


def _relative(lost: float, energy: float) -> float | None:
    return min(1.0, math.sqrt(lost / energy)) if energy > 0.0 else None
