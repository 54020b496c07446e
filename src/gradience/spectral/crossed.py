"""Gram matrices of updates of one shape beside each other: of each, and of each two, in one pass over their factors.

On a CPU, by BLAS on this thread. The factors of several are cast to float64 into one block, of which a product with its
own transpose has all of them at once: half the work of general products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.threads import scratch

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = tuple[int, int]
Load: TypeAlias = Callable[[], tuple[Matrix, Matrix]]

_BLOCK: Final = 1 << 18  # numbers cast to float64 at a time (2 MiB); measured with 2**16 to 2**19
_LEAST_WIDTH: Final = 256  # columns in a block, however high it is: a product pays for its own start
_KEPT: Final = 1 << 25  # bytes of factors held at a time, beyond the two of a pair


class Crossed(NamedTuple):
    """B_i^T B_j and A_i A_j^T by (i, j), i <= j: of each update that a pair names with itself, and of each pair."""

    b: dict[Places, Floats]
    a: dict[Places, Floats]

    def together(self, pair: Places) -> tuple[Floats, Floats]:
        """B^T B and A A^T of a pair's stacked factors, B = [B_i B_j] and A = [A_i; A_j]."""
        gram_b, gram_a = (_stacked(side, pair) for side in self)
        return gram_b, gram_a


def _stacked(side: Mapping[Places, Floats], pair: Places) -> Floats:
    i, j = pair
    cross = side[i, j]
    return np.block([[side[i, i], cross], [cross.T, side[j, j]]])


def crossed(loads: Mapping[int, Load], pairs: Sequence[Places]) -> Crossed:
    """The products of the pairs' factors; `loads` give (b, a), b (d_out, r_i), a (r_i, d_in), of any real dtype.

    Pairs are (i, j) with i < j. As many factors are held as fit 32 MiB, or two; more are loaded again.
    """
    found = Crossed({}, {})
    with np.errstate(all="ignore"):  # what is not finite is found in the products
        for held, some in _portions(loads, pairs):
            wanted = [*some, *((i, i) for i in held if (i, i) not in found.b)]
            found.b.update(_products({i: b.T for i, (b, _) in held.items()}, wanted))
            found.a.update(_products({i: a for i, (_, a) in held.items()}, wanted))
    return found


def _portions(
    loads: Mapping[int, Load], pairs: Sequence[Places]
) -> Iterator[tuple[dict[int, tuple[Matrix, Matrix]], list[Places]]]:
    """Yield consecutive pairs with the factors of their updates, as many as may be held."""
    held: dict[int, tuple[Matrix, Matrix]] = {}
    some: list[Places] = []
    for pair in pairs:
        if some and not held.keys() >= set(pair) and sum(b.nbytes + a.nbytes for b, a in held.values()) >= _KEPT:
            yield held, some
            held, some = {i: held[i] for i in pair if i in held}, []
        held |= {i: loads[i]() for i in pair if i not in held}
        some.append(pair)
    if some:
        yield held, some


def _products(factors: Mapping[int, Matrix], wanted: Sequence[Places]) -> dict[Places, Floats]:
    """X_i X_j^T of arrays (r_i, d), in float64."""
    spans, height = {}, 0
    for i, factor in factors.items():
        spans[i] = slice(height, height + len(factor))
        height += len(factor)
    first = next(iter(factors.values()))
    length = first.shape[1]
    width = min(length, max(_LEAST_WIDTH, _BLOCK // max(height, 1)))
    block = scratch.like(first, "crossed", (height, width), np.float64)
    crosses = sum(i != j for i, j in wanted)
    whole = 2 * crosses == len(factors) * (len(factors) - 1)  # every pair: one symmetric product has them all
    totals = {(0, 0): np.zeros((height, height))} if whole else {}
    for start in range(0, length, width):
        part = block[:, : min(width, length - start)]
        for i, factor in factors.items():
            part[spans[i]] = factor[:, start : start + width]
        if whole:
            totals[0, 0] += part @ part.T
            continue
        for i, j in wanted:
            product = part[spans[i]] @ part[spans[j]].T
            totals[i, j] = totals[i, j] + product if (i, j) in totals else product
    if not whole:
        return totals
    return {(i, j): totals[0, 0][spans[i], spans[j]] for i, j in wanted}
