"""The log-probabilities that a model in memory gives to a few token sequences.

For a causal model these are of each sequence's own next tokens, for a classifier of every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from gradience.errors import AdapterError, ConfigError
from gradience.models import LoadedModel
from gradience.models.inputs import ModelInput, batches
from gradience.models.outputs import log_probs, logits_of, row_sizes, tokens_within
from gradience.models.states import adapted, without

Reading = list[npt.NDArray[np.float64]]
"""For each sequence its log-probabilities in nats."""

LONGEST: Final = 64  # tokens of a sequence
PREDICTIONS: Final = 40  # log-probabilities that are kept of a sequence


def window(example: ModelInput) -> ModelInput:
    """The part of an input that a receipt keeps: up to 40 predictions, and before them what fits in 64 tokens."""
    # The last token is kept as what is predicted, and predicts nothing itself.
    stop = min(example.stop, example.first + PREDICTIONS, len(example.ids) - 1)
    start = max(0, stop + 1 - LONGEST)
    return ModelInput(example.ids[start : stop + 1], max(example.first - start, 0), stop - start, example.label)


@torch.inference_mode()
def read_loaded(
    loaded: LoadedModel,
    examples: Sequence[ModelInput],
    *,
    state: AbstractContextManager[Any] | None = None,
    alone: bool = False,
) -> Reading:
    """Read a model in memory.

    Args:
        loaded: the model.
        examples: the sequences.
        state: a context in which the model is read.
        alone: one sequence at a time, without padding.

    Raises:
        AdapterError: an output is not finite.
    """
    readings: Reading = [np.empty(0)] * len(examples)
    pad = None if alone else loaded.pad
    with state or nullcontext():
        for batch in batches(examples, tokens=tokens_within(loaded), pad=pad):
            scores = log_probs(logits_of(loaded, batch))
            for row, own in zip(batch.rows, scores.split(row_sizes(loaded, batch)), strict=True):
                readings[row] = _kept(loaded, examples[row], own)
    if not all(np.isfinite(values).all() for values in readings):
        raise AdapterError("the model's outputs are not finite", advice="check the weights of base and adapter")
    return readings


@torch.inference_mode()
def sampled(loaded: LoadedModel, count: int, *, length: int, seed: int) -> list[ModelInput]:
    """Rows that base and adapter sample, at a temperature of 1, from the token that begins a text.

    Args:
        loaded: a causal model.
        count: rows.
        length: tokens of a row, less after a token that ends a text.
        seed: of the draws.

    Raises:
        ConfigError: the model is no causal one, or its config names no token to begin with.
    """
    config = loaded.config
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [one for one in named if one is not None]
    first = next((one for one in (config.bos_token_id, *ends) if one is not None), None)
    if loaded.task != "causal-lm" or first is None:
        raise ConfigError("this model samples no rows", advice="give --data FILE, such as the evaluation set")
    begin = torch.full((count, 1), int(first), device=loaded.device)
    # A config of its own: the base's may narrow the distribution, and without top_k=0 transformers draws from the 50
    # most probable tokens only.
    plain = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=length, eos_token_id=ends, pad_token_id=first)
    with torch.random.fork_rng(devices=[loaded.device] if loaded.device.type == "cuda" else []):
        torch.manual_seed(seed)
        generated = loaded.model.generate(
            input_ids=begin, attention_mask=torch.ones_like(begin), generation_config=plain
        ).tolist()
    return [row for row in (_ended(ids, set(ends)) for ids in generated) if row.stop > row.first]


def _ended(ids: list[int], ends: set[int]) -> ModelInput:
    """The row up to its first token that ends a text."""
    last = next((place for place, one in enumerate(ids) if place and one in ends), len(ids) - 1)
    return ModelInput(tuple(ids[: last + 1]), 0, last)


def _kept(loaded: LoadedModel, example: ModelInput, scores: torch.Tensor) -> npt.NDArray[np.float64]:
    if loaded.task == "causal-lm":
        following = torch.tensor(example.ids[example.first + 1 : example.stop + 1], device=scores.device)
        scores = scores.gather(1, following[:, None])
    return scores.reshape(-1).double().cpu().numpy()


def brought(loaded: LoadedModel) -> dict[str, Any]:
    """The layers that the base is without, by path. The head of a classifier is not among them: a base has none."""
    layers = adapted(loaded)
    if loaded.task == "causal-lm":
        return layers
    return {path: layer for path, layer in layers.items() if not hasattr(layer, "modules_to_save")}


def as_base(loaded: LoadedModel) -> AbstractContextManager[Any]:
    """A context in which the model is the base. A classifier keeps the head that the adapter brought, having no own."""
    layers = brought(loaded)
    return without(layers, list(layers))
