"""The formats of adapters for image models: kohya's (sd-scripts), LyCORIS's, and diffusers'.

kohya and LyCORIS store `<name>.lora_down.weight` (r, in[, k, k]), `.lora_up.weight` (out, r[, 1, 1]) and a scalar
`.alpha`. A CP-decomposed convolution also has `.lora_mid.weight` (r, r, k, k). diffusers stores PEFT's lora_A and
lora_B under the name of a pipeline's component, and each component's config in the file's metadata. Without a config,
alpha is the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from gradience.adapters.config import AdapterConfig, ScalingRules, parse_config
from gradience.adapters.formats.assembly import Assembly, grouped, other_role, role_of
from gradience.adapters.kinds import as_float32
from gradience.adapters.kinds.lora import Pair, lora_module, pair_of
from gradience.adapters.kinds.products import product_module, unfolded, with_magnitude
from gradience.adapters.layout import (
    LOHA_FIELDS,
    LOKR_FIELDS,
    Adapter,
    Context,
    Files,
    Format,
    Group,
    Module,
    Role,
    Skipped,
    UnsuitableError,
    parse_key,
    reported,
)
from gradience.errors import AdapterError
from gradience.io.reading import decode_json
from gradience.io.safetensors import TensorSource
from gradience.schema.audit import LeftoverReason

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
def _kohya_module(ctx: Context, group: Group) -> Module | Skipped:
    alpha = _alpha(ctx, group)
    found = product_module(ctx, group, alpha) or _pair_module(ctx, group, alpha)
    return found if isinstance(found, Skipped) else with_magnitude(ctx, group, found)


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
        found = _diffusers_module(contexts.get(component, plain), group, configured=component in contexts)
        assembly.add(group, replace(found, name=f"{component}.{found.name}"))
    assumed = [] if configs else ["the file gives no alpha: it is taken to be the rank, as diffusers does"]
    return assembly.adapter(plain.config, [*assembly.dora_notes, *assumed])


@reported
def _diffusers_module(ctx: Context, group: Group, *, configured: bool) -> Module | Skipped:
    alpha = _alpha(ctx, group)
    keys = {field: key for field, key in group.keys.items() if field != "alpha"}
    found = lora_module(ctx, Group(group.module, keys=keys))
    if isinstance(found, Skipped) or (configured and alpha is None):
        return found
    if found.dense is not None:  # `dense` has a default config's scale built in
        raise UnsuitableError("DoRA without a config: its scale is not known", LeftoverReason.CONFIG)
    alpha = alpha or float(found.r)
    return replace(found, alpha=alpha, scale=alpha / found.r, config_r=None, rslora=False)


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


KOHYA: Final = Format("kohya", _is_kohya, _read_kohya, has_config=False, module_paths=False)
DIFFUSERS: Final = Format(
    "diffusers",
    lambda files: is_diffusers(files.source.tensors, files.source.metadata),
    _read_diffusers,
    has_config=False,
    component_prefix=True,
)
