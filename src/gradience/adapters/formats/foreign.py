"""The formats of other programs: MLX-LM and torchtune, kohya's (sd-scripts) and LyCORIS's, and diffusers'.

MLX-LM (`mlx_lm/tuner/lora.py` and `dora.py`, fuse) multiplies from the right, so its lower-case `lora_a` is (in, r) and
`lora_b` is (r, out). Its `scale` is the whole factor, not divided by the rank. torchtune's factors have PEFT's shapes.

kohya and LyCORIS store `<name>.lora_down.weight` (r, in[, k, k]), `.lora_up.weight` (out, r[, 1, 1]) and a scalar
`.alpha`. A CP-decomposed convolution also has `.lora_mid.weight` (r, r, k, k). diffusers stores PEFT's lora_A and
lora_B under the name of a pipeline's component, and each component's config in the file's metadata. Without a config,
alpha is the rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from gradience.adapters import kinds
from gradience.adapters.config import LARGEST_ALPHA, AdapterConfig, ScalingRules, parse_config
from gradience.adapters.formats.assembly import Assembly, grouped, other_role, role_of, whole_adapter
from gradience.adapters.kinds import as_float32, flipped
from gradience.adapters.kinds.lora import Pair, lora_module, named, pair_of, scaled
from gradience.adapters.kinds.products import product_module, unfolded, with_magnitude
from gradience.adapters.layout import (
    LOHA_FIELDS,
    LOKR_FIELDS,
    Adapter,
    Context,
    Files,
    Format,
    Group,
    LeftoverTensor,
    Module,
    ReadModule,
    UnsuitableError,
    parse_key,
    reported,
)
from gradience.errors import AdapterError
from gradience.io import natural_key
from gradience.io.reading import decode_json
from gradience.io.safetensors import TensorSource
from gradience.schema.audit import LeftoverReason, Role

_STACKED: Final = 3  # axes
# The layers that become a LoRAEmbedding in MLX-LM, where lm_head is linear.
_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embedding"})

_ENDINGS: Final = {
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_mid.weight": "lora_mid",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    ".dora_scale": "magnitude",
    ".alpha": "alpha",
    **{f".{field}": field for field in (*LOHA_FIELDS, *LOKR_FIELDS)},
}
_FACTORS: Final = tuple(ending for ending, field in _ENDINGS.items() if field in {"lora_A", "lora_B"})
_KOHYA_STEMS: Final = ("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")
_COMPONENTS: Final = (
    "transformer.",
    "unet.",
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "diffusion_model.",
)
_METADATA: Final = "lora_adapter_metadata"
_CORE: Final = 4  # axes


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
    build: Callable[[Context, Group], ReadModule | Iterable[ReadModule]],
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
    why = LeftoverTensor("*", "fine_tune_type is full: whole weights, no adapter", LeftoverReason.WHOLE_WEIGHTS)
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
            kind="dora" if magnitude else "embedding" if embedding else "linear",
            shape=(pair.out, pair.inner) if embedding else (pair.inner, pair.out),
            r=pair.r,
            alpha=scale * pair.r,
            scale=scale,
            load=load,
            config_r=config_r,
            dense=kinds.dora(load, scale, magnitude, axis=1) if magnitude else None,
            magnitude=magnitude,
            **named(ctx, group),
        )
    ]


def _mlx_experts(ctx: Context, group: Group, scale: float, config_r: int | None) -> list[Module]:
    """The modules of a LoRASwitchLinear, one for each expert: lora_a is (E, r, in), lora_b is (E, out, r)."""
    a, b = ctx.shape(group, "lora_a"), ctx.shape(group, "lora_b")
    if len(b) != _STACKED or a[0] != b[0] or a[1] != b[2]:
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: expected (E, r, in) and (E, out, r)")
    read_a, read_b = ctx.reader(group, "lora_a"), ctx.reader(group, "lora_b")
    return [
        Module(
            kind="expert",
            shape=(b[1], a[2]),
            r=a[1],
            alpha=scale * a[1],
            scale=scale,
            load=ctx.expert(lambda: (read_b(), read_a()), group.module, e),
            config_r=config_r,
            expert=e,
            **(named(ctx, group) | {"name": f"{group.module}[{e}]", "params": a[1] * (a[2] + b[1])}),
        )
        for e in range(a[0])
    ]


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
        kind="dora" if magnitude else "linear",
        shape=(pair.out, pair.inner),
        r=pair.r,
        load=pair.load,
        dense=kinds.dora(pair.load, s.scale, magnitude, axis=1) if magnitude else None,
        magnitude=magnitude,
        **scaled(ctx, group, s),
    )


MLX: Final = Format("mlx", _ends(".lora_a", ".lora_b"), _read_mlx, embeds_by_name=True)
MLX_FULL: Final = Format("mlx", _is_full, _read_full, embeds_by_name=True)
TORCHTUNE: Final = Format("torchtune", _ends(".lora_a.weight", ".lora_b.weight"), _read_torchtune)


def _is_kohya(files: Files) -> bool:
    """Whether the tensors are named as sd-scripts or older diffusers name them."""
    return any(key.endswith(_FACTORS) or key.startswith(_KOHYA_STEMS) for key in files.source.tensors)


def is_diffusers(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether diffusers saved the file: names begin with a component, or the metadata holds components' configs."""
    return _METADATA in metadata or any(key.startswith(_COMPONENTS) for key in keys)


def _read_kohya(files: Files) -> Adapter:
    """Read a kohya adapter. A config beside it does not affect the modules."""
    ctx = _plain_context(files.source)
    groups, roles = grouped(files.source, _ENDINGS)
    for key, role in roles.items():
        if role == "unknown" and key.startswith(_KOHYA_STEMS):
            roles[key] = "not_analysed"
    assembly = Assembly(KOHYA, files.source, roles)
    for group in groups:
        assembly.add(group, _kohya_module(ctx, group))
    return assembly.adapter(files.optional_config(), assembly.dora_notes)


def _plain_context(source: TensorSource) -> Context:
    return Context(source, AdapterConfig(), ScalingRules(AdapterConfig()))


@reported
def _kohya_module(ctx: Context, group: Group) -> Module | LeftoverTensor:
    alpha = _alpha(ctx, group)
    module = product_module(ctx, group, alpha) or _pair_module(ctx, group, alpha)
    return module if isinstance(module, LeftoverTensor) else with_magnitude(ctx, group, module)


def _pair_module(ctx: Context, group: Group, alpha: float | None) -> Module:
    ctx.require(group, "lora_A", "lora_B")
    pair = _cp_pair(ctx, group) if "lora_mid" in group.keys else pair_of(ctx, group, "lora_A", "lora_B")
    alpha = alpha or float(pair.r)  # a missing alpha, or 0, means the rank (sd-scripts, networks/lora.py)
    return Module(
        name=group.module,
        kind="conv" if pair.axes > 2 else "linear",
        shape=(pair.out, pair.inner),
        r=pair.r,
        alpha=alpha,
        scale=alpha / pair.r,
        params=ctx.size(group, "alpha"),
        load=pair.load,
        base_name=f"{group.module}.weight" if "." in group.module else None,
        keys=group.keys,
    )


def _alpha(ctx: Context, group: Group) -> float | None:
    """The scalar `.alpha` of a group, None if it has none.

    Raises:
        UnsuitableError: alpha is not one finite number.
    """
    if "alpha" not in group.keys:
        return None
    entries = math.prod(ctx.shape(group, "alpha"))
    if entries != 1:
        raise UnsuitableError(f"alpha has {entries} entries, expected one")
    value = float(ctx.reader(group, "alpha")().reshape(-1)[0])
    if not math.isfinite(value):
        raise UnsuitableError("alpha is not finite", LeftoverReason.CONFIG)
    return value


def _cp_pair(ctx: Context, group: Group) -> Pair:
    """The pair of a CP-decomposed convolution: b is up (out, r), a is mid times down (r, in k k)."""
    ctx.require(group, "lora_mid")
    down, up, mid = (ctx.shape(group, name) for name in ("lora_A", "lora_B", "lora_mid"))
    flat = all(n == 1 for n in (*down[2:], *up[2:]))
    if len(mid) != _CORE or min(len(down), len(up)) < 2 or not flat or mid[:2] != (up[1], down[0]):
        raise UnsuitableError(
            f"factors of shape {list(up)}, {list(mid)} and {list(down)}: expected (out, r), (r, r, k, k), (r, in)"
        )
    out, r, inner = up[0], up[1], down[1] * mid[2] * mid[3]
    unfold = unfolded(mid, inner, ctx.reader(group, "lora_mid"), ctx.reader(group, "lora_A"))
    read_up = ctx.reader(group, "lora_B")
    return Pair(out, inner, r, _CORE, lambda: (as_float32(read_up()).reshape(out, r), unfold()))


def _read_diffusers(files: Files) -> Adapter:
    """Read a diffusers adapter."""
    source, plain = files.source, _plain_context(files.source)
    configs = _component_configs(source)
    contexts = {name: Context(source, config, ScalingRules(config)) for name, config in configs.items()}
    groups: dict[tuple[str, str], Group] = {}
    roles: dict[str, Role] = {}
    for name in source.tensors:
        key = parse_key(name)
        if name.endswith(".alpha"):
            path, field = name.removesuffix(".alpha"), "alpha"
        elif key is not None:
            path, field = key.module, key.field + (".bias" if key.leaf == "bias" else "")
        else:
            roles[name] = other_role(name, plain.config)
            continue
        component, _, module = path.partition(".")
        groups.setdefault((component, module), Group(module)).keys[field] = name
        roles[name] = role_of(field)
    assembly = Assembly(DIFFUSERS, source, roles)
    for (component, _), group in groups.items():
        built = _diffusers_module(contexts.get(component, plain), group, configured=component in contexts)
        assembly.add(group, replace(built, name=f"{component}.{built.name}"))
    assumed = [] if configs else ["the file gives no alpha: it is taken to be the rank, as diffusers does"]
    return assembly.adapter(plain.config, [*assembly.dora_notes, *assumed])


@reported
def _diffusers_module(ctx: Context, group: Group, *, configured: bool) -> Module | LeftoverTensor:
    alpha = _alpha(ctx, group)
    keys = {field: key for field, key in group.keys.items() if field != "alpha"}
    # Without alpha, which `named` would count as a parameter.
    module = lora_module(ctx, Group(group.module, keys=keys))
    if isinstance(module, LeftoverTensor) or (configured and alpha is None):
        return module
    if module.dense is not None:  # `dense` has a default config's scale built in
        raise UnsuitableError("DoRA without a config: its scale is not known", LeftoverReason.CONFIG)
    alpha = alpha or float(module.r)
    return replace(module, alpha=alpha, scale=alpha / module.r, config_r=None, rslora=False)


def _component_configs(source: TensorSource) -> dict[str, AdapterConfig]:
    """The config of each component in the metadata, whose keys are `<component>.<field>`; none without metadata."""
    text = source.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        flat = decode_json(text, dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{source.path}: the metadata's {_METADATA} is not a JSON object: {error}") from error
    fields: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        fields.setdefault(component, {})[name] = value
    return {
        component: parse_config(msgspec.json.encode(values), f"{source.path}: {_METADATA} of {component}")
        for component, values in fields.items()
    }


KOHYA: Final = Format("kohya", _is_kohya, _read_kohya, module_paths=False)
DIFFUSERS: Final = Format(
    "diffusers",
    lambda files: is_diffusers(files.source.tensors, files.source.metadata),
    _read_diffusers,
    component_prefix=True,
)
