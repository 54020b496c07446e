"""How far a model whose adapter is cut is from itself with the whole adapter: nothing is written, A becomes M A."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gradience.models.inputs import Batch, Example, batches
from gradience.models.load import FIRST, LoadedModel
from gradience.verbs.resize.choice import Kept
from gradience.verbs.resize.pieces import Floats, Pieces, combined

if TYPE_CHECKING:
    import torch

    from gradience.models.outputs import Divergence, Reference, Scored


def measuring(
    found: Adapted, pieces: Mapping[str, Pieces], examples: Sequence[Example], tell: Callable[[int], None]
) -> Callable[[Kept], Divergence]:
    """A function that measures how far the model with some pieces is from the model with all of them.

    Args:
        found: the model.
        pieces: of each module, by path.
        examples: the inputs.
        tell: called with the number of inputs that were run.
    """
    from gradience.models.outputs import Reference, divergence, tokens_within  # noqa: PLC0415  # torch, late

    parts = batches(examples, tokens=tokens_within(found.loaded), pad=found.loaded.pad)
    reference = Reference(found.loaded)
    known: dict[tuple[tuple[int, ...], ...], Divergence] = {}
    count = 0

    def measure(kept: Kept) -> Divergence:
        nonlocal count
        key = tuple(tuple(kept[path]) for path in pieces)
        if key not in known:
            rows = []
            for row in scored_with(found, pieces, kept, examples, parts, reference=reference):
                rows.append(row)
                count += 1
                tell(count)
            known[key] = divergence(rows)
        return known[key]

    return measure


class Adapted(NamedTuple):
    """A model, and PEFT's layers of its adapter by path."""

    loaded: LoadedModel
    layers: Mapping[str, Any]


def scored_with(
    found: Adapted,
    pieces: Mapping[str, Pieces],
    kept: Kept,
    examples: Sequence[Example],
    parts: Sequence[Batch],
    *,
    reference: Reference,
) -> Iterator[Scored]:
    """The scores of each input with some pieces alone, against a reference."""
    from gradience.models.outputs import scored  # noqa: PLC0415  # torch, late

    layers = found.layers
    new = {path: _compressed(layers[path], combined(pieces[path], kept[path])) for path in pieces}
    return scored(found.loaded, examples, parts, reference=reference, state=lambda: _with_factors(layers, new))


def _factor(layer: Any) -> Any:
    """The parameter A of a layer of PEFT's."""
    return layer.lora_embedding_A[FIRST] if FIRST in layer.lora_embedding_A else layer.lora_A[FIRST].weight


def _compressed(layer: Any, m: Floats) -> torch.Tensor:
    """M A of a layer, in A's own dtype and place."""
    import torch  # noqa: PLC0415  # only a calibration needs it

    a = _factor(layer).data
    flat = a.reshape(len(a), -1).cpu().double()
    made: torch.Tensor = (torch.from_numpy(m) @ flat).to(a).reshape(a.shape)
    return made


@contextmanager
def _with_factors(layers: Mapping[str, Any], new: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A block in which the layers' A are these."""
    old = {path: _factor(layer).data for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            _factor(layer).data = new[path]
        yield
    finally:
        for path, layer in layers.items():
            _factor(layer).data = old[path]
