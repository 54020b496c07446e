"""Tensors of one shape, or brought to one: a vocabulary may have been padded or extended on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradience.adapters.modules import Array, Module
from gradience.adapters.names import is_embedding
from gradience.errors import AdapterError
from gradience.verify_merge.delta import Delta, PlainDelta, delta_of

__all__ = ["Held", "chosen", "fitted", "same_length"]


class Held(NamedTuple):
    """A tensor of a model as a matrix."""

    name: str
    dtype: str
    data: Array


def chosen(x: Array, rows: Sequence[int] | None, n: int) -> Array:
    """Return the rows of those numbers.

    Raises:
        AdapterError: they are not `n`, or not all there.
    """
    if rows is None or len(rows) != n or (rows and max(rows) >= len(x)):
        raise AdapterError(f"{n} token rows do not fit trainable_token_indices and a tensor of {len(x)} rows")
    return x[list(rows)]


def same_length(held: Array, m: Array, name: str) -> tuple[Array, Array, str | None]:
    """Return both with as many rows, where one is of a vocabulary that was padded or extended.

    Raises:
        AdapterError: they differ otherwise.
    """
    if held.shape == m.shape:
        return held, m, None
    n = min(len(held), len(m)) if held.ndim and m.ndim else 0
    if held.shape[1:] != m.shape[1:] or not is_embedding(name.rpartition(".")[0]) or n == 0:
        raise AdapterError(f"of shape {list(m.shape)}, in the adapter {list(held.shape)}")
    return held[:n], m[:n], f"{max(len(held), len(m)) - n} rows are in one of them only"


def fitted(module: Module, w: Held, m: Held) -> tuple[Held, Held, Delta, str | None]:
    """Return W, M and dW of one shape; the rows of an extended vocabulary that not all have are left out.

    Raises:
        AdapterError: they do not fit.
    """
    if w.data.shape == m.data.shape and w.data.shape in {module.shape, module.shape[::-1], (0, 0)}:
        return w, m, delta_of(module, w.data), None
    if module.dense is None and is_embedding(module.name) and w.data.shape[1] == m.data.shape[1] == module.shape[1]:
        counts = (len(w.data), len(m.data), module.shape[0])
        n = min(counts)
        b, a = module.load()
        note = f"rows of base, merged model and adapter: {', '.join(map(str, counts))}: the first {n} are compared"
        return w._replace(data=w.data[:n]), m._replace(data=m.data[:n]), PlainDelta(b[:n], a, module.scale), note
    if w.data.shape != m.data.shape:
        raise AdapterError(f"{m.name} is of shape {list(m.data.shape)}, in the base {list(w.data.shape)}")
    return w, m, delta_of(module, w.data), None
