"""MLX-LM's and torchtune's own layouts: lower-case `lora_a` and `lora_b`.

MLX-LM (`mlx_lm/tuner/lora.py` and `dora.py`, fuse) multiplies from the right: `lora_a` is (in, r), `lora_b`
(r, out), and its `scale` is the whole factor, not divided by the rank. torchtune stores what PEFT does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.kinds import dense
from gradience.adapters.kinds.lora import common, pair_of, transposed
from gradience.adapters.layout import Adapter, Array, Context, Files, Format, Group, LoadFactors, Module, Role, Skipped
from gradience.adapters.names import explained, natural_key
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource
from gradience.schema.audit import LeftoverReason

_STACKED: Final = 3
# In MLX-LM lm_head is linear; these are the layers that become LoRAEmbedding.
_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embedding"})


def is_embedding_layer(module: str) -> bool:
    """Return whether MLX-LM makes a LoRAEmbedding of the module of that path, rather than a LoRALinear."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def _ends(*endings: str) -> Callable[[Files], bool]:
    """Whether some tensor's name ends so."""
    return lambda files: any(key.endswith(endings) for key in files.source.tensors)


def _read_mlx(files: Files) -> Adapter:
    """The modules of an MLX-LM adapter.

    Raises:
        AdapterError: the config gives no scale, which nothing else does.
    """
    source, config = files.source, files.read_config()
    scale = (config.lora_parameters or {}).get("scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        raise AdapterError(
            f"the tensors of {source.path} are MLX-LM's, but the config gives no lora_parameters.scale",
            advice="give MLX-LM's own adapter_config.json with --adapter-config",
        )
    rank = (config.lora_parameters or {}).get("rank")
    config_r = rank if type(rank) is int else None
    named = AdapterConfig(base_model_name_or_path=config.model, fine_tune_type=config.fine_tune_type)
    groups, roles = _gather(source, {"lora_a": "lora_a", "lora_b": "lora_b", "m": "m"})
    ctx = Context(source, named, ScalingRules(named))
    return _adapter(ctx, MLX, groups, roles, lambda group: _mlx_modules(ctx, group, float(scale), config_r))


def _is_full(files: Files) -> bool:
    """Whether MLX-LM saved a fine-tune of whole weights (`fine_tune_type: full`)."""
    config = files.optional_config()
    return config.peft_type is None and config.fine_tune_type == "full"


def _read_full(files: Files) -> Adapter:
    """A fine-tune of whole weights: no modules."""
    source = files.source
    roles: dict[str, Role] = dict.fromkeys(source.tensors, "full_module")
    why = Skipped("*", "fine_tune_type is full: whole weights, no adapter", LeftoverReason.WHOLE_WEIGHTS)
    return Adapter(MLX_FULL, files.optional_config(), [], roles, source.tensors, [why], [], [source.path])


def _gather(source: TensorSource, endings: dict[str, str]) -> tuple[list[Group], dict[str, Role]]:
    """Return groups by module; `endings` maps the end of a name to a field."""
    groups: dict[str, Group] = {}
    roles: dict[str, Role] = {}
    for key in source.tensors:
        ending = next((end for end in endings if key.endswith(f".{end}")), None)
        if ending is None:
            roles[key] = "unknown"
            continue
        module = key.removesuffix(f".{ending}")
        groups.setdefault(module, Group(module)).keys[endings[ending]] = key
        roles[key] = "magnitude" if endings[ending] == "m" else "lora_pair"
    return list(groups.values()), roles


def _adapter(
    ctx: Context,
    file_format: Format,
    groups: list[Group],
    roles: dict[str, Role],
    modules_of: Callable[[Group], list[Module | Skipped]],
) -> Adapter:
    modules: list[Module] = []
    skipped: list[Skipped] = []
    unplaced = dict(roles)
    for group in sorted(groups, key=lambda g: natural_key(g.module)):
        found = modules_of(group)
        modules += [one for one in found if isinstance(one, Module)]
        skipped += [one for one in found if isinstance(one, Skipped)]
        if not any(isinstance(one, Module) for one in found):
            roles.update(dict.fromkeys(group.keys.values(), "not_analysed"))
        for key in group.keys.values():
            unplaced.pop(key)
    dora = "DoRA: the numbers below describe s B A, before the rescaling by magnitude, which needs the base"
    return Adapter(
        file_format=file_format,
        config=ctx.config,
        modules=modules,
        roles=roles,
        tensors=ctx.source.tensors,
        skipped=[*skipped, *explained(unplaced)],
        notes=[dora] if any(m.kind == "dora" for m in modules) else [],
        weights=[ctx.source.path],
    )


def _mlx_modules(ctx: Context, group: Group, scale: float, config_r: int | None) -> list[Module | Skipped]:
    if (reason := ctx.misuse(group, "lora_a", "lora_b")) is not None:
        return [reason]
    if len(ctx.info(group, "lora_a").shape) == _STACKED:
        return _mlx_experts(ctx, group, scale, config_r)
    pair = pair_of(ctx, group, "lora_b", "lora_a")  # (in, r) (r, out): the transposed update
    if isinstance(pair, str) or pair.axes != 2:  # a matrix
        return [Skipped(ctx.name(group), pair if isinstance(pair, str) else "factors with more than two axes")]
    embedding = is_embedding_layer(group.module)
    load = pair.load if embedding else transposed(pair.load)
    magnitude = ctx.reader(group, "m") if "m" in group.keys else None
    return [
        Module(
            name=group.module,
            kind="dora" if magnitude else "embedding" if embedding else "linear",
            shape=(pair.out, pair.inner) if embedding else (pair.inner, pair.out),
            r=pair.r,
            alpha=scale * pair.r,
            scale=scale,
            params=sum(ctx.info(group, name).size for name in group.keys),
            load=load,
            config_r=config_r,
            base_name=f"{group.module}.weight",
            dense=dense.dora(load, scale, magnitude, axis=1) if magnitude else None,
            magnitude=magnitude,
            keys=group.keys,
        )
    ]


def _mlx_experts(ctx: Context, group: Group, scale: float, config_r: int | None) -> list[Module | Skipped]:
    """LoRASwitchLinear: lora_a (E, r, in), lora_b (E, out, r)."""
    a, b = ctx.info(group, "lora_a").shape, ctx.info(group, "lora_b").shape
    if len(b) != _STACKED or a[0] != b[0] or a[1] != b[2]:
        return [Skipped(group.module, f"factors of shape {list(a)} and {list(b)}: expected (E, r, in) and (E, out, r)")]
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
    """The modules of an adapter that torchtune saved in its own names; alpha / r from the config."""
    source, config = files.source, files.read_config()
    endings = {"lora_a.weight": "lora_a", "lora_b.weight": "lora_b", "magnitude": "m"}
    groups, roles = _gather(source, endings)
    ctx = Context(source, config, ScalingRules(config))
    return _adapter(ctx, TORCHTUNE, groups, roles, lambda group: [_torchtune_module(ctx, group)])


def _torchtune_module(ctx: Context, group: Group) -> Module | Skipped:
    if (reason := ctx.misuse(group, "lora_a", "lora_b")) is not None:
        return reason
    pair = pair_of(ctx, group, "lora_a", "lora_b")
    if isinstance(pair, str):
        return Skipped(group.module, pair)
    s = ctx.rules.of(group.module, pair.r)
    magnitude = ctx.reader(group, "m") if "m" in group.keys else None
    return Module(
        name=group.module,
        kind="dora" if magnitude else "linear",
        shape=(pair.out, pair.inner),
        r=pair.r,
        alpha=s.alpha,
        scale=s.scale,
        params=sum(ctx.info(group, name).size for name in group.keys),
        load=pair.load,
        base_name=f"{group.module}.weight",
        dense=dense.dora(pair.load, s.scale, magnitude, axis=1) if magnitude else None,
        magnitude=magnitude,
        **common(ctx, group, s),
    )


MLX: Final = Format("mlx", _ends(".lora_a", ".lora_b"), _read_mlx, embeds_by_name=True)
MLX_FULL: Final = Format("mlx", _is_full, _read_full, embeds_by_name=True)
TORCHTUNE: Final = Format("torchtune", _ends(".lora_a.weight", ".lora_b.weight"), _read_torchtune, convertible=False)
