"""An update B A taken apart into pieces B M_i A of rank 1: what each does to the outputs, and which are kept.

With the second moments G of z = A x and H of h (the gradient at A's output), the pieces are those of the singular
value decomposition of H^(1/2) G^(1/2): the M_i sum to the identity, and no sum of k of another kind leaves out less of
E[(h^T (I - M) z)^2], were h and z independent. With A A^T and B^T B in the moments' place they are those of B A itself.
That is r x r algebra in float64.

The pieces of all modules are put in one order, by what they do to the outputs for each parameter, and a choice is its
beginning: of as many parameters as a budget has, or the shortest whose measured divergence is within a tolerance. The
measurement runs a model whose adapter is cut beside itself with the whole adapter: nothing is written, A becomes M A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.models import FIRST, LoadedModel
from gradience.models.inputs import Batch, Example, batches
from gradience.spectral.grams import Floats

if TYPE_CHECKING:
    import torch

    from gradience.models.outputs import Divergence, Reference, Scored


FLOOR: Final = 1e-9
"""Of the largest eigenvalue: smaller ones are raised to it, so that roots can be inverted and nothing is left out."""

_STEPS: Final = 100  # the shortest beginning is sought to within one in so many pieces: a measurement is a pass


class Pieces(NamedTuple):
    """M_i = left[:, i] right[i], of sizes s, largest first; left and right are (r, r)."""

    left: Floats
    right: Floats
    sizes: Floats


def pieces_of(g: Floats, h: Floats) -> Pieces:
    """The pieces by the second moments g and h, both (r, r), symmetric and not negative."""
    root_g, inverse_g = _roots(g)
    root_h, inverse_h = _roots(h)
    u, s, v = np.linalg.svd(root_h @ root_g)
    shared = np.sqrt(s)
    return Pieces(inverse_h @ (u * shared), (shared[:, None] * v) @ inverse_g, s)


def _roots(moment: Floats) -> tuple[Floats, Floats]:
    """The symmetric root and its inverse; of a moment of zero the identity, twice."""
    values, vectors = np.linalg.eigh((moment + moment.T) / 2.0)
    if not values[-1] > 0.0:
        return np.eye(len(moment)), np.eye(len(moment))
    roots = np.sqrt(np.maximum(values, FLOOR * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def gates_of(pieces: Pieces, gradients: Floats) -> Floats:
    """What each piece adds to the first-order change of each sequence's loss: sum over tokens of h^T M_i z.

    `gradients` is the sum of h z^T over the tokens of each sequence, (n, r, r); the result (n, r).
    """
    gates: Floats = np.einsum("nai,ai->ni", gradients @ pieces.right.T, pieces.left)
    return gates


def combined(pieces: Pieces, kept: Sequence[int]) -> Floats:
    """M, the sum of the pieces kept, (r, r)."""
    some = list(kept)
    return pieces.left[:, some] @ pieces.right[some]


def share_left_out(m: Floats, gram_a: Floats, gram_b: Floats) -> float | None:
    """Frobenius norm of B (I - M) A over that of B A, from A A^T and B^T B; None for an update of zero."""
    rest = np.eye(len(m)) - m
    energy = float(np.einsum("ij,ji->", gram_b, gram_a))
    lost = float(np.einsum("ij,ji->", rest.T @ gram_b @ rest, gram_a))
    return float(np.sqrt(max(lost, 0.0) / energy)) if energy > 0.0 else None


Kept: TypeAlias = Mapping[str, list[int]]
"""The pieces of each module that are kept, in ascending order; none where the module leaves the adapter."""


class Candidate(NamedTuple):
    """A module's pieces: the gate of each in each sequence (n, r), the parameters of one, and how many must stay."""

    gates: Floats
    cost: int
    least: int = 0


class Order(NamedTuple):
    """All pieces as (module, index), the most useful for their parameters first; every choice has the `least` first."""

    pieces: list[tuple[str, int]]
    least: int


def ordered(candidates: Mapping[str, Candidate]) -> Order:
    """The pieces by their score per parameter; the score is the mean over sequences of the squared gate."""
    found: list[tuple[bool, float, tuple[str, int]]] = []
    for name, one in candidates.items():
        scores = np.mean(one.gates**2, axis=0)
        for place, index in enumerate(np.argsort(-scores, kind="stable").tolist()):
            found.append((place >= one.least, -float(scores[index]) / max(one.cost, 1), (name, index)))
    found.sort(key=lambda entry: entry[:2])
    least = sum(not entry[0] for entry in found)
    return Order([entry[2] for entry in found], max(1, least))  # an adapter of nothing is none


def predicted_kl(candidates: Mapping[str, Candidate], kept: Kept, predictions: int) -> float:
    """The KL in nats per prediction that leaving out the rest costs: 1/2 E[(sum of h^T (I - M) z)^2] over sequences.

    It is of the sequences that the pieces were chosen by, hence low: for choosing, not for reporting.
    """
    left = np.sum([np.delete(one.gates, kept[name], axis=1).sum(axis=1) for name, one in candidates.items()], axis=0)
    return 0.5 * float(np.sum(left**2)) / max(predictions, 1)


def predicted_by_module(candidates: Mapping[str, Candidate], kept: Kept, predictions: int) -> dict[str, float]:
    """The same of each module alone, were the others whole."""
    return {name: predicted_kl({name: one}, kept, predictions) for name, one in candidates.items()}


def first_pieces(order: Order, count: int) -> Kept:
    """The pieces of each module among the first so many."""
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    for name, index in order.pieces[:count]:
        kept[name].append(index)
    return {name: sorted(some) for name, some in kept.items()}


def within(order: Order, budget: int, costs: Mapping[str, int]) -> Kept | None:
    """The pieces in order as far as the budget has room for each; None where it has none for those that must be."""
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    left = budget
    for place, (name, index) in enumerate(order.pieces):
        if costs[name] <= left:
            kept[name].append(index)
            left -= costs[name]
        elif place < order.least:
            return None
    return {name: sorted(some) for name, some in kept.items()}


def shortest(order: Order, tolerance: float, measured: Callable[[int], float]) -> int:
    """The least number of first pieces whose measured KL is within the tolerance, to one in `_STEPS` of all.

    By bisection, as if KL fell with every piece; all pieces together are the adapter itself.
    """
    low, high = order.least - 1, len(order.pieces)  # low is too few, or nothing; high is enough
    step = max(1, len(order.pieces) // _STEPS)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if measured(middle) <= tolerance else (middle, high)
    return high


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
