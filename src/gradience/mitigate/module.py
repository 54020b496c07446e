"""One module's intruder dimensions, and its lora_B with their share scaled.

An intruder u is a leading left singular vector of W + dW that resembles none of W's (arXiv 2410.21228). That paper
scales the whole of u's component, W's part of it included, which changes what the base itself does and needs a rank
more for each vector. Here only what the adapter put there is scaled: dW' = (I - (1 - scale) U U^T) dW, which acts on
B alone, keeps the rank, and at scale 0 leaves along u exactly what the base had.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.modules import Array, Module
from gradience.audit.update import Update, update_of
from gradience.spectral.intruders import Overlaps, count_below, overlaps
from gradience.spectral.lanczos import Operator
from gradience.spectral.lowrank import Floats

__all__ = ["Found", "Options", "looked_at", "reason_against", "scaled"]

_KINDS: Final = ("linear", "conv")
_NEAR: Final = (0.3, 0.5, 0.7)  # thresholds that the bounds should separate, as in an audit


class Options(NamedTuple):
    """What counts as an intruder, and what is left of it."""

    scale: float
    k: int = 10
    eps: float = 0.5
    seed: int = 0


class Found(NamedTuple):
    """The vectors shown to be intruders, as columns, and the counts before and after."""

    vectors: Array
    overlaps: Overlaps
    before: int
    undecided: int
    after: int
    relative_change: float


def reason_against(module: Module, b_shape: tuple[int, ...], out: int) -> str | None:
    """Return why a module is left as it is, or None; `b_shape` is of its lora_B, `out` the height of B A."""
    if module.kind not in _KINDS:
        return f"of kind {module.kind}: only linear and convolutional LoRA is looked at"
    if module.dense is not None or module.note is not None:
        return module.note or "its update is a function of the base weight"
    return None if b_shape[:2] == (out, module.r) else "its lora_B is no plain (out, r)"


def looked_at(module: Module, w: Array, b: Array, options: Options, *, turned: bool, dtype: np.dtype[Any]) -> Found:
    """Return a module's intruders; w as stored, b (out, r) from the file, `turned` where w is (in, out).

    The count after is of lora_B as it will be stored, in `dtype`.
    """
    wide = w.astype(np.float32, copy=False)
    update = update_of(module, wide)
    before = _overlaps(update, wide, options, turned=turned)
    vectors = np.asarray(before.left, np.float64)[:, before.upper < options.eps]
    count, undecided = count_below(before, options.eps)
    if not vectors.shape[1]:
        return Found(vectors, before, count, undecided, count, 0.0)
    stored = scaled(b, vectors, options.scale).astype(dtype).astype(np.float32)
    new = update._replace(a=stored.T) if turned else update._replace(b=stored)
    after, _ = count_below(_overlaps(new, wide, options, turned=turned), options.eps)
    a = (update.b.T if turned else update.a).astype(np.float64)
    return Found(vectors, before, count, undecided, after, _change(b, a, vectors, options.scale))


def scaled(b: Array, vectors: Floats, scale: float) -> Floats:
    """Return B - (1 - scale) U (U^T B)."""
    wide = b.astype(np.float64)
    return np.asarray(wide - (1.0 - scale) * (vectors @ (vectors.T @ wide)))


def _overlaps(update: Update, w: Array, options: Options, *, turned: bool) -> Overlaps:
    base, tuned = update.operators(w)
    if turned:
        base, tuned = (Operator(x.w.T, x.a.T, x.b.T) for x in (base, tuned))
    return overlaps(base, tuned, options.k, sorted({options.eps, *_NEAR}), seed=options.seed)


def _change(b: Array, a: Floats, vectors: Floats, scale: float) -> float:
    """Return norm(dW - dW') / norm(dW)."""
    wide = b.astype(np.float64)
    whole = math.sqrt(max(0.0, float(np.sum((wide.T @ wide) * (a @ a.T)))))
    taken = (1.0 - scale) * float(np.linalg.norm((vectors.T @ wide) @ a))
    return min(1.0, taken / whole) if whole > 0.0 else 0.0
