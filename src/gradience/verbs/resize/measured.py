"""How far a model whose adapter is cut is from itself with the whole adapter: nothing is written, A becomes M A."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gradience.models.inputs import Example, batches
from gradience.models.load import FIRST, LoadedModel
from gradience.verbs.resize.choice import Kept
from gradience.verbs.resize.pieces import Floats, Pieces, combined

if TYPE_CHECKING:
    import torch

    from gradience.models.outputs import Divergence


def measuring(
    loaded: LoadedModel,
    layers: Mapping[str, Any],
    pieces: Mapping[str, Pieces],
    examples: Sequence[Example],
    tell: Callable[[int], None],
) -> Callable[[Kept], Divergence]:
    """A function that measures how far the model with some pieces is from the model with all of them."""
    from gradience.models.outputs import Reference, divergence, scored, tokens_within  # noqa: PLC0415  # torch

    parts = batches(examples, tokens=tokens_within(loaded), pad=loaded.pad)
    reference = Reference(loaded)
    known: dict[tuple[tuple[int, ...], ...], Divergence] = {}
    count = 0

    def measure(kept: Kept) -> Divergence:
        nonlocal count
        key = tuple(tuple(kept[path]) for path in pieces)
        if key not in known:
            new = {path: _compressed(layers[path], combined(pieces[path], kept[path])) for path in pieces}
            rows = []
            for row in scored(loaded, examples, parts, reference=reference, state=lambda: _with_factors(layers, new)):
                rows.append(row)
                count += 1
                tell(count)
            known[key] = divergence(rows)
        return known[key]

    return measure


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
