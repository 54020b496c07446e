"""An update B A taken apart into pieces B M_i A of rank 1, and what each does to the outputs: r x r algebra in float64.

With the second moments G of z = A x and H of h (the gradient at A's output), the pieces are those of the singular
value decomposition of H^(1/2) G^(1/2): the M_i sum to the identity, and no sum of k of another kind leaves out less of
E[(h^T (I - M) z)^2], were h and z independent. With A A^T and B^T B in the moments' place they are those of B A itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOOR: Final = 1e-9
"""Of the largest eigenvalue: smaller ones are raised to it, so that roots can be inverted and nothing is left out."""


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
