"""The plan of a resized adapter, made before a byte is written: the pairs, their new ranks, the config, the errors.

The factors are read once, one module at a time, for their Gram matrices. Singular values, ranks and errors follow from
the Gram matrices. The new factors are computed only while the file is written (`cut`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Adapter, Module
from gradience.adapters.pairs import StoredPair, stored_pairs
from gradience.adapters.traits import Operation, obstacles
from gradience.base.weights import BaseWeights, factors_of
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, TensorSource, file_size
from gradience.rewrite.options import Target
from gradience.rewrite.resize.cut import Job, Priced, module_rank, planned_file, ranks_within, refit_of
from gradience.rules.weights.ranks import Patterns, alpha_for, patterns_of
from gradience.schema.writing import Calibration, Recovery, ResizedModule
from gradience.spectral.batch import Maps, Spectrum, spectra_and_maps
from gradience.spectral.grams import Floats

_MEGABYTE: Final = 1_000_000
_METADATA: Final = {"format": "pt"}
_RECORD: Final = 4096  # bytes that a short record of the operation may take in the header
_RUN_AGAIN: Final = ("orthogonal", "mica")  # initialisations that PEFT runs again on loading

_CONVERT: Final = "turn it into plain LoRA first: see 'gradience convert --help'"


@dataclass(frozen=True, slots=True)
class Plan:
    """The tensors of the new file, its config and the errors; `relative_error` is None if every update is zero.

    `fields` are the config's fields that change beside the ranks: target_modules, if modules leave the adapter.
    """

    tensors: list[PlannedTensor]
    metadata: Mapping[str, str]
    patterns: Patterns
    rows: list[ResizedModule]
    relative_error: float | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    recovery: Recovery | None = None

    @property
    def nbytes(self) -> int:
        """The size of the new weights file."""
        return file_size(self.tensors, metadata=self.metadata)


def plan_of(adapter: Adapter, target: Target, *, dtype: str | None = None, base: BaseWeights | None = None) -> Plan:
    """Return the plan of the new file; `dtype` (safetensors' name) is that of the new factors.

    Raises:
        AdapterError: the adapter cannot be resized, is not finite, or does not fit the budget even at rank 1.
    """
    source = source_of(adapter)
    measured = _measured_pairs(resizable_pairs(adapter))
    sizes = sizes_of(adapter, [one.pair for one in measured], dtype)
    ranks = _ranks_of(target, measured, sizes)
    jobs = [Job(one.pair, ranks[one.pair.path], one.best, base) for one in measured]
    losses = [_losses_of(source, job, one.spectra) for job, one in zip(jobs, measured, strict=True)]
    return plan_of_jobs(source, jobs, losses, dtype=dtype)


def source_of(adapter: Adapter) -> TensorSource:
    """Return the file or files that the adapter was read from.

    Raises:
        AdapterError: the adapter was not read from a file.
    """
    if adapter.source is None:
        raise AdapterError("the adapter's tensors cannot be read again", advice="open it from its files")
    return adapter.source


def plan_of_jobs(
    source: TensorSource, jobs: Sequence[Job], losses: Sequence[Sequence[Loss]], *, dtype: str | None
) -> Plan:
    """Return the plan for pairs whose ranks are decided; `losses` are those of each pair's modules."""
    tensors = planned_file(source, jobs, dtype=dtype)
    error = relative_error([loss for some in losses for loss in some])
    return Plan(tensors, source.metadata or _METADATA, _new_patterns(jobs), _rows(jobs, losses), error)


class NewConfig(NamedTuple):
    """The new config as PEFT will read it, and notes on changes beside the ranks."""

    fields: dict[str, Any]
    notes: list[str]


def new_config(raw: dict[str, Any], plan: Plan) -> NewConfig:
    """Return the config with the new ranks and all of its other keys."""
    fields = {**raw, **plan.patterns._asdict(), **plan.fields}
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in _RUN_AGAIN:
        fields["init_lora_weights"] = True
        note = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
        return NewConfig(fields, [note])
    return NewConfig(fields, [])


def _new_patterns(jobs: Iterable[Job]) -> Patterns:
    """Return r, alpha and their patterns, such that each pair gets its new rank and keeps its scale s."""
    ranks: dict[str, int] = {}
    alphas = {}
    for job in jobs:
        if job.rank == 0:
            continue
        path, module = job.pair.path, job.pair.first
        ranks[path] = job.rank
        alphas[path] = alpha_for(module.scale, ranks[path], rslora=module.rslora)
    return patterns_of(ranks, alphas)


class _Measured(NamedTuple):
    """A pair, with each module's spectrum (scale included) and maps to its best factors in the file's orientation."""

    pair: StoredPair
    spectra: list[Spectrum]
    best: list[Maps | None]


def _measured_pairs(pairs: Sequence[StoredPair]) -> list[_Measured]:
    """Return the pairs with their spectra and maps.

    Raises:
        AdapterError: a module is not finite.
    """
    loads = [factors_of(module) for pair in pairs for module in pair.modules]
    found = zip(*spectra_and_maps(loads), strict=True)
    measured = [_of_pair(pair, [next(found) for _ in pair.modules]) for pair in pairs]
    for one in measured:
        for module, spectrum in zip(one.pair.modules, one.spectra, strict=True):
            if not spectrum.finite:
                raise AdapterError(
                    f"{module.name} holds NaN or infinite numbers: it has no best update of a lower rank",
                    advice="'gradience audit' names all such modules",
                )
    return measured


def _of_pair(pair: StoredPair, found: Sequence[tuple[Spectrum, Maps | None]]) -> _Measured:
    best = [None if maps is None else Maps(*pair.layout.swapped(*_turned(pair, maps))) for _, maps in found]
    return _Measured(pair, [spectrum for spectrum, _ in found], best)


def _turned(pair: StoredPair, maps: Maps) -> tuple[Floats, Floats]:
    """The maps, or their transposes if the file holds the factors of the transposed update."""
    return (maps.left.T, maps.right.T) if pair.layout.transposed else (maps.left, maps.right)


class Sizes(NamedTuple):
    """The data from which file sizes follow: the source, the dtype of new factors, the bytes of everything else."""

    source: TensorSource
    dtype: str | None
    other: int

    def bytes_per_rank(self, pair: StoredPair) -> int:
        """Return the bytes that one more rank costs, in both factors."""
        infos = (self.source.tensors[name] for name in (pair.layout.a_name, pair.layout.b_name))
        return sum(info.size // pair.layout.rank * DTYPES[self.dtype or info.dtype].itemsize for info in infos)

    def budget(self, megabytes: float) -> int:
        """Return the bytes that remain for factors in a file of that size (1 MB is 10^6 bytes)."""
        return int(megabytes * _MEGABYTE) - self.other


def sizes_of(adapter: Adapter, pairs: Sequence[StoredPair], dtype: str | None) -> Sizes:
    """Return the sizes of the adapter's file; `dtype` is that of the new factors."""
    source = source_of(adapter)
    unchanged = planned_file(source, [Job(pair, pair.layout.rank) for pair in pairs], dtype=dtype)
    factors = {name for pair in pairs for name in (pair.layout.a_name, pair.layout.b_name)}
    other = file_size(unchanged, metadata=source.metadata or _METADATA)
    other -= sum(tensor.nbytes for tensor in unchanged if tensor.name in factors)
    return Sizes(source, dtype, other + (_RECORD if adapter.format == "kohya" else 0))


def _ranks_of(target: Target, measured: Sequence[_Measured], sizes: Sizes) -> dict[str, int]:
    """Return the new rank of each path, from 1 to its present rank; pairs that share a path share the largest.

    Raises:
        AdapterError: the budget is too small even for rank 1.
    """
    if target.criterion == "max_params":
        return _within(measured, int(target.value), lambda pair: pair.layout.params_per_rank, "parameters")
    if target.criterion == "max_mb":
        return _within(
            measured, sizes.budget(target.value), sizes.bytes_per_rank, f"bytes beside the {sizes.other} of the rest"
        )
    rank_of = _suggested if target.criterion == "like_suggested" else lambda s: module_rank(target, s.sigma)
    ranks: dict[str, int] = {}
    for one in measured:
        ranks[one.pair.path] = max(ranks.get(one.pair.path, 1), *map(rank_of, one.spectra))
    return ranks


def _suggested(spectrum: Spectrum) -> int:
    """The rank that `gradience audit --suggest-per-layer` reports: k@90%, or its own rank for a zero update."""
    return spectrum.energy_ranks[0] if spectrum.spectral_norm > 0.0 else len(spectrum.sigma)


def _within(
    measured: Sequence[_Measured], budget: int, cost_of: Callable[[StoredPair], int], unit: str
) -> dict[str, int]:
    groups: dict[str, Priced] = {}
    for one in measured:
        gains = np.sum([s.sigma**2 for s in one.spectra], axis=0)
        cost, held = cost_of(one.pair), groups.get(one.pair.path)
        groups[one.pair.path] = Priced(gains, cost) if held is None else Priced(held.gains + gains, held.cost + cost)
    ranks = ranks_within(groups, budget)
    if ranks is None:
        least = sum(group.cost for group in groups.values())
        raise AdapterError(
            f"the budget leaves {budget} {unit}, and rank 1 of every module needs {least}", advice="give a larger one"
        )
    return ranks


class Loss(NamedTuple):
    """Squared Frobenius norms of a module: `lost` of the part left out, `energy` of the whole update."""

    lost: float
    energy: float


def _losses_of(source: TensorSource, job: Job, found: Sequence[Spectrum]) -> list[Loss]:
    """Return the loss of each module of a pair, from the spectra; for DoRA, from the refitted magnitudes."""
    if job.magnitude is not None and not job.unchanged:
        fit = refit_of(source, job)
        return [Loss(fit.lost, fit.energy)]
    energies = [s.frobenius_norm * s.frobenius_norm for s in found]
    if math.inf in energies:
        raise AdapterError(
            f"{job.pair.first.name}: the square of its norm is over the range of float64", advice="lower its alpha"
        )
    return [
        Loss(energy * float(s.relative_errors[job.rank]) ** 2, energy)
        for s, energy in zip(found, energies, strict=True)
    ]


def _rows(jobs: Sequence[Job], losses: Sequence[Sequence[Loss]]) -> list[ResizedModule]:
    return [
        _row(job, module, loss)
        for job, some in zip(jobs, losses, strict=True)
        for module, loss in zip(job.pair.modules, some, strict=True)
    ]


def _row(job: Job, module: Module, loss: Loss) -> ResizedModule:
    params = job.pair.layout.params_per_rank // len(job.pair.modules)
    return ResizedModule(
        name=module.name,
        kind=module.kind,
        rank_before=module.r,
        rank_after=job.rank,
        relative_error=relative_error([loss]),
        params_before=params * module.r,
        params_after=params * job.rank,
    )


def relative_error(losses: Sequence[Loss]) -> float | None:
    """Return the relative Frobenius error over some modules, at most 1; None if their updates are zero."""
    lost, energy = sum(one.lost for one in losses), sum(one.energy for one in losses)
    return min(1.0, math.sqrt(lost / energy)) if energy > 0.0 else None


def resizable_pairs(adapter: Adapter) -> list[StoredPair]:
    """Return the adapter's pairs, in the order of its modules.

    Raises:
        AdapterError: a lower rank would change more than the part left out, or no config can express it.
    """
    refusal = next(obstacles(adapter, Operation.RESIZE), None)
    if refusal is not None:
        raise AdapterError(f"cannot resize this adapter: {refusal.text}", advice=_CONVERT)
    unread = [name for name, role in adapter.roles.items() if role == "not_analysed"]
    if unread:
        why = adapter.skipped[0].reason if adapter.skipped else "not understood"
        raise AdapterError(
            f"cannot resize this adapter: {len(unread)} of its tensors may depend on the rank ({unread[0]}: {why})",
            advice="'gradience audit --verbose' lists them",
        )
    if not adapter.modules:
        raise AdapterError("cannot resize this adapter: it holds no LoRA pair", advice="give the folder PEFT saved")
    pairs = stored_pairs(adapter)
    _refuse_unequal(pairs)
    return pairs


def _refuse_unequal(pairs: Sequence[StoredPair]) -> None:
    """Refuse pairs that share a pattern but differ in rank or scale, because no config can express that."""
    seen: dict[str, Module] = {}
    for pair in pairs:
        module, other = pair.first, seen.setdefault(pair.path, pair.first)
        if (module.r, module.scale) != (other.r, other.scale):
            raise AdapterError(
                f"{other.name} and {module.name} share their config, but have ranks {other.r} and {module.r} "
                f"and scales {other.scale:g} and {module.scale:g}",
                advice="save each adapter in a folder of its own",
            )
