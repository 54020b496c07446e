"""Where a module's weight is in a model's files: under its name, in a stack, in parts, or shared with the embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Adapter, Array, Module
from gradience.adapters.names import is_embedding
from gradience.base.weights import BaseWeights, Found

_PARTS: Final = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}
"""The layers of one expert that transformers 5 stacks as a parameter, and writes apart again as it saves."""
_OLD_PATHS: Final = ((".mlp.experts", ".block_sparse_moe.experts"),)
_PACKED: Final = ("qweight", "weight_packed", "W_q", "codes")  # GPTQ and AWQ, compressed-tensors, HQQ, AQLM
_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight")


class Place(NamedTuple):
    """The tensors that hold a weight: one, or several whose rows follow each other."""

    tensors: tuple[Found, ...]
    expert: int | None = None
    shared: bool = False
    """Whether it was asked for as an output layer and is the embedding."""

    @property
    def dtype(self) -> str:
        """Of the first, by safetensors' name."""
        return self.tensors[0].info.dtype

    @property
    def name(self) -> str:
        """The tensor's name, with the expert's number where it is a slice; parts joined by a plus."""
        names = " + ".join(found.name for found in self.tensors)
        return names if self.expert is None else f"{names}[{self.expert}]"


def names_of(module: Module, adapter: Adapter) -> tuple[str, str]:
    """Return the names of the module's weight in the base and in the merged model: replicated layers have two."""
    own = module.base_name or f"{module.name}.weight"
    if not adapter.config.layer_replication or module.expert is not None:
        return own, own
    return own, f"{module.name.partition(':')[0]}.{own.rpartition('.')[2]}"


def find_place(weights: BaseWeights, name: str, expert: int | None = None) -> Place | None:
    """Return the tensors that hold the weight of that name, or None."""
    if (found := weights.find(name)) is not None:
        return Place((found,), expert)
    if expert is not None:
        return next(_in_parts(weights, name, expert), None)
    if name.endswith(_OUTPUTS) and (shared := _embedding(weights)) is not None:
        return Place((shared,), shared=True)
    return None


def _in_parts(weights: BaseWeights, name: str, expert: int) -> Iterator[Place]:
    path, _, parameter = name.rpartition(".")
    paths = [path, *(path.replace(new, old) for new, old in _OLD_PATHS if new in path)]
    for stem in paths:
        for parts in _PARTS.get(parameter, ()):
            found = [weights.find(f"{stem}.{expert}.{part}.weight") for part in parts]
            present = tuple(one for one in found if one is not None)
            if len(present) == len(parts):
                yield Place(present)


def _embedding(weights: BaseWeights) -> Found | None:
    """Return the input embedding: of the tensors that are named like one, that with most rows."""
    names = [name for file in weights.files for name in file.tensors if name.endswith(".weight")]
    found = [weights.find(name) for name in names if is_embedding(name.removesuffix(".weight"))]
    return max((one for one in found if one is not None), key=lambda one: one.info.shape[0], default=None)


def reason_missing(weights: BaseWeights, name: str) -> str:
    """Return a likely reason for a weight that is missing."""
    stem, _, leaf = name.rpartition(".")
    if (kept := weights.find(f"{stem}.base_layer.{leaf}")) is not None:
        return f"has {kept.name} instead of {name}: it was saved with the adapter beside it, not merged"
    packed = (weights.find(f"{stem}.{suffix}") for suffix in _PACKED)
    if (found := next((one for one in packed if one is not None), None)) is not None:
        return f"has {found.name} instead of {name}: it is quantised, and there is no number to compare"
    return f"has no {name}"


def refusal(weights: BaseWeights, place: Place) -> str | None:
    """Return the reason if no number can be derived from the tensors."""
    return next((why for found in place.tensors if (why := weights.refusal(found)) is not None), None)


def read_place(weights: BaseWeights, place: Place) -> Array:
    """Return the weight as stored, as a matrix.

    Raises:
        AdapterError: a file was cut short, or an expert is out of range.
    """
    parts = [weights.read(found, place.expert) for found in place.tensors]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
