"""The audit of LoRA factors in memory: arrays by name, or the parameters of a JAX, Flax or Keras model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict, Unpack

import numpy as np

from gradience.adapters.config import AdapterConfig
from gradience.adapters.layout import Adapter, Array, Files, Format, Module
from gradience.errors import AdapterError
from gradience.folder import Documents, OpenAdapter
from gradience.io import PathLike
from gradience.io.safetensors import TensorInfo
from gradience.rules import excluded_rules
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.audit import AuditReport
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.audit.report import audit_documents

Scale = float | Mapping[str, float]

_PART: Final = re.compile(r"(?P<stem>(?:.*_)?lora(?:_.*)?)_(?P<side>a|b)", re.IGNORECASE)
_UNSCALED: Final = 1.0  # the factor of A @ B where nothing states one
_WRAPPERS: Final = frozenset({"value", "raw_value"})  # attributes in which Flax's variables hold their array


_NAMES: Final = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # safetensors' dtype names


def _no_file(_files: Files) -> Adapter:
    raise AdapterError("factors in memory are of no file")


_IN_MEMORY: Final = Format("arrays", lambda _files: False, _no_file)


class _Pair(NamedTuple):
    """Loaders of one module's factors in PEFT's orientation: b (d_out, r), a (r, d_in)."""

    b: Callable[[], Array]
    a: Callable[[], Array]
    d_out: int
    r: int
    d_in: int
    stored: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of A and of B


class ArrayKeywords(TypedDict, total=False):
    """The options of `audit_arrays`, for the functions that find the arrays."""

    top_singular_values: int
    select: Iterable[str]
    ignore: Iterable[str]
    settings: PathLike | None


def audit_arrays(
    factors: Mapping[str, tuple[Any, Any]],
    *,
    scale: Scale = 1.0,
    top_singular_values: int = 0,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: PathLike | None = None,
) -> AuditReport:
    """Return the audit of LoRA factors in memory; a module's update is `scale` times the product of its factors.

    Two orders of axes are understood: PEFT's, A (r, d_in) with B (d_out, r), and that of JAX, Flax and Keras,
    A (d_in, r) with B (r, d_out). If both fit, A's smaller axis is r, and a square A is taken as PEFT's. Further axes
    of B, such as heads, are outputs. If both have an extra first axis (layers under `scan`), each index of it is a
    module.

    Args:
        factors: a module's name to its (A, B): arrays of NumPy, JAX, Keras or torch, in any float dtype.
        scale: lora_alpha / r, or another factor of the product; one for all modules, or by name.
        top_singular_values: how many singular values (scaled, largest first) to keep per module.
        select: ids of checks, or beginnings of ids, to apply; all by default.
        ignore: ids of checks, or beginnings of ids, to leave out.
        settings: a settings file, whose `select` and `ignore` apply if the arguments of that name are empty.

    Raises:
        AdapterError: there is no pair, its shapes do not fit, or a scale is missing.
        ConfigError: an id is not known, or the settings cannot be read.

    >>> import numpy as np
    >>> a, b = np.ones((2, 8)), np.ones((6, 2))
    >>> round(audit_arrays({"q": (a, b)}, scale=0.5).summary.stable_rank_mean, 3)
    1.0
    """
    left_out = excluded_rules([rule.id for rule in WEIGHTS_RULES], select=select, ignore=ignore, settings=settings)
    documents = Documents.of_adapter(OpenAdapter(_adapter(factors, scale)))
    return audit_documents(documents, AuditOptions(top_singular_values=top_singular_values), left_out=left_out)


def audit_pytree(
    params: Any,
    *,
    scale: Scale | None = None,
    **options: Unpack[ArrayKeywords],
) -> AuditReport:
    """Return the audit of the LoRA factors in a model's parameters.

    Factors are found by their names, `lora_a` and `lora_b` with anything around `lora`: those of `flax.nnx.LoRA`,
    Keras' `enable_lora` (`lora_kernel_a`, `lora_embeddings_a`), and most Flax and Tunix adapters.

    Args:
        params: a pytree (dict, FrozenDict, `nnx.State`, `nnx.Module`, a list of either), or a Keras model or layer.
        scale: the factor of A @ B; one for all modules, or by name. By default a Keras layer's own, else 1.
        options: those of `audit_arrays`.

    Raises:
        AdapterError: there is no pair of factors; the message names the arrays that there are.
    """
    pairs = _pairs_in(params)
    return audit_arrays(pairs, scale=_keras_scales(params, pairs) if scale is None else scale, **options)


def _pairs_in(params: Any) -> dict[str, tuple[Any, Any]]:
    """The pairs of factors among a model's parameters, by module."""
    leaves = dict(_keras(params) if hasattr(params, "variables") and hasattr(params, "get_config") else _leaves(params))
    sides: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        if (part := _split(path)) is not None:
            sides.setdefault(part[0], {})[part[1]] = leaf
    pairs = {name: (both["a"], both["b"]) for name, both in sides.items() if len(both) == 2}
    if not pairs:
        some = ", ".join(list(leaves)[:6]) or "nothing"
        raise AdapterError(
            f"no LoRA factors among {len(leaves)} arrays ({some})",
            advice="their names hold lora_a and lora_b; else give audit_arrays({name: (A, B)})",
        )
    return pairs


def _split(path: str) -> tuple[str, str] | None:
    """Return (module, side) for the path of a factor, None for the path of another array.

    >>> _split("layers.0.q.lora_kernel_a"), _split("q.kernel_lora_b"), _split("q.lora_A.kernel"), _split("q.kernel")
    (('layers.0.q.lora_kernel', 'a'), ('q.kernel_lora', 'b'), ('q.lora.kernel', 'a'), None)
    """
    parts = path.split(".")
    for at in reversed(range(len(parts))):
        if hit := _PART.fullmatch(parts[at]):
            return ".".join([*parts[:at], hit["stem"], *parts[at + 1 :]]), hit["side"].lower()
    return None


def _leaves(params: Any) -> Iterator[tuple[str, Any]]:
    import jax  # only a pytree needs it

    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
        yield ".".join(name for name in names if name not in _WRAPPERS), leaf


def _keras(model: Any) -> Iterator[tuple[str, Any]]:
    for variable in model.variables:
        yield variable.path.replace("/", "."), variable


def _keras_scales(model: Any, pairs: Mapping[str, Any]) -> Scale:
    """Return the scale alpha / rank of each pair whose Keras layer has both; 1 for other pairs."""
    # Keras has no public name for the layers within layers.
    layers: Iterable[Any] = getattr(model, "_flatten_layers", tuple)()
    own = {
        layer.path.replace("/", "."): layer.lora_alpha / layer.lora_rank
        for layer in layers
        if getattr(layer, "lora_rank", None) and getattr(layer, "lora_alpha", None)
    }
    return {name: own.get(name.rpartition(".")[0], 1.0) for name in pairs}


def _scale(scale: Scale, name: str) -> float:
    if not isinstance(scale, Mapping):
        return float(scale)
    if name not in scale:
        raise AdapterError(f"no scale for {name}", advice="give one number for all, or one for each name")
    return float(scale[name])


def _pairs(name: str, a: Any, b: Any) -> Iterator[tuple[str, _Pair]]:
    """Yield the module that two factors form, or one for each layer if both are stacked along a first axis."""
    shapes = tuple(a.shape), tuple(b.shape)
    pair = _oriented(a, b, *shapes)
    if pair is not None:
        yield name, pair
        return
    if min(map(len, shapes)) > 2 and shapes[0][0] == shapes[1][0]:
        for index in range(shapes[0][0]):
            yield from _pairs(f"{name}.{index}", a[index], b[index])
        return
    raise AdapterError(
        f"{name}: factors of shape {list(shapes[0])} and {list(shapes[1])} share no rank",
        advice="expected A (r, d_in) and B (d_out, r), or A (d_in, r) and B (r, d_out)",
    )


def _oriented(a: Any, b: Any, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> _Pair | None:
    if len(of_a) != 2 or len(of_b) < 2 or 0 in (*of_a, *of_b):
        return None
    stored = _stored(a), _stored(b)
    peft = len(of_b) == 2 and of_a[0] == of_b[1]
    other = of_a[1] == of_b[0]
    if peft and (not other or of_a[0] <= of_a[1]):
        return _Pair(lambda: np.asarray(b), lambda: np.asarray(a), of_b[0], of_a[0], of_a[1], stored)
    if not other:
        return None
    width = math.prod(of_b[1:])
    return _Pair(
        lambda: np.asarray(b).reshape(of_b[0], width).T, lambda: np.asarray(a).T, width, of_a[1], of_a[0], stored
    )


def _module(name: str, pair: _Pair, scale: float) -> Module:
    return Module(
        name=name,
        kind="linear",
        shape=(pair.d_out, pair.d_in),
        r=pair.r,
        alpha=scale * pair.r,
        scale=scale,
        params=pair.r * (pair.d_in + pair.d_out),
        load=lambda: (pair.b(), pair.a()),
    )


def _adapter(factors: Mapping[str, tuple[Any, Any]], scale: Scale, form: Format = _IN_MEMORY) -> Adapter:
    """The adapter that these factors are."""
    modules, tensors = [], {}
    for key, (a, b) in factors.items():
        for name, pair in _pairs(key, a, b):
            modules.append(_module(name, pair, _scale(scale, key)))
            for side, (dtype, shape) in zip("ab", pair.stored, strict=True):
                nbytes = math.prod(shape) * np.dtype(dtype).itemsize
                tensors[f"{name}.lora_{side}"] = TensorInfo(_NAMES.get(dtype, "F32"), shape, 0, nbytes)
    if not modules:
        raise AdapterError("no pair of factors to audit", advice="give {name: (A, B)}")
    return Adapter(
        file_format=form,
        config=AdapterConfig(),
        modules=modules,
        roles=dict.fromkeys(tensors, "lora_pair"),
        tensors=tensors,
    )


def _stored(array: Any) -> tuple[str, tuple[int, ...]]:
    """Return an array's dtype and shape, without moving it off its device."""
    return str(array.dtype).removeprefix("torch."), tuple(map(int, array.shape))


def open_archive(path: Path) -> OpenAdapter:
    """The LoRA factors in a NumPy archive (.npz) or an HDF5 file (Keras' .lora.h5).

    Raises:
        AdapterError: it cannot be read, or holds no factors.
    """
    from gradience.adapters.formats import read_archive  # few have such files

    adapter = _adapter(_pairs_in(read_archive(path)), _UNSCALED, replace(_IN_MEMORY, name=path.suffix[1:]))
    note = f"the file does not say what multiplies A @ B; taken as {_UNSCALED}"
    return OpenAdapter(replace(adapter, notes=[note]), path=str(path), weights=str(path))
