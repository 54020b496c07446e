"""The tensors that the adapter does not touch: the merged model's beside the base's, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from gradience.base.coded import CodedWeight, coded
from gradience.base.weights import BaseTensor
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES
from gradience.schema import real
from gradience.schema.merge import OtherTensor
from gradience.verbs.verify.delta import FLOATS
from gradience.verbs.verify.measure import is_cast, relative_change
from gradience.verbs.verify.rows import ModelTensors

_BLOCK: Final = 1 << 19  # bytes that are compared at a time; they fit in a processor's cache


class Untouched:
    """The comparison of what the adapter leaves. `compared` counts the merged model's tensors that were compared."""

    def __init__(self, base: ModelTensors, merged: ModelTensors) -> None:
        """Take both models after the adapter's tensors are compared."""
        self._base, self._merged = base.weights, merged.weights
        self.names = [name for name in self._merged.names if name not in merged.used]
        self._left = dict.fromkeys(name for name in self._base.names if name not in base.used)
        self._prefixes = {pair for name in (*merged.used, *self.names) if (pair := self._prefix(name)) is not None}
        self.compared = 0

    def _prefix(self, name: str) -> tuple[str, str] | None:
        """Return (prefix of the merged model's name, prefix of the base's) if one name is the other with a prefix."""
        tensor = self._base.find(name)
        if tensor is None or tensor.name == name:
            return None
        if name.endswith(tensor.name):
            return name.removesuffix(tensor.name), ""
        return ("", tensor.name.removesuffix(name)) if tensor.name.endswith(name) else None

    def _in_base(self, name: str) -> BaseTensor | None:
        """Return the base's tensor of that name, or of the name with its prefix changed as for another tensor."""
        renamed = (f"{own}{name.removeprefix(dropped)}" for dropped, own in self._prefixes)
        known = next((one for one in (name, *renamed) if one in self._base.names), None)
        return self._base.find(known or name)

    def _in_codes(self, m: BaseTensor, w: BaseTensor | None) -> CodedWeight | None:
        """The base's weight beside M, if it is in codes there and in floats in the merged model."""
        if m.info.dtype not in FLOATS or (w is not None and w.info.dtype in FLOATS):
            return None
        try:
            weight = coded(self._base, m.name)
        except AdapterError:
            return None  # the tensor's own comparison names it
        return weight if weight is not None and weight.shape == m.info.shape else None

    def compare(self, progress: Callable[[str], None]) -> Iterator[OtherTensor]:
        """Yield the tensors that differ, are added or missing, or cannot be compared."""
        for name in self.names:
            progress(name)
            m, w = self._merged.find(name), self._in_base(name)
            before = None if m is None else self._in_codes(m, w) or w
            if m is None or before is None:
                yield OtherTensor(name=name, what="added")
                continue
            for one in before.names if isinstance(before, CodedWeight) else [before.name]:
                self._left.pop(one, None)
            self.compared += 1
            yield from _compared(before, m)
        for name in self._left:
            yield OtherTensor(name=name, what="missing")


def _compared(w: BaseTensor | CodedWeight, m: BaseTensor) -> Iterator[OtherTensor]:
    try:
        relative = _from_codes(w, m) if isinstance(w, CodedWeight) else _difference(w, m)
    except AdapterError as error:
        yield OtherTensor(name=m.name, what="not_compared", reason=error.message)
    else:
        if relative is not None:
            yield OtherTensor(name=m.name, what="changed", relative_change=real(relative))


def _from_codes(w: CodedWeight, m: BaseTensor) -> float | None:
    """Return norm(M - W) / norm(W), or None if M is W as its codes give it back, rounded to M's dtype, or before."""
    exact, stored = w.whole(), m.file.read(m.name)
    if any(np.array_equal(x.astype(stored.dtype), stored) for x in (exact, exact.astype(DTYPES[w.dtype]))):
        return None
    return relative_change(exact, stored, "F32", m.info.dtype)


def _difference(w: BaseTensor, m: BaseTensor) -> float | None:
    """Return norm(M - W) / norm(W), or None if M is a copy or a cast of W.

    Raises:
        AdapterError: the tensors cannot be compared.
    """
    if w.info.shape != m.info.shape:
        raise AdapterError(f"of shape {list(m.info.shape)}, in the base {list(w.info.shape)}")
    own, merged = w.info.dtype, m.info.dtype
    if own == merged:
        if _same_bytes(w, m):
            return None
        if own not in DTYPES:
            raise AdapterError(f"its bytes are others, and {own} is not read as numbers")
        if own not in FLOATS:  # integers and quantised codes are compared as float64 numbers
            own = merged = "F64"
    if not {own, merged} <= FLOATS:
        raise AdapterError(f"stored as {merged}, in the base as {own}")
    x, y = w.file.read(w.name), m.file.read(m.name)
    return None if is_cast(x, y, own, merged) else relative_change(x, y, own, merged)


def _same_bytes(w: BaseTensor, m: BaseTensor) -> bool:
    """Return whether two tensors of one size have equal bytes."""
    size = w.info.nbytes
    blocks = ([one.file.raw(one.name, start, _BLOCK) for one in (w, m)] for start in range(0, size, _BLOCK))
    return all(np.array_equal(before, after) for before, after in blocks)
