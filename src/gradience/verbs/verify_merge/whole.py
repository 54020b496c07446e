"""Compare tensors without an update: those that the adapter holds whole, and those that it does not touch.

The adapter may hold heads, biases and token rows whole. Two tensors count as equal if one is a copy or a cast of the
other. A cast may go through a 16-bit dtype, as when a model was loaded in one dtype and saved in another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from gradience.adapters import is_embedding
from gradience.adapters.layout import PREFIX, Adapter, Array
from gradience.base.weights import BaseWeights, Found
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES
from gradience.schema import real
from gradience.schema.merge import ModuleVerdict, OtherTensor
from gradience.spectral import scratch
from gradience.verbs.verify_merge.delta import FLOATS, HALVES, UNIT, narrower, rounded, working

_SPAN: Final = 1 << 20  # entries that are cast at a time
_BLOCK: Final = 1 << 19  # bytes that are compared at a time; they fit in a processor's cache
_LEAST: Final = 2.0**-25  # half of float16's smallest step
_SAVED: Final = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)")
_ROWS: Final = re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")


class Copy(NamedTuple):
    """A tensor of the adapter (`key`), its `name` in a model, and the rows that it replaces there (None: all)."""

    key: str
    name: str
    kind: Literal["replacement", "rows"] = "replacement"
    rows: tuple[int, ...] | None = None


class Copied(NamedTuple):
    """The verdict on a copied tensor, and its reason. The fields are those of `VerifiedModule`."""

    verdict: ModuleVerdict
    reason: str | None = None


def copies_of(adapter: Adapter) -> Iterator[Copy]:
    """Yield the tensors that a merge copies into the model."""
    placed = {key for module in (*adapter.modules, *adapter.base_dependent) for key in module.keys.values()}
    adapted = {module.name for module in adapter.modules}
    for key, role in adapter.roles.items():
        name = key.removeprefix(PREFIX)
        if key in placed or ".original_module." in name:
            continue
        if role == "token_rows" and (hit := _ROWS.search(name)):
            path = name[: hit.start()]
            yield Copy(key, f"{path}.weight", "rows", _token_rows(adapter, path))
        elif role in {"full_module", "bias", "base_copy"}:
            plain = _SAVED.sub("", name).replace(".base_layer.", ".")
            if role != "base_copy" or plain.rpartition(".")[0] not in adapted:
                yield Copy(key, plain)


def base_copies(adapter: Adapter) -> Mapping[str, str]:
    """Return the adapted modules whose base weight is in the adapter's file, with the name of that tensor."""
    found = {}
    for key, role in adapter.roles.items():
        if role == "base_copy" and key.endswith(".base_layer.weight"):
            found[key.removeprefix(PREFIX).removesuffix(".base_layer.weight")] = key
    return found


def _token_rows(adapter: Adapter, path: str) -> tuple[int, ...] | None:
    asked = adapter.config.trainable_token_indices
    if isinstance(asked, dict):
        asked = next((rows for name, rows in asked.items() if f".{path}".endswith(f".{name}")), None)
    return None if asked is None else tuple(asked)


def compare_copy(held: Array, w: Array | None, m: Array, dtypes: tuple[str, str | None, str]) -> Copied:
    """Return the verdict on whether the merged model's tensor holds the adapter's values.

    Args:
        held: the adapter's tensor.
        w: the base's tensor, of the same shape; None if the base has none.
        m: the merged model's tensor.
        dtypes: the dtypes of these three, by safetensors' names.
    """
    own, base, merged = dtypes
    if not np.isfinite(m.astype(np.float32)).all():
        return Copied("other", reason="the merged tensor holds NaN or infinite numbers")
    is_held = _is_cast(held, m, own, merged)
    is_base = w is not None and base is not None and base in FLOATS and _is_cast(w, m, base, merged)
    if is_held:
        return Copied("unresolved", reason="the adapter's values are the base's") if is_base else Copied("exact")
    if is_base:
        return Copied("absent")
    bound = 2.0 * UNIT[merged]
    if all(np.all(np.abs(y - x) <= bound * np.abs(x) + _LEAST) for x, y in _spans(held, m, own, merged)):
        return Copied("within_rounding")
    return Copied("other", reason=f"norm(M - saved) / norm(saved): {_relative_change(held, m, own, merged):.3g}")


def _is_cast(x: Array, m: Array, own: str, merged: str) -> bool:
    """Return whether M is X, cast to the merged dtype directly or through a 16-bit dtype."""
    return any(
        all(np.array_equal(y, _cast(part, through, merged)) for part, y in _spans(x, m, own, merged))
        for through in dict.fromkeys((merged, *HALVES))
    )


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x


def _spans(x: Array, m: Array, own: str, merged: str) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays in blocks of entries, in the dtype in which they are compared."""
    kind = working(own, merged)
    x, m = x.reshape(-1), m.reshape(-1)
    for start in range(0, len(x), _SPAN):
        yield x[start : start + _SPAN].astype(kind), m[start : start + _SPAN].astype(kind)


def _relative_change(x: Array, m: Array, own: str, merged: str) -> float:
    """Return norm(M - X) / norm(X)."""
    size = change = 0.0
    for before, after in _spans(x, m, own, merged):
        size += float(np.vdot(before, before))
        change += float(np.vdot(after - before, after - before))
    return math.sqrt(change / size) if size > 0.0 else math.inf


def token_rows(x: Array, rows: Sequence[int] | None, n: int) -> Array:
    """Return the rows of x with the given numbers.

    Raises:
        AdapterError: there are not exactly `n` numbers, or x has too few rows.
    """
    if rows is None or len(rows) != n or (rows and max(rows) >= len(x)):
        raise AdapterError(f"{n} token rows do not fit trainable_token_indices and a tensor of {len(x)} rows")
    return x[list(rows)]


def same_length(held: Array, m: Array, name: str) -> tuple[Array, Array, str | None]:
    """Return both arrays cut to the same number of rows, and a note, if the vocabulary was padded or extended.

    Raises:
        AdapterError: the shapes differ in another way.
    """
    if held.shape == m.shape:
        return held, m, None
    n = min(len(held), len(m)) if held.ndim and m.ndim else 0
    if held.shape[1:] != m.shape[1:] or not is_embedding(name.rpartition(".")[0]) or n == 0:
        raise AdapterError(f"of shape {list(m.shape)}, in the adapter {list(held.shape)}")
    return held[:n], m[:n], f"{max(len(held), len(m)) - n} rows are in one of them only"


class Rest:
    """The tensors of base and merged model that the adapter does not touch, compared one after the other."""

    def __init__(self, base: BaseWeights, merged: BaseWeights, *, touched: set[str], used: set[str]) -> None:
        """Take the names of tensors that are already compared: `touched` in the merged model, `used` in the base."""
        self._base, self._merged = base, merged
        self.names = [name for file in merged.files for name in file.tensors if name not in touched]
        self._held = {name for file in base.files for name in file.tensors}
        self._left = {name: None for file in base.files for name in file.tensors if name not in used}
        self._prefixes = {pair for name in (*touched, *self.names) if (pair := self._prefix(name)) is not None}
        self.compared = 0

    def _prefix(self, name: str) -> tuple[str, str] | None:
        """Return (prefix of the merged model's name, prefix of the base's) if one name is the other with a prefix."""
        found = self._base.find(name)
        if found is None or found.name == name:
            return None
        if name.endswith(found.name):
            return name.removesuffix(found.name), ""
        return ("", found.name.removesuffix(name)) if found.name.endswith(name) else None

    def _in_base(self, name: str) -> Found | None:
        """Return the base's tensor of that name, or of the name with its prefix changed as for another tensor."""
        renamed = (f"{own}{name.removeprefix(dropped)}" for dropped, own in self._prefixes)
        known = next((one for one in (name, *renamed) if one in self._held), None)
        return self._base.find(known or name)

    def compare(self, progress: Callable[[str], None]) -> Iterator[OtherTensor]:
        """Yield the tensors that differ, are added or missing, or cannot be compared."""
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
            return _relative_change(w.file.read(w.name), m.file.read(m.name), "F64", "F64")
    if not {own, merged} <= FLOATS:
        raise AdapterError(f"stored as {merged}, in the base as {own}")
    x, y = w.file.read(w.name), m.file.read(m.name)
    return None if _is_cast(x, y, own, merged) else _relative_change(x, y, own, merged)


def _same_bytes(w: Found, m: Found) -> bool:
    """Return whether two tensors of one size have equal bytes. Comparing 8 bytes at once is 15 times as fast."""
    size = w.info.nbytes
    with w.file.reader(w.name) as before, m.file.reader(m.name) as after:
        for start in range(0, size, _BLOCK):
            count = min(_BLOCK, size - start)
            x, y = (scratch.array(name, (count,), np.uint8) for name in ("w stored", "m stored"))
            before.into(start, x)
            after.into(start, y)
            whole = count // 8 * 8
            same = np.array_equal(x[:whole].view(np.uint64), y[:whole].view(np.uint64))
            if not (same and np.array_equal(x[whole:], y[whole:])):
                return False
    return True
