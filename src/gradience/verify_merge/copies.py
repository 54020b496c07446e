"""What an adapter holds whole: heads, biases, embeddings and rows of them, which a merge copies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

import numpy as np

from gradience.adapters.keys import PREFIX
from gradience.adapters.modules import Adapter, Array
from gradience.schema.verify_merge import ModuleVerdict
from gradience.verify_merge.dtypes import FLOATS, HALVES, UNIT, narrower, rounded, working

__all__ = ["Copied", "Copy", "base_copies", "compare_copy", "copies_of"]

_SPAN: Final = 1 << 20  # entries that are cast at a time
_LEAST: Final = 2.0**-25  # half of float16's least step
_SAVED: Final = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)")
_ROWS: Final = re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?$")


class Copy(NamedTuple):
    """A tensor of the adapter, the name it has in a model, and which rows it replaces there (None: all)."""

    key: str
    name: str
    kind: Literal["replacement", "rows"] = "replacement"
    rows: tuple[int, ...] | None = None


class Copied(NamedTuple):
    """What was found of one; fields as of `VerifiedModule`."""

    verdict: ModuleVerdict
    reason: str | None = None


def copies_of(adapter: Adapter) -> Iterator[Copy]:
    """Return the tensors that a merge copies into the model."""
    placed = {key for module in (*adapter.modules, *adapter.needs_base) for key in module.keys.values()}
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
    """Return the adapted modules whose base weight is in the adapter's file, and the tensor there."""
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
    """Return whether M holds the adapter's values.

    Args:
        held: the adapter's.
        w: the base's, of the same shape; None where it has none.
        m: the merged model's.
        dtypes: safetensors' names of the three dtypes.
    """
    seen = _Seen(dtypes, None if w is None else w.reshape(-1))
    held, m = held.reshape(-1), m.reshape(-1)
    for start in range(0, len(held), _SPAN):
        if not seen.look(held, m, slice(start, start + _SPAN)):
            return Copied("other", reason="the merged tensor holds NaN or infinite numbers")
    return seen.verdict()


class _Seen:
    """What still holds of a tensor that is gone through span by span."""

    def __init__(self, dtypes: tuple[str, str | None, str], w: Array | None) -> None:
        own, base, self._merged = dtypes
        self._kind = working(own, self._merged)
        self._w = w if base in FLOATS else None
        self._through = list(dict.fromkeys((self._merged, own, *HALVES)))
        self._from_base = list(dict.fromkeys((self._merged, *HALVES))) if self._w is not None else []
        self._near = True
        self._left = self._size = 0.0

    def look(self, held: Array, m: Array, at: slice) -> bool:
        """Return whether M is finite there, and drop what no longer holds."""
        x, y = held[at].astype(self._kind), m[at].astype(self._kind)
        if not np.isfinite(y).all():
            return False
        self._through = [t for t in self._through if np.array_equal(y, _cast(x, t, self._merged))]
        if self._from_base and self._w is not None:
            w = self._w[at].astype(self._kind)
            self._from_base = [t for t in self._from_base if np.array_equal(y, _cast(w, t, self._merged))]
        left = np.abs(y - x)
        self._near = self._near and bool(np.all(left <= 2.0 * UNIT[self._merged] * np.abs(x) + _LEAST))
        self._left, self._size = self._left + float(np.vdot(left, left)), self._size + float(np.vdot(x, x))
        return True

    def verdict(self) -> Copied:
        if self._through and self._from_base:
            return Copied("unresolved", reason="the adapter's values are the base's")
        if self._through:
            return Copied("exact")
        if self._from_base:
            return Copied("absent")
        if self._near:
            return Copied("within_rounding")
        relative = math.sqrt(self._left / self._size) if self._size > 0.0 else math.inf
        return Copied("other", reason=f"norm(M - saved) / norm(saved): {relative:.3g}")


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x
