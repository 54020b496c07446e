"""Choose a module's rank by its singular values, and cut its factors to a rank.

The `sv_*` criteria are those of sd-scripts' networks/resize_lora.py, under the same names.

A pair is cut when the first of its tensors is written. A plain pair becomes the best approximation at its rank (Eckart
and Young). DoRA's magnitudes are relative to norm(W + s B A), so a DoRA pair is cut against the base weight, and its
magnitudes are fitted again by least squares.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array, all_finite
from gradience.adapters.pairs import StoredPair
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, TensorSource, Together, copied, planned
from gradience.rewrite.options import Target
from gradience.spectral.batch import Maps
from gradience.spectral.grams import Floats
from gradience.spectral.update import reduced

_HALF: Final = ("BF16", "F16")
_TILE: Final = 1 << 20  # elements of W that are held in float64 at a time


def module_rank(target: Target, sigma: Floats) -> int:
    """Return the rank of one module by a criterion that looks at modules singly: at least 1, at most its own rank.

    `sigma` holds the module's singular values, largest first. For a zero update the rank is 1, except by `rank`.
    """
    r = len(sigma)
    if target.criterion == "rank":
        return min(int(target.value), r)
    if r == 0 or sigma[0] <= 0.0:
        return 1
    ratio = sigma / sigma[0]
    ratio = np.where(ratio > r * np.finfo(np.float64).eps, ratio, 0.0)
    return max(1, min(r, _RULES[target.criterion](ratio, target.value)))


def _reaching(shares: Floats, least: float) -> int:
    """Return the least k whose first k entries sum to the share `least` of the total, up to the sum's rounding."""
    slack = 1.0 - len(shares) * np.finfo(np.float64).eps
    return int(np.argmax(np.cumsum(shares) >= least * np.sum(shares) * slack)) + 1


def _within(s: Floats, error: float) -> int:
    """Return the least k with sqrt(sum_{i>k} s_i^2 / sum s_i^2) <= error. Tails are summed from the small end."""
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    return int(np.argmax(np.sqrt(tails / tails[0]) <= error))


_RULES: Final[dict[str, Callable[[Floats, float], int]]] = {
    "energy": lambda s, share: _reaching(s**2, share),
    "rel_error": _within,
}


class Priced(NamedTuple):
    """The price list of a group: gains[k] is what rank k + 1 adds to the sum of sigma^2, and cost is that of one rank.

    The gains do not increase. The cost is in the unit of the budget.
    """

    gains: npt.NDArray[np.float64]
    cost: int


def ranks_within(groups: Mapping[str, Priced], budget: int) -> dict[str, int] | None:
    """Return a rank of at least 1 for each group, or None if the budget is too small for rank 1 in all groups.

    The budget is spent greedily on the rank with the largest gain per cost. A rank without gain is not bought.
    """
    left = budget - sum(group.cost for group in groups.values())
    if left < 0:
        return None
    ranks = dict.fromkeys(groups, 1)
    heap = [entry for name, group in groups.items() if (entry := _next(name, group, 1)) is not None]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        group = groups[name]
        if group.cost > left:
            continue  # further ranks of this group cost the same, so they would not fit either
        left -= group.cost
        ranks[name] += 1
        if (entry := _next(name, group, ranks[name])) is not None:
            heapq.heappush(heap, entry)
    return ranks


def _next(name: str, group: Priced, rank: int) -> tuple[float, str] | None:
    if rank >= len(group.gains) or group.gains[rank] <= 0.0:
        return None
    return -float(group.gains[rank]) / group.cost, name


class Job(NamedTuple):
    """A pair and its new rank, or 0 to leave the pair out. `base` is needed for DoRA only.

    `best` holds each module's maps to its best factors, in the file's orientation; None means that QR is needed. If
    `maps` is given, the new factors are b @ left and right @ a, else the best approximation at the rank.
    """

    pair: StoredPair
    rank: int
    best: Sequence[Maps | None] = ()
    base: BaseWeights | None = None
    maps: Maps | None = None

    @property
    def unchanged(self) -> bool:
        """Whether the pair keeps its rank."""
        return self.rank >= self.pair.layout.rank

    @property
    def magnitude(self) -> str | None:
        """The name of the tensor with DoRA's magnitudes, or None."""
        return self.pair.first.keys.get("lora_magnitude_vector")

    @property
    def alpha(self) -> str | None:
        """The name of the tensor with the module's alpha, which kohya's files have, or None."""
        return self.pair.first.keys.get("alpha")


def planned_file(source: TensorSource, jobs: Iterable[Job], *, dtype: str | None = None) -> list[PlannedTensor]:
    """Return the tensors of the new file, in the order of the old one: pairs at their new ranks, all others copied.

    `dtype` is that of the new factors, by safetensors' name; None keeps the old one.

    Raises:
        AdapterError: factors of 8 bits would be rounded to 8 bits again.
    """
    new: dict[str, PlannedTensor] = {}
    left_out: set[str] = set()
    together: dict[str, int] = {}
    for place, job in enumerate(jobs):
        if job.rank == 0:
            left_out |= {job.pair.layout.a_name, job.pair.layout.b_name}
        elif job.unchanged:
            new |= _unchanged(source, job, dtype)
        else:
            new |= _cut(source, job, dtype)
            together |= dict.fromkeys((job.pair.layout.a_name, job.pair.layout.b_name), place)
    found = [new.get(name) or copied(source, name) for name in source.tensors if name not in left_out]
    return list(_marked(found, together))


def _marked(tensors: Iterable[PlannedTensor], together: Mapping[str, int]) -> Iterator[PlannedTensor]:
    """Yield the tensors, with `with_another` set on the later tensor of each pair.

    `together` maps a tensor's name to the number of its pair.
    """
    begun: set[int] = set()
    for tensor in tensors:
        place = together.get(tensor.name)
        yield tensor if place is None else tensor._replace(with_another=place in begun)
        begun |= set() if place is None else {place}


def _unchanged(source: TensorSource, job: Job, dtype: str | None) -> Mapping[str, PlannedTensor]:
    """Return those factors of a pair of unchanged rank whose dtype changes."""
    layout = job.pair.layout
    names = [name for name in (layout.a_name, layout.b_name) if dtype not in {None, source.tensors[name].dtype}]
    return {name: _cast(source, name, partial(source.read, name), dtype=dtype) for name in names}


def _cut(source: TensorSource, job: Job, dtype: str | None) -> Mapping[str, PlannedTensor]:
    layout = job.pair.layout
    names = (layout.a_name, layout.b_name)
    kinds = [dtype or source.tensors[name].dtype for name in names]
    if (eighth := next((kind for kind in kinds if kind.startswith("F8")), None)) is not None:
        raise AdapterError(
            f"{job.pair.first.name}: its factors are of {eighth}, and new ones would be rounded to 8 bits again",
            advice="name their dtype, such as --dtype bfloat16",
        )
    cut = Together(partial(_new_factors, source, job, half=all(kind in _HALF for kind in kinds)))
    shapes = layout.shapes(job.rank)
    new = {n: _cast(source, n, cut.taking(n), dtype=dtype, shape=s) for n, s in zip(names, shapes, strict=True)}
    if job.alpha is not None:
        alpha = np.asarray(job.pair.first.scale * job.rank)
        new[job.alpha] = _cast(source, job.alpha, lambda: alpha, dtype="F32")
    if job.magnitude is not None:
        new[job.magnitude] = _cast(source, job.magnitude, cut.taking(job.magnitude))
    return new


def _cast(
    source: TensorSource,
    name: str,
    load: Callable[[], Array],
    *,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> PlannedTensor:
    """Return a tensor of the file with new data, cast to the dtype. Data that overflow the dtype are refused."""
    kind = dtype or source.tensors[name].dtype
    sizes = source.tensors[name].shape if shape is None else shape

    def cast() -> Array:
        data = load().reshape(sizes)
        with np.errstate(over="ignore"):
            stored = data.astype(DTYPES[kind])
        if not all_finite(stored):
            raise AdapterError(f"{name}: the new factors do not fit {kind}", advice="name a wider --dtype")
        return stored

    return planned(name, kind, sizes, cast)


def _new_factors(source: TensorSource, job: Job, *, half: bool) -> dict[str, Array]:
    """Return a pair's new tensors by name. If they are stored in 16 bits (`half`), float32 products are enough."""
    layout = job.pair.layout
    if job.magnitude is not None:
        fit = refit_of(source, job)
        return {layout.a_name: fit.a, layout.b_name: fit.b, job.magnitude: fit.magnitude}
    bs, as_ = layout.read(source)
    cuts = [_reduced(job, b, a, best, half=half) for b, a, best in zip(bs, as_, job.best, strict=True)]
    b, a = layout.joined(_stack([b for b, _ in cuts]), _stack([a for _, a in cuts]), job.rank)
    return {layout.a_name: a, layout.b_name: b}


def _reduced(job: Job, b: Array, a: Array, best: Maps | None, *, half: bool) -> tuple[Array, Array]:
    """Return the new (b, a) of one module.

    For a zero update they are zeros and the first rows of a; if a is zero, they are the first columns of b and zeros.
    """
    rank, maps = job.rank, job.maps
    if maps is not None:
        return b.astype(np.float64) @ maps.left, maps.right @ a.astype(np.float64)
    scale = job.pair.first.scale or 1.0  # if alpha is 0, the product b @ a is cut as it is
    new_b, new_a = reduced(b, a, scale, rank, maps=best, half=half)
    if new_b.any():
        return new_b, new_a
    if a.any():
        return np.zeros((len(b), rank)), a[:rank]
    return b[:, :rank], np.zeros((rank, a.shape[1]))


def _stack(arrays: Sequence[Array]) -> Array:
    """Return the arrays stacked along a new first axis. A single array is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


class Refit(NamedTuple):
    """New factors and magnitudes, with the squared Frobenius norms of their error and of the whole update."""

    b: Floats
    a: Floats
    magnitude: Floats
    lost: float
    energy: float


def refit_of(source: TensorSource, job: Job) -> Refit:
    """Return a DoRA module at its new rank, fitted to the base weight.

    Raises:
        AdapterError: the base is missing, or does not fit.
    """
    module, layout = job.pair.first, job.pair.layout
    if job.base is None or job.magnitude is None:
        raise AdapterError(
            f"{module.name} is DoRA: its magnitudes are relative to norm(W + s B A), which another B A changes",
            advice="give the base model with --base, and they are fitted anew",
        )
    name = module.base_name or f"{module.name}.weight"
    found = job.base.find(name)
    if found is None:
        raise AdapterError(f"the base has no {name}", advice="give the model the adapter was trained on")
    w = job.base.read(found)
    b, a = (factors[0] for factors in layout.read(source))
    w = w.T if layout.transposed else w
    if w.shape != (len(b), a.shape[1]):
        raise AdapterError(
            f"{name} is of shape {list(w.shape)} in the base, and the update of {[len(b), a.shape[1]]}",
            advice="give the model the adapter was trained on",
        )
    return refitted(w, b, a, source.read(job.magnitude), scale=module.scale, rank=job.rank)


def refitted(w: Array, b: Array, a: Array, magnitude: Array, *, scale: float, rank: int) -> Refit:
    """Return a DoRA module at a rank, for the base weight w (d_out, d_in) and the magnitude (d_out,).

    DoRA's weight has rows m_i v_i / norm(v_i) with V = W + s B A. The new V' minimises the error of s B A, with row i
    weighted by m_i / norm(v_i). Each new magnitude is then the least squares fit of row i of V' to the old weight's.
    """
    m = magnitude.astype(np.float64).reshape(-1)
    b, a = b.astype(np.float64), a.astype(np.float64)
    norms = np.concatenate([np.linalg.norm(v, axis=1) for _, _, v in _rows(w, b, a, scale)])
    weights = m / np.where(norms > 0.0, norms, 1.0)
    new_b, new_a = reduced(weights[:, None] * b, a, scale, rank)
    new_b = new_b / np.where(weights != 0.0, weights, np.inf)[:, None]  # a row with weight 0 is 0 for any B
    fitted = np.zeros_like(m)
    lost = energy = 0.0
    new_rows = _rows(w, new_b, new_a, scale)
    for (span, part, v), (_, _, new_v) in zip(_rows(w, b, a, scale), new_rows, strict=True):
        aim = weights[span, None] * v
        size = np.linalg.norm(new_v, axis=1)
        unit = new_v / np.where(size > 0.0, size, 1.0)[:, None]
        fitted[span] = np.einsum("ij,ij->i", aim, unit)
        lost += float(np.sum((aim - fitted[span, None] * unit) ** 2))
        energy += float(np.sum((aim - part) ** 2))
    return Refit(new_b, new_a, fitted, lost, energy)


def _rows(w: Array, b: Floats, a: Floats, scale: float) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield (slice of rows, these rows of W, these rows of V) in float64, in blocks of rows."""
    count = max(1, _TILE // w.shape[1])
    for start in range(0, len(w), count):
        span = slice(start, start + count)
        part = w[span].astype(np.float64)
        yield span, part, part + scale * (b[span] @ a)
