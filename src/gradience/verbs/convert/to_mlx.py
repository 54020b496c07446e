"""MLX-LM's layout: `lora_a` (in, r) and `lora_b` (r, out), one rank and one scale for all modules.

`mlx_lm/tuner/utils.py`, load_adapters: LoRA layers are made of the modules that `keys` names, each of the config's
rank, and every tensor must have the shape that follows. So lower ranks are padded with zeros, which changes no
update, and where scales differ the ratio goes into `lora_b`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gradience.adapters.layout import Array, Module, parse_key
from gradience.base.weights import BaseWeights
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, planned
from gradience.verbs.convert.pieces import Experts, Piece
from gradience.verbs.convert.source import Source, dtype_name, padded

_KOHYA: Final[dict[str, str]] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "lora_transformer_": "transformer",
    "lycoris_": "lycoris",
}
_SHOWN: Final = 3


def components_of(source: Source) -> dict[str, list[Module]]:
    """Return the modules by the pipeline's component that they belong to; one nameless component elsewhere."""
    found: dict[str, list[Module]] = {}
    for module in source.layers:
        found.setdefault(_component(source, module), []).append(module)
    return found


def _component(source: Source, module: Module) -> str:
    if source.adapter.format == "diffusers":
        return module.name.partition(".")[0]
    if source.adapter.format == "kohya":
        dotted = module.name.partition(".")[0] if "." in module.name else "unnamed"
        return next((name for stem, name in _KOHYA.items() if module.name.startswith(stem)), dotted)
    return ""


def paths_of(source: Source, *, component: str | None, renames: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the target for each module of the component that is converted.

    Raises:
        AdapterError: there are several components, or names that only a base could tell.
    """
    found = components_of(source)
    if component is None and len(found) > 1:
        raise AdapterError(
            f"the file adapts {len(found)} models ({', '.join(found)}), and a target is one model's",
            advice="choose one with --component NAME, with its own folder as --base",
        )
    if not found and component is None:
        return {}
    chosen = next(iter(found)) if component is None else component
    if chosen not in found:
        raise AdapterError(f"no component {chosen!r} in the file", advice=f"it has: {', '.join(found) or 'none'}")
    modules = found[chosen]
    paths = _kohya_paths(modules, source.base) if source.adapter.format == "kohya" else _paths(source, modules)
    found_paths = {name: renamed(path, renames) for name, path in paths.items()}
    _refuse_twice(found_paths)
    return found_paths


def _paths(source: Source, modules: Iterable[Module]) -> dict[str, str]:
    if source.adapter.format == "diffusers":
        return {module.name: module.name.partition(".")[2] for module in modules}
    return {module.name: _peft_path(module) for module in modules}


def _peft_path(module: Module) -> str:
    """Return the module's path as PEFT's keys have it; the name itself in other formats."""
    key = next((found for name in module.keys.values() if (found := parse_key(name)) is not None), None)
    return key.module if key is not None else module.name


def _kohya_paths(modules: Sequence[Module], base: BaseWeights | None) -> dict[str, str]:
    """Return dotted paths for names whose dots became underscores, which only a list of the real names undoes."""
    dotted = {module.name: module.name.partition(".")[2] for module in modules if "." in module.name}
    if len(dotted) == len(modules):
        return dotted
    if base is None:
        raise AdapterError(
            "kohya writes dots as underscores, and only the base's own names tell which is which",
            advice="give the base model's folder with --base PATH",
        )
    known: dict[str, list[str]] = {}
    for file in base.files:
        for name in file.tensors:
            path = name.removesuffix(".weight")
            known.setdefault(path.replace(".", "_"), []).append(path)
    paths: dict[str, str] = {}
    missing: list[str] = []
    for module in modules:
        stem = next((s for s in _KOHYA if module.name.startswith(s)), "")
        hits = known.get(module.name.removeprefix(stem), [])
        if len(hits) == 1:
            paths[module.name] = hits[0]
        else:
            missing.append(module.name)
    if missing:
        raise AdapterError(
            f"{len(missing)} of {len(modules)} modules are not in the base under their names "
            f"({', '.join(missing[:_SHOWN])})",
            advice="give the base whose names the adapter was trained with (for a UNet: the same layout of blocks)",
        )
    return paths


def parsed_renames(renames: Iterable[str]) -> dict[str, str]:
    """Return prefixes to replace, from OLD=NEW.

    Raises:
        AdapterError: one has no `=`.
    """
    found: dict[str, str] = {}
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not equals or not old:
            raise AdapterError(f"no prefix to replace in {rename!r}", advice="write --rename OLD=NEW")
        found[old.rstrip(".")] = new.rstrip(".")
    return found


def renamed(path: str, renames: Mapping[str, str]) -> str:
    """Return the path with the first prefix that fits replaced, on a dot."""
    for old, new in renames.items():
        if path == old or path.startswith(f"{old}."):
            return (new + path[len(old) :]).removeprefix(".")
    return path


def _refuse_twice(paths: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, path in paths.items():
        if first.setdefault(path, name) != name:
            raise AdapterError(f"{first[path]} and {name} would both be called {path}", advice="correct --rename")


MLX_WEIGHTS: Final = "adapters.safetensors"
_ALL_LAYERS: Final = -1  # MLX-LM's own word for it; `keys` names the modules by their whole path


def mlx_tensors(pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> list[PlannedTensor]:
    """Return the tensors of the modules.

    Raises:
        AdapterError: a module is a convolution, which MLX-LM has no LoRA layer for.
    """
    _refuse(pieces, experts)
    shared = _shared(pieces, experts)
    return [
        *(tensor for piece in pieces for tensor in _tensors(piece, *shared)),
        *(tensor for stack in experts for tensor in _expert_tensors(stack, *shared)),
    ]


def _refuse(pieces: Sequence[Piece], experts: Sequence[Experts]) -> None:
    if experts and any(piece.magnitude is not None for piece in pieces):
        raise AdapterError(f"{experts[0].target}: MLX-LM has no DoRA for experts")
    for piece in pieces:
        if piece.kernel:
            raise AdapterError(f"{piece.module.name}: MLX-LM has no LoRA layer for a convolution")
    with_magnitude = sum(piece.magnitude is not None for piece in pieces)
    if with_magnitude not in {0, len(pieces)}:
        without = next(piece.module.name for piece in pieces if piece.magnitude is None)
        raise AdapterError(f"{without}: no DoRA, and MLX-LM makes all modules of an adapter DoRA or none")


def _tensors(piece: Piece, rank: int, scale: float) -> list[PlannedTensor]:
    out, inner = piece.shape
    of_a, of_b = piece.dtypes
    own = piece.part.scale
    folded = own != scale
    ratio = own / scale if scale else 0.0

    def lora_a() -> Array:
        return padded(piece.a().T, (inner, rank))

    def lora_b() -> Array:
        turned = piece.b().T
        return padded(turned.astype(np.float64) * ratio if folded else turned, (rank, out))

    found = [
        planned(f"{piece.path}.lora_a", dtype_name(of_a), (inner, rank), lora_a),
        planned(f"{piece.path}.lora_b", _wide(of_b, folded=folded), (rank, out), lora_b),
    ]
    if piece.magnitude is not None:
        data = piece.magnitude()
        found.append(planned(f"{piece.path}.m", dtype_name(data.dtype), data.shape, piece.magnitude))
    return found


def _expert_tensors(stack: Experts, rank: int, scale: float) -> list[PlannedTensor]:
    """Return `lora_a` (E, r, in) and `lora_b` (E, out, r): for experts MLX-LM turns nothing."""
    out, inner = stack.shape
    folded = stack.scale != scale
    ratio = stack.scale / scale if scale else 0.0
    shape_a, shape_b = (stack.stacked, rank, inner), (stack.stacked, out, rank)

    def lora_b() -> Array:
        b = stack.load()[0]
        return padded(b.astype(np.float64) * ratio if folded else b, shape_b)

    return [
        planned(f"{stack.target}.lora_a", dtype_name(stack.dtype), shape_a, lambda: padded(stack.load()[1], shape_a)),
        planned(f"{stack.target}.lora_b", _wide(stack.dtype, folded=folded), shape_b, lora_b),
    ]


def _wide(dtype: np.dtype[Any], *, folded: bool) -> str:
    """Return the type to store: at least float32 where the numbers are no longer the file's own."""
    return "F32" if folded and dtype.itemsize < np.dtype(np.float32).itemsize else dtype_name(dtype)


def _shared(pieces: Sequence[Piece], experts: Sequence[Experts]) -> tuple[int, float]:
    """Return the one rank and the one scale of the adapter: the largest, and the commonest."""
    sizes = _sizes(pieces, experts)
    return max(rank for rank, _ in sizes), Counter(scale for _, scale in sizes).most_common(1)[0][0]


def _sizes(pieces: Sequence[Piece], experts: Sequence[Experts]) -> list[tuple[int, float]]:
    return [
        *((piece.part.rank, piece.part.scale) for piece in pieces),
        *((stack.rank, stack.scale) for stack in experts),
    ]


def mlx_config(source: Source, pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> dict[str, Any]:
    """Return MLX-LM's `adapter_config.json`: what `load_adapters` reads, and the base's name."""
    dropout = source.raw.get("lora_dropout", 0.0)
    rank, scale = _shared(pieces, experts)
    return {
        "fine_tune_type": "dora" if any(piece.magnitude is not None for piece in pieces) else "lora",
        "model": source.adapter.config.base_model_name_or_path,
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": dropout if isinstance(dropout, int | float) else 0.0,
            "keys": [*(piece.path for piece in pieces), *(stack.target for stack in experts)],
        },
    }


def mlx_notes(pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> list[str]:
    """Return what differs in how the factors are stored, though not in the update."""
    rank, scale = _shared(pieces, experts)
    sizes = _sizes(pieces, experts)
    padded = sum(own < rank for own, _ in sizes)
    folded = sum(own != scale for _, own in sizes)
    notes = []
    if padded:
        notes.append(f"MLX-LM takes one rank: {padded} modules of a lower one are padded with zeros to {rank}")
    if folded:
        notes.append(f"MLX-LM takes one scale: in {folded} modules the ratio to {scale:g} goes into lora_b")
    return notes
