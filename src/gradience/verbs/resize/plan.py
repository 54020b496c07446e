"""Everything that is decided before a byte is written: ranks, tensors, config, and what each module loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Adapter, Module
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, TensorSource, file_size
from gradience.rules.weights.rank_pattern import Patterns, alpha_for, patterns_of, rank_pattern
from gradience.schema.audit import ModuleAudit
from gradience.schema.writing import ResizedModule
from gradience.spectral.batch import Spectrum, spectra
from gradience.spectral.grams import Factors, Grams, grams_of
from gradience.spectral.reduced import Floats
from gradience.verbs.audit.rows import module_row
from gradience.verbs.resize.criteria import Priced, Target, module_rank, ranks_within
from gradience.verbs.resize.cut import SAFETENSORS_NAMES, Job, planned_file, refit_of
from gradience.verbs.resize.pairs import Pair, pairs_of

_RUN_AGAIN: Final = ("orthogonal", "mica")


class NewConfig(NamedTuple):
    """The config as PEFT will read it, and what else was changed in it."""

    fields: dict[str, Any]
    notes: list[str]


def new_patterns(jobs: Iterable[Job]) -> Patterns:
    """Return r, alpha and their exceptions that give each pair its rank at its present scale s."""
    ranks: dict[str, int] = {}
    alphas = {}
    for job in jobs:
        module = job.pair.modules[0]
        ranks[job.pair.path] = min(job.rank, job.pair.r)
        alphas[job.pair.path] = alpha_for(module.scale, ranks[job.pair.path], rslora=module.rslora)
    return patterns_of(ranks, alphas)


def new_config(raw: dict[str, Any], patterns: Patterns) -> NewConfig:
    """Return the config with every key it had and the new ranks."""
    fields = {**raw, **patterns._asdict()}
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in _RUN_AGAIN:
        fields["init_lora_weights"] = True
        note = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
        return NewConfig(fields, [note])
    return NewConfig(fields, [])


_MEGABYTE: Final = 1_000_000


class Measured(NamedTuple):
    """A pair; of each of its modules the spectrum, scaled, and A A^T and B^T B in the file's orientation."""

    pair: Pair
    spectra: tuple[Spectrum, ...]
    grams: tuple[tuple[Floats, Floats], ...]


def ranks_of(target: Target, measured: Sequence[Measured], *, other_bytes: int, dtype: str | None) -> dict[str, int]:
    """Return the rank of each path, from 1 and at most the present one; what shares a path gets the largest.

    `other_bytes` is what the file holds beside the factors' data; `dtype` (of safetensors) is that of the new ones.

    Raises:
        AdapterError: the budget does not even hold rank 1.
    """
    if target.criterion == "max_params":
        return _within(measured, int(target.value), lambda pair: pair.cost, "parameters")
    if target.criterion == "max_mb":
        budget = int(target.value * _MEGABYTE) - other_bytes
        return _within(
            measured, budget, lambda pair: _bytes(pair, dtype), f"bytes beside the {other_bytes} of the rest"
        )
    if target.criterion == "like_suggested":
        return _suggested(measured)
    return _largest((one.pair.path, module_rank(target, s.sigma)) for one in measured for s in one.spectra)


def _largest(ranks: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, rank in ranks:
        found[path] = max(rank, found.get(path, 1))
    return found


def _suggested(measured: Sequence[Measured]) -> dict[str, int]:
    """Return what `gradience audit --suggest-per-layer` reports."""
    rows: list[ModuleAudit] = []
    paths: list[str] = []
    for one in measured:
        for module, spectrum in zip(one.pair.modules, one.spectra, strict=True):
            rows.append(module_row(module, spectrum, top=0))
            paths.append(one.pair.path)
    pattern = rank_pattern(rows, bytes_per_param=0.0)
    if pattern is None:
        raise AdapterError("the audit suggests no ranks for this adapter", advice="give --rank N")
    return _largest((path, row.rank) for path, row in zip(paths, pattern.modules, strict=True))


def _within(measured: Sequence[Measured], budget: int, cost_of: Callable[[Pair], int], what: str) -> dict[str, int]:
    groups: dict[str, Priced] = {}
    for one in measured:
        gains = np.sum([s.sigma**2 for s in one.spectra], axis=0)
        cost = cost_of(one.pair)
        held = groups.get(one.pair.path)
        groups[one.pair.path] = Priced(gains, cost) if held is None else Priced(held.gains + gains, held.cost + cost)
    ranks = ranks_within(groups, budget)
    if ranks is None:
        least = sum(group.cost for group in groups.values())
        raise AdapterError(
            f"the budget leaves {budget} {what}, and rank 1 of every module needs {least}", advice="give a larger one"
        )
    return ranks


def _bytes(pair: Pair, dtype: str | None) -> int:
    return sum(info.size // pair.r * DTYPES[dtype or info.dtype].itemsize for info in (pair.a, pair.b))


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
