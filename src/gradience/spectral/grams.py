"""Gram matrices of many updates, in float64: the long axes are summed away, and what is left of a module is r x r.

On an accelerator by JAX (`tiles`). On a CPU by BLAS, each core on modules of its own: its product of a matrix with its
own transpose does half the work of a general product, which is what XLA makes of it there.

Factors of a rank beyond their product's are brought down to it first: all work then grows with min(d_out, d_in, r).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from threading import Lock
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral import in_threads, most_threads

Matrix: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

_CHEAP: Final = 64  # r x r matrices of that size cost nothing: factors up to it are left as they are

_LEAST_SHARE: Final = 8  # modules that are worth a thread
_LEAST_RANK: Final = 8
_BLOCK: Final = 1 << 17  # numbers cast to float64 at a time: 1 MiB stays in a core's cache
_LEAST_WIDTH: Final = 256  # columns in a block, however high it is: a product pays for its own start


def inner_size(rank: int, d_out: int, d_in: int) -> int:
    """The inner size of `narrowed` factors: the rank, or the lesser side where that is smaller."""
    return rank if rank <= max(_CHEAP, min(d_out, d_in)) else min(d_out, d_in)


def narrowed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """Return (b', a') with the same product as b (d_out, r) and a (r, d_in), of inner size `inner_size`.

    Where r is larger than a side, one factor becomes the identity and the other the product, in float64: it has no more
    entries than the larger factor.
    """
    d_out, rank = b.shape
    d_in = a.shape[1]
    if inner_size(rank, d_out, d_in) == rank:
        return b, a
    with np.errstate(all="ignore"):  # of entries that are not finite, which the caller finds in the product
        product = b.astype(np.float64) @ a.astype(np.float64)
    return (np.eye(d_out), product) if d_out <= d_in else (product, np.eye(d_in))


class Factors(NamedTuple):
    """One update: `scale` * b @ a, with b (d_out, r) and a (r, d_in) of any real dtype."""

    b: Matrix
    a: Matrix
    scale: float


class Grams(NamedTuple):
    """What is left of a module once its long axes are summed away: A A^T and B^T B, padded to the rank's bucket.

    Of `narrowed` factors, where r is larger than a side.
    """

    gram_a: Matrix
    gram_b: Matrix
    r: int
    scale: float


Loads: TypeAlias = Sequence[Callable[[], Factors]]


def grams_of(loads: Loads) -> list[Grams]:
    """Return the Gram matrices of each update, in order; each load is called once, from one of several threads."""
    if on_cpu():
        return _shared(loads, _on_host)
    from gradience.spectral.tiles import on_device  # noqa: PLC0415  # only where there is an accelerator

    return _shared(loads, on_device)


def on_cpu() -> bool:
    """Whether JAX computes on the CPU in this process."""
    import jax  # noqa: PLC0415  # what is here needs it for this question only

    device = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]  # JAX from 0.12 declares it
    return bool((device or jax.devices()[0]).platform == "cpu")


def _shared(loads: Loads, compute: Callable[[Loads, Iterable[int]], Iterable[tuple[int, Grams]]]) -> list[Grams]:
    """The Gram matrices of all modules, by as many threads as are worth it."""
    shares = _Shares(len(loads))
    held = dict(chain.from_iterable(in_threads([lambda: list(compute(loads, shares))] * shares.workers)))
    return [held[index] for index in range(len(loads))]


def _on_host(loads: Loads, indices: Iterable[int]) -> Iterator[tuple[int, Grams]]:
    """The Gram matrices of one thread's modules, by BLAS."""
    for index in indices:
        yield index, grams_on_host(loads[index]())


def grams_on_host(factors: Factors) -> Grams:
    """The Gram matrices of one update, by BLAS on this thread."""
    b, a, scale = factors
    with np.errstate(all="ignore"):  # what is not finite is found in the spectra
        narrow_b, narrow_a = narrowed(b, a)
        return Grams(gram(narrow_a), gram(narrow_b.T), len(a), scale)


def gram(factor: Matrix) -> Matrix:
    """X X^T of a (r, d) array of any real dtype, in float64, padded to the rank's bucket."""
    r, length = factor.shape
    total = np.zeros((bucket_of(r), bucket_of(r)))
    step = max(_LEAST_WIDTH, _BLOCK // max(r, 1))
    for start in range(0, length, step):
        wide = factor[:, start : start + step].astype(np.float64)
        total[:r, :r] += wide @ wide.T
    return total


class _Shares:
    """Indices 0 to n - 1 handed out to threads, a few consecutive ones at a time."""

    def __init__(self, n: int) -> None:
        self.workers = max(1, min(most_threads(), n // _LEAST_SHARE))
        size = max(1, n // (8 * self.workers))
        self._spans = iter([range(start, min(start + size, n)) for start in range(0, n, size)])
        self._lock = Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                span = next(self._spans, None)
            if span is None:
                return
            yield from span


def padded(grams: Floats) -> Floats:
    """Gram matrices (..., r, r), padded to the rank's bucket."""
    r = grams.shape[-1]
    size = bucket_of(r)
    if size == r:
        return grams
    found = np.zeros((*grams.shape[:-2], size, size))
    found[..., :r, :r] = grams
    return found


def bucket_of(r: int) -> int:
    """Return the least power of two that is >= r, from 8."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length()) if r else _LEAST_RANK
