"""The plan of a resized adapter: the file that its pairs make at their new ranks, its config and its errors.

No factor is computed before its tensor is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array, Module, all_finite
from gradience.adapters.pairs import StoredPair
from gradience.adapters.patterns import Patterns, alpha_for, patterns_of
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, Together, copied, file_size, planned
from gradience.schema.writing import ResizedModule
from gradience.verbs.resize.subject import Subject, factor_names

_RUN_AGAIN: Final = ("orthogonal", "mica")  # initialisations that PEFT runs again on loading
_RECORD: Final = 4096  # bytes that a short record of the operation may take in the header of a file of kohya's


class Loss(NamedTuple):
    """Squared Frobenius norms of a module: `lost` of the part left out, `energy` of the whole update."""

    lost: float
    energy: float


class Cut(NamedTuple):
    """A pair at its new rank, and the loss of each of its modules.

    A rank of 0 takes the pair out of the adapter, and at its own rank its tensors are copied. `compute` gives the new
    tensors by name, if the rank is lower.
    """

    pair: StoredPair
    rank: int
    losses: Sequence[Loss]
    compute: Callable[[], dict[str, Array]]

    @property
    def names(self) -> tuple[str, str]:
        """The names of A and B in the file."""
        return factor_names(self.pair)


class ResizePlan(NamedTuple):
    """The tensors of the new file, its ranks and the errors; `relative_error` is None if every update is zero."""

    tensors: list[PlannedTensor]
    patterns: Patterns
    rows: list[ResizedModule]
    relative_error: float | None
    fields: Mapping[str, Any]
    """The config's fields that change beside the ranks: target_modules, if modules leave the adapter."""


def plan_of(subject: Subject, cuts: Sequence[Cut], fields: Mapping[str, Any]) -> ResizePlan:
    """Return the plan for pairs whose ranks are decided."""
    error = relative_error([loss for cut in cuts for loss in cut.losses])
    return ResizePlan(planned_file(subject, cuts), _patterns(cuts), _modules(cuts), error, fields)


class NewConfig(NamedTuple):
    """The new config as PEFT will read it, and notes on changes beside the ranks."""

    fields: dict[str, Any]
    notes: list[str]


def new_config(raw: dict[str, Any], plan: ResizePlan) -> NewConfig:
    """Return the config with the new ranks and all of its other keys."""
    fields = {**raw, **plan.patterns._asdict(), **plan.fields}
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in _RUN_AGAIN:
        fields["init_lora_weights"] = True
        note = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
        return NewConfig(fields, [note])
    return NewConfig(fields, [])


def _patterns(cuts: Iterable[Cut]) -> Patterns:
    """Return r, alpha and their patterns, such that each pair gets its new rank and keeps its scale s."""
    kept = {cut.pair.path: cut for cut in cuts if cut.rank}
    first = {path: cut.pair.first for path, cut in kept.items()}
    alphas = {path: alpha_for(m.scale, kept[path].rank, rslora=m.rslora) for path, m in first.items()}
    return patterns_of({path: cut.rank for path, cut in kept.items()}, alphas)


def _modules(cuts: Iterable[Cut]) -> list[ResizedModule]:
    return [_row(cut, module, loss) for cut in cuts for module, loss in zip(cut.pair.modules, cut.losses, strict=True)]


def _row(cut: Cut, module: Module, loss: Loss) -> ResizedModule:
    params = cut.pair.layout.params_per_rank // len(cut.pair.modules)
    return ResizedModule(
        name=module.name,
        kind=module.kind,
        rank_before=module.r,
        rank_after=cut.rank,
        relative_error=relative_error([loss]),
        params_before=params * module.r,
        params_after=params * cut.rank,
    )


def relative_error(losses: Sequence[Loss]) -> float | None:
    """Return the relative Frobenius error over some modules, at most 1; None if their updates are zero."""
    lost, energy = sum(one.lost for one in losses), sum(one.energy for one in losses)
    return min(1.0, math.sqrt(lost / energy)) if energy > 0.0 else None


def planned_file(subject: Subject, cuts: Sequence[Cut]) -> list[PlannedTensor]:
    """Return the tensors of the new file, in the order of the old one: pairs at their new ranks, all others copied.

    Raises:
        AdapterError: factors of 8 bits would be rounded to 8 bits again.
    """
    tensors = _uncut(subject)
    places = {name: place for place, name in enumerate(tensors)}
    for cut in cuts:
        if cut.rank == 0:
            for name in cut.names:
                del tensors[name]
        elif cut.rank < cut.pair.layout.rank:
            tensors |= _tensors_of(subject, cut)
            # Both factors come from one computation: a thread that loaded the later one ahead would only wait for it.
            later = max(cut.names, key=places.__getitem__)
            tensors[later] = tensors[later]._replace(with_another=True)
    return list(tensors.values())


def bytes_beside(subject: Subject) -> int:
    """Return the size of the new file without the factors' own bytes."""
    tensors = _uncut(subject)
    factors = sum(tensors[name].nbytes for pair in subject.pairs for name in factor_names(pair))
    record = _RECORD if subject.stored.adapter.format == "kohya" else 0
    return file_size(list(tensors.values()), metadata=subject.metadata) - factors + record


def _uncut(subject: Subject) -> dict[str, PlannedTensor]:
    """The tensors by name, if no pair is cut: copied, or factors that get another dtype."""
    tensors = {name: copied(subject.tensors, name) for name in subject.tensors.tensors}
    for name in (name for pair in subject.pairs for name in factor_names(pair)):
        kind = subject.dtype_of(name)
        if kind != tensors[name].dtype:
            tensors[name] = _cast(name, kind, tensors[name].shape, partial(subject.tensors.read, name))
    return tensors


def _tensors_of(subject: Subject, cut: Cut) -> Mapping[str, PlannedTensor]:
    """The tensors of a pair that is cut: both factors, and alpha in kohya's files, or DoRA's magnitudes."""
    first, infos = cut.pair.first, subject.tensors.tensors
    kinds = [subject.dtype_of(name) for name in cut.names]
    if (eighth := next((kind for kind in kinds if kind.startswith("F8")), None)) is not None:
        raise AdapterError(
            f"{first.name}: its factors are of {eighth}, and new ones would be rounded to 8 bits again",
            advice="name their dtype, such as --dtype bfloat16",
        )
    together, shapes = Together(cut.compute), cut.pair.layout.shapes(cut.rank)
    new = {
        name: (kind, shape, together.taking(name)) for name, kind, shape in zip(cut.names, kinds, shapes, strict=True)
    }
    if (name := first.keys.get("alpha")) is not None:
        # In float32, because 16 bits may round alpha, and with it the scale.
        alpha = np.asarray(first.scale * cut.rank)
        new[name] = ("F32", infos[name].shape, lambda: alpha)
    if (name := first.keys.get("lora_magnitude_vector")) is not None:
        new[name] = (infos[name].dtype, infos[name].shape, together.taking(name))
    return {name: _cast(name, *parts) for name, parts in new.items()}


def _cast(name: str, kind: str, shape: tuple[int, ...], load: Callable[[], Array]) -> PlannedTensor:
    """Return a tensor with new data, cast to the dtype. Data that overflow the dtype are refused."""

    def cast() -> Array:
        data = load().reshape(shape)
        with np.errstate(over="ignore"):
            stored = data.astype(DTYPES[kind])
        if not all_finite(stored):
            raise AdapterError(f"{name}: the new factors do not fit {kind}", advice="name a wider --dtype")
        return stored

    return planned(name, kind, shape, cast)
