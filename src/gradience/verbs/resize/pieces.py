"""An update B A split into pieces B M_i A of rank 1: the effect of each on the outputs, and the choice of pieces.

G is the second moment of z = A x, and H that of h, the gradient at A's output. The pieces come from the singular value
decomposition of H^(1/2) G^(1/2). The M_i sum to the identity. If h and z are independent, the sum M of the first k
pieces minimises E[(h^T (I - M) z)^2] over all M of rank k. With A A^T and B^T B in place of G and H, the pieces are
the singular triplets of B A itself. All of this is r x r algebra in float64.

The pieces of all modules are sorted into one order by their effect on the outputs per parameter. A choice is a prefix
of that order: as many pieces as fit a budget of parameters, or the shortest prefix whose result holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats

FLOOR: Final = 1e-9
"""Relative to the largest eigenvalue: smaller ones are raised to it, so that the moment's root has an inverse."""

_STEPS: Final = 100  # a search for the shortest prefix ends within a hundredth of all pieces: each step is a model run


class Pieces(NamedTuple):
    """The pieces M_i = outer(left[:, i], right[i]), both (r, r); `sizes` are their singular values, largest first."""

    left: Floats
    right: Floats
    sizes: Floats


def pieces_of(g: Floats, h: Floats) -> Pieces:
    """The pieces for the second moments g and h, both (r, r), symmetric and positive semidefinite."""
    with float64():
        return Pieces(*map(np.asarray, split(g, h)))


@jax.jit
def split(g: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fields of `pieces_of`."""
    root_g, inverse_g = _roots(g)
    root_h, inverse_h = _roots(h)
    u, s, v = jnp.linalg.svd(root_h @ root_g)
    shared = jnp.sqrt(s)
    return inverse_h @ (u * shared), (shared[:, None] * v) @ inverse_g, s


def _roots(moment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The symmetric square root of a moment, and its inverse; for a zero moment, both are the identity."""
    values, vectors = jnp.linalg.eigh((moment + moment.T) / 2.0)
    values = jnp.where(values[-1] > 0.0, jnp.maximum(values, FLOOR * values[-1]), 1.0)
    roots = jnp.sqrt(values)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def gates_of(pieces: Pieces, gradients: Floats) -> Floats:
    """The contribution of each piece to the first-order change of each sequence's loss: sum over tokens of h^T M_i z.

    `gradients` (n, r, r) is the sum of h z^T over the tokens of each of n sequences. The result is (n, r).
    """
    gates: Floats = np.einsum("nai,ai->ni", gradients @ pieces.right.T, pieces.left)
    return gates


def combined(pieces: Pieces, kept: Sequence[int]) -> Floats:
    """The sum M of the pieces kept, (r, r)."""
    some = list(kept)
    return pieces.left[:, some] @ pieces.right[some]


def share_left_out(m: Floats, gram_a: Floats, gram_b: Floats) -> float | None:
    """The relative Frobenius error norm(B (I - M) A) / norm(B A), from A A^T and B^T B; None for a zero update."""
    rest = np.eye(len(m)) - m
    energy = float(np.einsum("ij,ji->", gram_b, gram_a))
    lost = float(np.einsum("ij,ji->", rest.T @ gram_b @ rest, gram_a))
    return float(np.sqrt(max(lost, 0.0) / energy)) if energy > 0.0 else None


Kept: TypeAlias = Mapping[str, list[int]]
"""The indices of the pieces kept of each module, ascending; empty if the module leaves the adapter."""


class RankCandidate(NamedTuple):
    """A module's pieces: their gates in each sequence (n, r), the parameters of one piece, and how many must stay."""

    gates: Floats
    cost: int
    least: int = 0


class Order(NamedTuple):
    """All pieces as (module, index), in the order in which they are kept; every choice has the first `least`."""

    pieces: list[tuple[str, int]]
    least: int


def ordered(candidates: Mapping[str, RankCandidate]) -> Order:
    """The pieces sorted by score per parameter; the score is the mean over sequences of the squared gate.

    The pieces that must stay come first.
    """
    scored: list[tuple[bool, float, tuple[str, int]]] = []
    for name, one in candidates.items():
        scores = np.mean(one.gates**2, axis=0)
        for place, index in enumerate(np.argsort(-scores, kind="stable").tolist()):
            scored.append((place >= one.least, -float(scores[index]) / max(one.cost, 1), (name, index)))
    # Not by name: at equal scores the modules stay in their order.
    scored.sort(key=lambda entry: entry[:2])
    least = sum(not entry[0] for entry in scored)
    return Order([entry[2] for entry in scored], max(1, least))  # an adapter needs at least one piece


def predicted_kl(candidates: Mapping[str, RankCandidate], kept: Kept, predictions: int) -> float:
    """The predicted KL divergence, in nats per prediction, of keeping only these pieces.

    It is half the sum over sequences of (sum of h^T (I - M) z)^2, divided by the number of predictions. The sequences
    are those that the pieces were chosen by, so the estimate is too low: it is for choosing, not for reporting.
    """
    left = np.sum([np.delete(one.gates, kept[name], axis=1).sum(axis=1) for name, one in candidates.items()], axis=0)
    return 0.5 * float(np.sum(left**2)) / max(predictions, 1)


def first_pieces(order: Order, count: int) -> Kept:
    """The pieces of each module among the first `count` of the order."""
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    for name, index in order.pieces[:count]:
        kept[name].append(index)
    return {name: sorted(some) for name, some in kept.items()}


def within(order: Order, budget: int, costs: Mapping[str, int]) -> Kept | None:
    """The pieces, taken in order, that fit the budget; one that does not fit is skipped.

    None if one of the first `least` does not fit.
    """
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    left = budget
    for place, (name, index) in enumerate(order.pieces):
        if costs[name] <= left:
            kept[name].append(index)
            left -= costs[name]
        elif place < order.least:
            return None
    return {name: sorted(some) for name, some in kept.items()}


def shortest(order: Order, holds: Callable[[int], bool]) -> int:
    """The smallest number of first pieces with which the result holds, to 1 / `_STEPS` of all pieces.

    It is found by bisection, which assumes that what holds with some pieces holds with more. All pieces together are
    the whole adapter, which holds.
    """
    low, high = order.least - 1, len(order.pieces)  # low is too few, or nothing; high is enough
    step = max(1, len(order.pieces) // _STEPS)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
