"""The Gram matrices A A^T and B^T B of many low-rank updates, in float64: two r x r matrices for each update.

JAX computes them on an accelerator (`tiles`). BLAS computes them on a CPU, with each core on modules of its own. BLAS
does half the work of a general product for a matrix times its own transpose; XLA on a CPU does the general product.

If r exceeds the largest rank that the product can have, `narrowed` reduces the factors first. So the work grows with
min(d_out, d_in, r).
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

_CHEAP: Final = 64  # rank: factors up to it are never narrowed, because their r x r matrices cost almost nothing

_LEAST_SHARE: Final = 8  # modules per thread: for fewer, another thread is not worth its start
_LEAST_RANK: Final = 8  # the smallest padded size
_BLOCK: Final = 1 << 17  # numbers cast to float64 at a time: 1 MiB stays in a core's cache
_LEAST_WIDTH: Final = 256  # columns in a block, whatever its height: each product has a fixed cost


def inner_size(rank: int, d_out: int, d_in: int) -> int:
    """The inner size of `narrowed` factors: the rank, or the shorter side if the rank exceeds it and 64."""
    return rank if rank <= max(_CHEAP, min(d_out, d_in)) else min(d_out, d_in)


def narrowed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """Return (b', a') with the product of b (d_out, r) and a (r, d_in), and the inner size `inner_size`.

    If `inner_size` is below r, one factor becomes the identity and the other the product, in float64. The product then
    has no more entries than the larger factor.
    """
    d_out, rank = b.shape
    d_in = a.shape[1]
    if inner_size(rank, d_out, d_in) == rank:
        return b, a
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the caller finds them in the product
        product = b.astype(np.float64) @ a.astype(np.float64)
    return (np.eye(d_out), product) if d_out <= d_in else (product, np.eye(d_in))


class Factors(NamedTuple):
    """One update: `scale` * b @ a, with b (d_out, r) and a (r, d_in) of any real dtype."""

    b: Matrix
    a: Matrix
    scale: float


class Grams(NamedTuple):
    """The Gram matrices A A^T and B^T B of one update, zero-padded to `bucket_of` their size, without the scale.

    They are those of the `narrowed` factors if `inner_size` is below r.
    """

    gram_a: Matrix
    gram_b: Matrix
    r: int
    scale: float


Loads: TypeAlias = Sequence[Callable[[], Factors]]


def grams_of(loads: Loads) -> list[Grams]:
    """Return the Gram matrices of each update, in order. Several threads call the loads, each load once."""
    if on_cpu():
        return _shared(loads, _on_host)
    from gradience.spectral.tiles import on_device  # noqa: PLC0415  # only where there is an accelerator

    return _shared(loads, on_device)


def on_cpu() -> bool:
    """Whether JAX computes on the CPU in this process."""
    import jax  # noqa: PLC0415  # this module needs JAX for this question only

    device = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]  # JAX from 0.12 declares it
    return bool((device or jax.devices()[0]).platform == "cpu")


def _shared(loads: Loads, compute: Callable[[Loads, Iterable[int]], Iterable[tuple[int, Grams]]]) -> list[Grams]:
    """The Gram matrices of all modules, in order, computed by as many threads as pay off."""
    shares = _Shares(len(loads))
    held = dict(chain.from_iterable(in_threads([lambda: list(compute(loads, shares))] * shares.workers)))
    return [held[index] for index in range(len(loads))]


def _on_host(loads: Loads, indices: Iterable[int]) -> Iterator[tuple[int, Grams]]:
    """Yield each of one thread's indices with its Gram matrices, by BLAS."""
    for index in indices:
        yield index, grams_on_host(loads[index]())


def grams_on_host(factors: Factors) -> Grams:
    """The Gram matrices of one update, by BLAS on this thread."""
    b, a, scale = factors
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the spectra report them
        narrow_b, narrow_a = narrowed(b, a)
        return Grams(gram(narrow_a), gram(narrow_b.T), len(a), scale)


def gram(factor: Matrix) -> Matrix:
    """The Gram matrix X X^T of an (r, d) array of any real dtype, in float64, zero-padded to `bucket_of` r."""
    r, length = factor.shape
    total = np.zeros((bucket_of(r), bucket_of(r)))
    step = max(_LEAST_WIDTH, _BLOCK // max(r, 1))
    for start in range(0, length, step):
        wide = factor[:, start : start + step].astype(np.float64)
        total[:r, :r] += wide @ wide.T
    return total


class _Shares:
    """The indices 0 to n - 1, handed out to threads in short consecutive runs."""

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
    """The Gram matrices (..., r, r), zero-padded to `bucket_of` r."""
    r = grams.shape[-1]
    size = bucket_of(r)
    if size == r:
        return grams
    found = np.zeros((*grams.shape[:-2], size, size))
    found[..., :r, :r] = grams
    return found


def bucket_of(r: int) -> int:
    """Return the least power of two that is >= r and >= 8: the size to which Gram matrices are padded."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length()) if r else _LEAST_RANK
