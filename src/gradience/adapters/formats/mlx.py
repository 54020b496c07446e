"""The formats of MLX-LM and torchtune: lower-case `lora_a` and `lora_b`.

MLX-LM (`mlx_lm/tuner/lora.py` and `dora.py`, fuse) multiplies from the right, so `lora_a` is (in, r) and `lora_b` is
(r, out). Its `scale` is the whole factor, not divided by the rank. torchtune's factors have PEFT's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gradience.adapters import kinds
from gradience.adapters.config import LARGEST_ALPHA, AdapterConfig, ScalingRules
from gradience.adapters.formats.assembly import Assembly, grouped, whole_adapter
from gradience.adapters.kinds import flipped
from gradience.adapters.kinds.lora import common, pair_of
from gradience.adapters.layout import (
    Adapter,
    Array,
    Context,
    Files,
    Format,
    Found,
    Group,
    LoadFactors,
    Module,
    Skipped,
    UnsuitableError,
    reported,
)
from gradience.errors import AdapterError
from gradience.io import natural_key
from gradience.schema.audit import LeftoverReason

_STACKED: Final = 3  # axes
# The layers that become a LoRAEmbedding in MLX-LM, where lm_head is linear.
_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embedding"})


def is_embedding_layer(module: str) -> bool:
    """Whether MLX-LM makes the module of that path a LoRAEmbedding, not a LoRALinear."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def _ends(*endings: str) -> Callable[[Files], bool]:
    """A test whether any tensor's name has one of these endings."""
    return lambda files: any(key.endswith(endings) for key in files.source.tensors)


def _read_mlx(files: Files) -> Adapter:
    """Read an MLX-LM adapter.

    Raises:
        AdapterError: the config gives no scale; nothing else in the files does.
    """
    config = files.read_config()
    parameters = config.lora_parameters or {}
    scale, rank = parameters.get("scale"), parameters.get("rank")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not abs(scale) <= LARGEST_ALPHA:
        raise AdapterError(
            f"the tensors of {files.source.path} are MLX-LM's, but the config gives no lora_parameters.scale",
            advice="give MLX-LM's own adapter_config.json with --adapter-config",
        )
    named = AdapterConfig(base_model_name_or_path=config.model, fine_tune_type=config.fine_tune_type)
    config_r = rank if type(rank) is int else None
    endings = {".lora_a": "lora_a", ".lora_b": "lora_b", ".m": "m"}
    return _read(MLX, files, named, endings, lambda ctx, group: _mlx_modules(ctx, group, float(scale), config_r))


def _read(
    file_format: Format,
    files: Files,
    config: AdapterConfig,
    endings: dict[str, str],
    build: Callable[[Context, Group], Found | Iterable[Found]],
) -> Adapter:
    ctx = Context(files.source, config, ScalingRules(config))
    groups, roles = grouped(files.source, endings)
    assembly = Assembly(file_format, files.source, roles)
    for group in sorted(groups, key=lambda group: natural_key(group.module)):
        assembly.add(group, build(ctx, group))
    return assembly.adapter(config, assembly.dora_notes)


def _is_full(files: Files) -> bool:
    """Whether MLX-LM saved a fine-tune of whole weights (`fine_tune_type: full`)."""
    config = files.optional_config()
    return config.peft_type is None and config.fine_tune_type == "full"


def _read_full(files: Files) -> Adapter:
    """Read a fine-tune of whole weights, as an adapter without modules."""
    why = Skipped("*", "fine_tune_type is full: whole weights, no adapter", LeftoverReason.WHOLE_WEIGHTS)
    roles = dict.fromkeys(files.source.tensors, "full_module")
    return whole_adapter(MLX_FULL, files.optional_config(), files.source, roles, why)  # type: ignore[arg-type]  # a Role


@reported
def _mlx_modules(ctx: Context, group: Group, scale: float, config_r: int | None) -> list[Module]:
    ctx.require(group, "lora_a", "lora_b")
    if len(ctx.shape(group, "lora_a")) == _STACKED:
        return _mlx_experts(ctx, group, scale, config_r)
    pair = pair_of(ctx, group, "lora_b", "lora_a")  # (in, r) (r, out): the transposed update
    if pair.axes != 2:
        raise UnsuitableError("factors with more than two axes")
    embedding = is_embedding_layer(group.module)
    load = pair.load if embedding else flipped(pair.load)
    magnitude = ctx.reader(group, "m") if "m" in group.keys else None
    return [
        Module(
            name=group.module,
            kind="dora" if magnitude else "embedding" if embedding else "linear",
            shape=(pair.out, pair.inner) if embedding else (pair.inner, pair.out),
            r=pair.r,
            alpha=scale * pair.r,
            scale=scale,
            params=ctx.size(group),
            load=load,
            config_r=config_r,
            base_name=f"{group.module}.weight",
            dense=kinds.dora(load, scale, magnitude, axis=1) if magnitude else None,
            magnitude=magnitude,
            keys=group.keys,
        )
    ]


def _mlx_experts(ctx: Context, group: Group, scale: float, config_r: int | None) -> list[Module]:
    """The modules of a LoRASwitchLinear, one for each expert: lora_a is (E, r, in), lora_b is (E, out, r)."""
    a, b = ctx.shape(group, "lora_a"), ctx.shape(group, "lora_b")
    if len(b) != _STACKED or a[0] != b[0] or a[1] != b[2]:
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: expected (E, r, in) and (E, out, r)")
    return [
        Module(
            name=f"{group.module}[{e}]",
            kind="expert",
            shape=(b[1], a[2]),
            r=a[1],
            alpha=scale * a[1],
            scale=scale,
            params=a[1] * (a[2] + b[1]),
            load=_expert(ctx, group, e),
            config_r=config_r,
            base_name=f"{group.module}.weight",
            expert=e,
            keys=group.keys,
        )
        for e in range(a[0])
    ]


def _expert(ctx: Context, group: Group, e: int) -> LoadFactors:
    def load() -> tuple[Array, Array]:
        held = ctx.kept.get("stack")
        if held is None or held[0] != group.module:
            ctx.kept.clear()
            both = ctx.reader(group, "lora_b")(), ctx.reader(group, "lora_a")()
            held = ctx.kept["stack"] = (group.module, *both)
        return held[1][e], held[2][e]

    return load


def _read_torchtune(files: Files) -> Adapter:
    """Read an adapter that torchtune saved under its own names; the scale alpha / r comes from the config."""
    endings = {".lora_a.weight": "lora_a", ".lora_b.weight": "lora_b", ".magnitude": "m"}
    return _read(TORCHTUNE, files, files.read_config(), endings, _torchtune_module)


@reported
def _torchtune_module(ctx: Context, group: Group) -> Module:
    ctx.require(group, "lora_a", "lora_b")
    pair = pair_of(ctx, group, "lora_a", "lora_b")
    s = ctx.rules.of(group.module, pair.r)
    magnitude = ctx.reader(group, "m") if "m" in group.keys else None
    return Module(
        name=group.module,
        kind="dora" if magnitude else "linear",
        shape=(pair.out, pair.inner),
        r=pair.r,
        alpha=s.alpha,
        scale=s.scale,
        params=ctx.size(group),
        load=pair.load,
        base_name=f"{group.module}.weight",
        dense=kinds.dora(pair.load, s.scale, magnitude, axis=1) if magnitude else None,
        magnitude=magnitude,
        **common(ctx, group, s),
    )


MLX: Final = Format("mlx", _ends(".lora_a", ".lora_b"), _read_mlx, embeds_by_name=True)
MLX_FULL: Final = Format("mlx", _is_full, _read_full, embeds_by_name=True)
TORCHTUNE: Final = Format("torchtune", _ends(".lora_a.weight", ".lora_b.weight"), _read_torchtune, convertible=False)
