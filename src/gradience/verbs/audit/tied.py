"""Output heads that share a matrix: with the base's embedding, or their update with that of an adapted embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gradience.adapters.layout import Adapter, Module
from gradience.base.weights import BaseWeights, ties_head

_HEAD: Final = "lm_head"
_EMBEDDINGS: Final = ("embed_tokens", "wte", "word_embeddings", "embed_in")


def on_embedding(adapter: Adapter, weights: BaseWeights) -> tuple[Adapter, list[str]]:
    """The adapter with its head on the embedding, where the base ties them and stores no head; and a note on that."""
    heads = [m for m in adapter.modules if m.name.endswith(_HEAD) and weights.find(f"{m.name}.weight") is None]
    hits = [tensor.name for leaf in _EMBEDDINGS if (tensor := weights.find(f"{leaf}.weight")) is not None]
    # Of two embeddings, as of an encoder and a decoder, nothing here tells which one the head shares.
    if not heads or len(hits) != 1 or not ties_head(weights):
        return adapter, []
    modules = [replace(module, base_name=hits[0]) if module in heads else module for module in adapter.modules]
    note = f"the base ties {_HEAD} to {hits[0]}, which it is compared with: a merge changes the embedding too"
    return replace(adapter, modules=modules), [note]


def _are_copies(one: Module, other: Module) -> bool:
    """Whether two modules hold the same factors."""
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(one.load(), other.load(), strict=True))


def listed_once(adapter: Adapter) -> tuple[Adapter, list[str]]:
    """The adapter without a head that shares an embedding's factors, and a note on it."""
    embedded = [module.name for module in adapter.modules if module.kind == "embedding"]
    heads = [module.name for module in adapter.modules if module.name.endswith(_HEAD)]
    if not (adapter.config.ensure_weight_tying and len(embedded) == len(heads) == 1):
        return adapter, []
    kept = [module for module in adapter.modules if module.name != heads[0]]
    if not _are_copies(*(module for module in adapter.modules if module.name in {embedded[0], heads[0]})):
        note = (
            f"{heads[0]} and {embedded[0]} share one update in training (ensure_weight_tying), but the file holds"
            " two: a model that loads it has one of them"
        )
        return adapter, [note]
    note = (
        f"{heads[0]} shares the update of {embedded[0]} (ensure_weight_tying) and is listed once; PEFT's merge adds it "
        "twice to the one weight"
    )
    return replace(adapter, modules=kept), [note]
