"""One pair of tensors at a lower rank, computed when the first of its tensors is to be written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, PlannedTensor, TensorInfo, TensorSource, copied, planned
from gradience.spectral.reduced import Floats, reduced
from gradience.verbs.resize.pairs import Pair

_HALF: Final = ("BF16", "F16")
SAFETENSORS_NAMES: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Job(NamedTuple):
    """What becomes of a pair: its rank; A A^T and B^T B of each module; and the base, which DoRA needs."""

    pair: Pair
    rank: int
    grams: Sequence[tuple[Floats, Floats]] = ()
    base: BaseWeights | None = None

    @property
    def kept(self) -> bool:
        """Whether the pair stays as it is."""
        return self.rank >= self.pair.r


def planned_file(source: TensorSource, jobs: Iterable[Job], *, dtype: str | None = None) -> list[PlannedTensor]:
    """Return the tensors of the new file in the old one's order: pairs at their ranks, all others as they are.

    `dtype` (`float32`, `float16`, `bfloat16`) is of the new factors; None keeps theirs.

    Raises:
        AdapterError: factors of 8 bits would be rounded to 8 bits again.
    """
    new: dict[str, PlannedTensor] = {}
    for job in jobs:
        new |= _planned(source, job, dtype)
    return [new.get(name) or copied(source, name) for name in source.tensors]


def _planned(source: TensorSource, job: Job, dtype: str | None) -> Mapping[str, PlannedTensor]:
    pair = job.pair
    kinds = [_dtype_of(info, dtype) for info in (pair.a, pair.b)]
    names = (pair.a_name, pair.b_name)
    if job.kept:
        changed = [(n, k) for n, k in zip(names, kinds, strict=True) if source.tensors[n].dtype != k]
        return {n: _cast(n, k, source.tensors[n].shape, _reader(source, n)) for n, k in changed}
    if any(kind.startswith("F8") for kind in kinds):
        raise AdapterError(
            f"{pair.modules[0].name}: its factors are of {pair.a.dtype}, and new ones would be rounded to 8 bits again",
            advice="name their dtype, such as --dtype bfloat16",
        )
    half = all(kind in _HALF for kind in kinds)
    cut = _Cut(source, job, half=half)
    made = {n: _cast(n, k, s, cut.taking(n)) for n, k, s in zip(names, kinds, pair.shapes(job.rank), strict=True)}
    if pair.alpha is not None:
        alpha = np.asarray(pair.modules[0].scale * job.rank)
        made[pair.alpha] = _cast(pair.alpha, "F32", source.tensors[pair.alpha].shape, lambda: alpha)
    if pair.magnitude is not None:
        info = source.tensors[pair.magnitude]
        made[pair.magnitude] = _cast(pair.magnitude, info.dtype, info.shape, cut.taking(pair.magnitude))
    return made


def _reader(source: TensorSource, name: str) -> Callable[[], Array]:
    return lambda: source.read(name)


def _dtype_of(info: TensorInfo, dtype: str | None) -> str:
    return info.dtype if dtype is None else SAFETENSORS_NAMES[dtype]


def _cast(name: str, dtype: str, shape: tuple[int, ...], load: Callable[[], Array]) -> PlannedTensor:
    """Return the tensor cast to its dtype, or refused where that cannot hold it."""

    def cast() -> Array:
        data = load().reshape(shape)
        with np.errstate(over="ignore"):
            stored = data.astype(DTYPES[dtype])
        if not np.isfinite(stored).all():
            raise AdapterError(f"{name}: the new factors do not fit {dtype}", advice="name a wider --dtype")
        return stored

    return planned(name, dtype, shape, cast)


class _Cut:
    """A pair's new tensors: computed once for all of them, and each let go when it is taken."""

    def __init__(self, source: TensorSource, job: Job, *, half: bool) -> None:
        self._source = source
        self._half = half
        self._job = job
        self._made: dict[str, Array] = {}

    def taking(self, name: str) -> Callable[[], Array]:
        """Return a loader of one of them."""

        def take() -> Array:
            if name not in self._made:
                self._made = self._compute()
            return self._made.pop(name)

        return take

    def _compute(self) -> dict[str, Array]:
        pair, rank = self._job.pair, self._job.rank
        if pair.magnitude is not None:
            fit = refit_of(self._source, self._job)
            return {pair.a_name: fit.a, pair.b_name: fit.b, pair.magnitude: fit.magnitude}
        found = zip(pair.factors(self._source), self._job.grams, strict=True)
        cuts = [self._cut(b, a, grams) for (b, a), grams in found]
        shape_a, shape_b = pair.shapes(rank)
        if len(cuts) == 1:
            b, a = cuts[0]
        else:
            b, a = np.stack([b for b, _ in cuts], axis=2), np.stack([a for _, a in cuts])
        return {pair.a_name: a.reshape(shape_a), pair.b_name: b.reshape(shape_b)}

    def _cut(self, b: Array, a: Array, grams: tuple[Floats, Floats]) -> tuple[Array, Array]:
        """Return (b', a'); of a zero update, a B of zeros and the first rows of A, the other way round if A is zero."""
        rank = self._job.rank
        scale = self._job.pair.modules[0].scale or 1.0  # at alpha 0 the product is cut all the same
        new_b, new_a = reduced(b, a, scale, rank, grams=grams, half=self._half)
        if new_b.any():
            return new_b, new_a
        if a.any():
            return np.zeros((len(b), rank)), a[:rank]
        return b[:, :rank], np.zeros((rank, a.shape[1]))


def refit_of(source: TensorSource, job: Job) -> Refit:
    """Return a DoRA module at its rank, from the base.

    Raises:
        AdapterError: there is no base, or it does not fit.
    """
    pair, module = job.pair, job.pair.modules[0]
    if job.base is None or pair.magnitude is None:
        raise AdapterError(
            f"{module.name} is DoRA: its magnitudes are relative to norm(W + s B A), which another B A changes",
            advice="give the base model with --base, and they are fitted anew",
        )
    name = module.base_name or f"{module.name}.weight"
    found = job.base.find(name)
    if found is None:
        raise AdapterError(f"the base has no {name}", advice="give the model the adapter was trained on")
    w = job.base.read(found)
    ((b, a),) = pair.factors(source)
    w = w.T if pair.turned else w
    if w.shape != (len(b), a.shape[1]):
        raise AdapterError(
            f"{name} is of shape {list(w.shape)} in the base, and the update of {[len(b), a.shape[1]]}",
            advice="give the model the adapter was trained on",
        )
    return refitted(w, b, a, source.read(pair.magnitude), scale=module.scale, rank=job.rank)


_TILE: Final = 1 << 20  # elements of W in float64 at a time


class Refit(NamedTuple):
    """New factors and magnitudes, and the squared norms of what they miss and of the update itself."""

    b: Floats
    a: Floats
    magnitude: Floats
    lost: float
    energy: float


def refitted(w: Array, b: Array, a: Array, magnitude: Array, *, scale: float, rank: int) -> Refit:
    """Return the module at that rank; w (d_out, d_in) is the base weight, an output a row, magnitude (d_out,)."""
    m = magnitude.astype(np.float64).reshape(-1)
    b, a = b.astype(np.float64), a.astype(np.float64)
    norms = np.concatenate([np.linalg.norm(v, axis=1) for _, _, v in _rows(w, b, a, scale)])
    weights = m / np.where(norms > 0.0, norms, 1.0)
    new_b, new_a = reduced(weights[:, None] * b, a, scale, rank)
    new_b = new_b / np.where(weights != 0.0, weights, np.inf)[:, None]  # a row of weight 0 is 0 whatever B says
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
    """Yield (rows, W there, V there) in float64, some rows at a time."""
    count = max(1, _TILE // w.shape[1])
    for start in range(0, len(w), count):
        span = slice(start, min(start + count, len(w)))
        part = w[span].astype(np.float64)
        yield span, part, part + scale * (b[span] @ a)
