"""The outputs of a model: log-probabilities of each prediction, and their divergence from a reference's.

The whole distribution of every prediction is used, a batch at a time. Only sums per input are kept, and the reference's
distributions if they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from gradience.models import LoadedModel
from gradience.models.inputs import InputBatch, ModelInput, batches
from gradience.models.sums import Sums

_KEPT: Final = 64 << 20  # bytes of a reference's log-probabilities that are kept; more are computed again
_ACTIVATIONS: Final = 96 << 20  # bytes that the activations of one batch may take
_PER_LAYER: Final = 24  # vectors of the hidden size that a layer keeps per token (17: Korthikanti et al. 2022, 4.1)
_PER_CLASS: Final = 4  # copies of the outputs: logits, log-probabilities, their gradient, the loss's own

State = Callable[[], AbstractContextManager[Any]]


def tokens_within(loaded: LoadedModel) -> int:
    """The number of tokens in a batch whose activations take some 100 MB, estimated from the config."""
    config = loaded.config
    hidden = int(getattr(config, "hidden_size", 768))
    layers = int(getattr(config, "num_hidden_layers", 12))
    classes = int(getattr(config, "vocab_size", 0)) if loaded.task == "causal-lm" else 0
    return max(1, _ACTIVATIONS // (4 * (_PER_LAYER * layers * hidden + _PER_CLASS * classes)))


def batched(loaded: LoadedModel, examples: Sequence[ModelInput]) -> list[InputBatch]:
    """The examples in batches that this model can take."""
    return batches(examples, tokens=tokens_within(loaded), pad=loaded.pad)


def logits_of(loaded: LoadedModel, batch: InputBatch) -> torch.Tensor:
    """The model's logits at the predictions that count, (predictions, classes), in order of rows and positions."""
    ids, mask = (torch.from_numpy(x).to(loaded.device) for x in (batch.ids, batch.mask))
    # A cache of keys and values takes memory that only generation would use.
    options = {"use_cache": False} if loaded.task == "causal-lm" else {}
    logits: torch.Tensor = loaded.model(input_ids=ids, attention_mask=mask, **options).logits
    if loaded.task == "sequence-classification":
        return logits
    return logits[torch.from_numpy(batch.counts).to(loaded.device)]


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """The log-softmax of logits, in float32 or float64."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def row_sizes(loaded: LoadedModel, batch: InputBatch) -> list[int]:
    """The number of predictions of each row of a batch."""
    if loaded.task == "sequence-classification":
        return [1] * len(batch.rows)
    return [int(n) for n in batch.counts.sum(axis=1)]


class Reference:
    """The log-probabilities of a model in one of its states, for each batch.

    They are kept while they are small, and computed again otherwise.
    """

    def __init__(self, loaded: LoadedModel, state: State = nullcontext) -> None:
        self._loaded = loaded
        self._state = state
        self._kept: dict[int, torch.Tensor] = {}
        self._bytes = 0

    def of(self, place: int, batch: InputBatch) -> torch.Tensor:
        """The log-probabilities of the batch at that index, (predictions, classes)."""
        if place in self._kept:
            return self._kept[place]
        with self._state():
            scores = log_probs(logits_of(self._loaded, batch))
        if self._bytes + scores.nbytes <= _KEPT:
            self._bytes += scores.nbytes
            self._kept[place] = scores
        return scores


class InputScores(NamedTuple):
    """The scores of one input: its index among the examples, its number of predictions, and sums over these.

    `kl` sums KL(reference, model) in nats, and `flips` counts predictions with another most probable class; both are 0
    without a reference. `loss` sums the cross entropy in nats, and `hits` counts right answers, over the `known`
    predictions whose label is known.
    """

    place: int
    predictions: int
    kl: float
    flips: int
    known: int
    loss: float
    hits: int


@torch.inference_mode()
def scored(
    loaded: LoadedModel,
    examples: Sequence[ModelInput],
    parts: Sequence[InputBatch],
    *,
    reference: Reference | None = None,
    state: State = nullcontext,
) -> Iterator[InputScores]:
    """Yield the scores of each input, batch by batch.

    Args:
        loaded: the model.
        examples: the inputs.
        parts: the batches of these inputs, from `batches`.
        reference: the reference, if any; it must be asked for the same batches only.
        state: a context that puts the model in the state to be scored.
    """
    for number, batch in enumerate(parts):
        with torch.inference_mode():  # entered again, because a generator's decorator does not hold between its steps
            known = reference.of(number, batch) if reference is not None else None
            with state():
                scores = log_probs(logits_of(loaded, batch))
            sizes = row_sizes(loaded, batch)
            kl, flips = _against(known, scores)
            labels = _labels(loaded, examples, batch, scores.device)
            per_row = zip(batch.rows, sizes, *(x.split(sizes) for x in (kl, flips, scores, labels)), strict=True)
            rows = [_scored(place, size, d, other, found=f, labels=y) for place, size, d, other, f, y in per_row]
        yield from rows


def _against(reference: torch.Tensor | None, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each prediction KL(reference, found) in float64, and whether the most probable class differs."""
    if reference is None:
        zeros = torch.zeros(len(found), device=found.device)
        return zeros.double(), zeros.bool()
    # Rounding makes a KL near zero negative.
    return divergences(reference, found).clamp(min=0.0), reference.argmax(dim=-1) != found.argmax(dim=-1)


def divergences(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(reference, found) of each prediction in nats, in float64; both are log-probabilities."""
    p = reference.exp()
    return torch.where(p > 0.0, p * (reference - found), 0.0).sum(dim=-1, dtype=torch.float64)  # 0 log 0 is 0


def _scored(
    place: int, size: int, kl: torch.Tensor, flips: torch.Tensor, *, found: torch.Tensor, labels: torch.Tensor
) -> InputScores:
    has = labels >= 0
    known, right = found[has], labels[has]
    loss = -known.gather(1, right[:, None]).sum(dtype=torch.float64) if len(right) else torch.zeros(())
    hits = int((known.argmax(dim=-1) == right).sum()) if len(right) else 0
    return InputScores(place, size, float(kl.sum()), int(flips.sum()), len(right), float(loss), hits)


def _labels(
    loaded: LoadedModel, examples: Sequence[ModelInput], batch: InputBatch, device: torch.device
) -> torch.Tensor:
    """The class of each prediction, -1 if unknown: the next token for a causal model, else the row's label."""
    if loaded.task == "causal-lm":
        # After the last token of an open text there is none, so its label is unknown.
        following = [
            list(e.ids[e.first + 1 : e.stop + 1]) + [-1] * (e.stop + 1 - len(e.ids)) for e in _rows(examples, batch)
        ]
        return torch.tensor([one for row in following for one in row], device=device)
    if loaded.task == "sequence-classification":
        return torch.tensor([class_of(loaded, e.label) for e in _rows(examples, batch)], device=device)
    return torch.full((sum(row_sizes(loaded, batch)),), -1, device=device)


def _rows(examples: Sequence[ModelInput], batch: InputBatch) -> list[ModelInput]:
    return [examples[row] for row in batch.rows]


def class_of(loaded: LoadedModel, label: int | str | None) -> int:
    """The number of a label: itself, or that of its name in the base's label2id; -1 if it is that of no class."""
    if isinstance(label, str):
        return int((getattr(loaded.config, "label2id", None) or {}).get(label, -1))
    return int(label) if label is not None and 0 <= label < loaded.config.num_labels else -1


class HeldOut:
    """Inputs on which states of a model are compared with one of its states, by default its own.

    Args:
        loaded: the model.
        examples: the inputs.
        state: a context that puts the model in the state to compare with.
    """

    def __init__(self, loaded: LoadedModel, examples: Sequence[ModelInput], state: State = nullcontext) -> None:
        self._loaded, self._examples = loaded, examples
        self._parts = batched(loaded, examples)
        self._reference = Reference(loaded, state)

    def scores(self, state: State | None = None) -> Iterator[InputScores]:
        """Yield the scores of each input in a state; without one those of the model itself, compared with nothing."""
        reference = None if state is None else self._reference
        return scored(self._loaded, self._examples, self._parts, reference=reference, state=state or nullcontext)

    def sums(self, state: State) -> Sums:
        """The sums over each input's predictions in a state."""
        # Sorted by the inputs' places: batches go by length, and two states are subtracted input by input.
        rows = [[getattr(row, name) for name in Sums._fields] for row in sorted(self.scores(state))]
        return Sums(*np.array(rows, np.float64).T)


class Divergence(NamedTuple):
    """The divergence of a model from its reference over some predictions: mean KL in nats, and share of flips."""

    kl: float
    flips: float
    predictions: int


def divergence(rows: Sequence[InputScores]) -> Divergence:
    """The divergence over all predictions of the inputs."""
    n = sum(row.predictions for row in rows)
    return Divergence(sum(row.kl for row in rows) / max(n, 1), sum(row.flips for row in rows) / max(n, 1), n)
