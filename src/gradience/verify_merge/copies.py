"""What an adapter holds whole: heads, biases, embeddings and rows of them, which a merge copies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

import numpy as np

from gradience.adapters.keys import PREFIX
from gradience.adapters.modules import Adapter, Array
from gradience.schema.verify_merge import MergeReplay, ModuleVerdict
from gradience.verify_merge.dtypes import FLOATS, HALVES, UNIT, narrower, rounded, working

__all__ = ["Copied", "Copy", "base_copies", "compare_copy", "copies_of"]

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
    replay: MergeReplay | None = None
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
    own, base, merged = dtypes
    kind = working(own, merged)
    held, m = held.astype(kind, copy=False), m.astype(kind, copy=False)
    if not np.isfinite(m).all():
        return Copied("other", reason="the merged tensor holds NaN or infinite numbers")
    through = next(
        (t for t in dict.fromkeys((merged, own, *HALVES)) if np.array_equal(m, _cast(held, t, merged))), None
    )
    is_base = w is not None and base in FLOATS and _is_base(w.astype(kind, copy=False), m, merged)
    if through is not None and is_base:
        return Copied("unresolved", reason="the adapter's values are the base's")
    if through is not None:
        return Copied("exact", MergeReplay(weight=through))
    if is_base:
        return Copied("absent")
    left = np.abs(m - held)
    if np.all(left <= 2.0 * UNIT[merged] * np.abs(held) + 2.0**-25):
        return Copied("within_rounding")
    norm = float(np.linalg.norm(held))
    return Copied(
        "other", reason=f"norm(M - saved) / norm(saved): {float(np.linalg.norm(left)) / norm:.3g}" if norm else None
    )


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x


def _is_base(w: Array, m: Array, merged: str) -> bool:
    return any(np.array_equal(m, _cast(w, t, merged)) for t in dict.fromkeys((merged, *HALVES)))
