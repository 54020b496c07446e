"""The tensors that an adapter does not touch: a merge leaves them as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from gradience.base.weights import BaseWeights, Found
from gradience.errors import AdapterError
from gradience.io.safetensors import Array
from gradience.schema.merge import OtherTensor
from gradience.schema.scalars import real
from gradience.verbs.verify_merge.delta import FLOATS, HALVES, narrower, rounded, working

_SPAN: Final = 1 << 20  # entries that are cast at a time


class Rest:
    """Base and merged tensors that no module of the adapter accounts for, compared one after the other."""

    def __init__(self, base: BaseWeights, merged: BaseWeights, *, touched: set[str], used: set[str]) -> None:
        """Take the names that are accounted for: `touched` in the merged model, `used` in the base."""
        self._base, self._merged = base, merged
        self.names = [name for file in merged.files for name in file.tensors if name not in touched]
        self._held = {name for file in base.files for name in file.tensors}
        self._left = {name: None for file in base.files for name in file.tensors if name not in used}
        self._prefixes = {pair for name in (*touched, *self.names) if (pair := self._prefix(name)) is not None}
        self.compared = 0

    def _prefix(self, name: str) -> tuple[str, str] | None:
        """Return what the merged model puts before the base's name, and the base before its own; None for neither."""
        found = self._base.find(name)
        if found is None or found.name == name:
            return None
        if name.endswith(found.name):
            return name.removesuffix(found.name), ""
        return ("", found.name.removesuffix(name)) if found.name.endswith(name) else None

    def _in_base(self, name: str) -> Found | None:
        """Return the base's tensor: of that name, or of the one that the prefixes met elsewhere make of it."""
        renamed = (f"{own}{name.removeprefix(dropped)}" for dropped, own in self._prefixes)
        known = next((one for one in (name, *renamed) if one in self._held), None)
        return self._base.find(known or name)

    def compare(self, progress: Callable[[str], None]) -> Iterator[OtherTensor]:
        """Return those that are not the same."""
        for name in self.names:
            progress(name)
            m, w = self._merged.find(name), self._in_base(name)
            if m is None or w is None:
                yield OtherTensor(name=name, what="added")
                continue
            self._left.pop(w.name, None)
            self.compared += 1
            try:
                relative = _difference(w, m)
            except AdapterError as error:
                yield OtherTensor(name=name, what="not_compared", reason=str(error))
                continue
            if relative is not None:
                yield OtherTensor(name=name, what="changed", relative_change=real(relative))
        for name in self._left:
            yield OtherTensor(name=name, what="missing")


def _difference(w: Found, m: Found) -> float | None:
    """Return norm(M - W) / norm(W), or None where M is W, cast or as it is.

    Raises:
        AdapterError: the tensors cannot be compared.
    """
    if w.info.shape != m.info.shape:
        raise AdapterError(f"of shape {list(m.info.shape)}, in the base {list(w.info.shape)}")
    before, after = w.file.raw(w.name), m.file.raw(m.name)
    if w.info.dtype == m.info.dtype and _same_bytes(before, after):
        return None
    if not {w.info.dtype, m.info.dtype} <= FLOATS:
        if w.info.dtype == m.info.dtype:
            return float(np.mean(before != after))
        raise AdapterError(f"stored as {m.info.dtype}, in the base as {w.info.dtype}")
    return _cast_difference(w, m)


def _same_bytes(x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8]) -> bool:
    whole = len(x) // 8 * 8
    words, more = (part[:whole].view(np.uint64) for part in (x, y))
    return np.array_equal(words, more) and np.array_equal(x[whole:], y[whole:])


def _cast_difference(w: Found, m: Found) -> float | None:
    before, after = (found.file.read(found.name).reshape(-1) for found in (w, m))
    ways = tuple(dict.fromkeys((m.info.dtype, *HALVES)))
    if any(_is_cast(before, after, w.info.dtype, way, m.info.dtype) for way in ways):
        return None
    kind = working(w.info.dtype, m.info.dtype)
    size = change = 0.0
    for start in range(0, len(before), _SPAN):
        x, y = (part[start : start + _SPAN].astype(kind) for part in (before, after))
        size += float(np.vdot(x, x))
        change += float(np.vdot(y - x, y - x))
    return float(np.sqrt(change / size)) if size > 0.0 else float("inf")


def _is_cast(w: Array, m: Array, base: str, through: str, merged: str) -> bool:
    kind = working(base, merged)
    for start in range(0, len(w), _SPAN):
        x, y = (part[start : start + _SPAN].astype(kind) for part in (w, m))
        if narrower(through, base):
            x = rounded(x, through)
        if not np.array_equal(rounded(x, merged) if narrower(merged, base) else x, y):
            return False
    return True
