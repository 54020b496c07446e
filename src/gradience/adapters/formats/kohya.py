"""Image adapters: kohya's (sd-scripts) and diffusers' names.

kohya, LyCORIS too: `<name>.lora_down.weight` (r, in[, k, k]), `.lora_up.weight` (out, r[, 1, 1]), a scalar `.alpha`,
and for a CP-decomposed convolution `.lora_mid.weight` (r, r, k, k). diffusers: PEFT's lora_A and lora_B under the
name of a pipeline's component, its config in the file's metadata; without one, alpha is the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from gradience.adapters.config import AdapterConfig, ScalingRules, parse_config
from gradience.adapters.kinds.lora import Pair, lora_module, pair_of, wide
from gradience.adapters.kinds.products import FIELDS, product_module, with_magnitude
from gradience.adapters.layout import (
    MOST_ELEMENTS,
    Adapter,
    Array,
    Context,
    Files,
    Format,
    Group,
    Module,
    Role,
    Skipped,
    parse_key,
)
from gradience.adapters.names import explained, natural_key, other_role
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource

_ENDINGS: Final = (
    (".lora_down.weight", "lora_A"),
    (".lora_up.weight", "lora_B"),
    (".lora_mid.weight", "lora_mid"),
    (".lora.down.weight", "lora_A"),
    (".lora.up.weight", "lora_B"),
    ("_lora.down.weight", "lora_A"),
    ("_lora.up.weight", "lora_B"),
    (".lora_linear_layer.down.weight", "lora_A"),
    (".lora_linear_layer.up.weight", "lora_B"),
    (".dora_scale", "magnitude"),
    (".alpha", "alpha"),
    *((f".{field}", field) for field in FIELDS),
)
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
_CORE: Final = 4


def _is_kohya(files: Files) -> bool:
    """Whether the tensors are named as sd-scripts or older diffusers name them."""
    pairs = tuple(ending for ending, field in _ENDINGS if field in {"lora_A", "lora_B"})
    return any(key.endswith(pairs) or key.startswith(_KOHYA_STEMS) for key in files.source.tensors)


def is_diffusers(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Return whether the file is one that diffusers saved: components, or its metadata."""
    return _METADATA in metadata or any(key.startswith(_COMPONENTS) for key in keys)


def _read_kohya(files: Files) -> Adapter:
    """The modules of a kohya adapter; a config beside it is only carried along."""
    source, config = files.source, files.optional_config()
    groups: dict[str, Group] = {}
    roles: dict[str, Role] = {}
    for key in source.tensors:
        ending, field = next(((end, what) for end, what in _ENDINGS if key.endswith(end)), ("", ""))
        if not field:
            roles[key] = "not_analysed" if key.startswith(_KOHYA_STEMS) else "unknown"
            continue
        stem = key.removesuffix(ending)
        groups.setdefault(stem, Group(stem)).keys[field] = key
        roles[key] = {"alpha": "scale", "magnitude": "magnitude"}.get(field, "lora_pair")  # type: ignore[assignment]
    ctx = Context(source, AdapterConfig(), ScalingRules(AdapterConfig()))
    found = [(group, _kohya_module(ctx, group)) for group in groups.values()]
    adapter = _adapter(KOHYA, ctx, found, roles)
    return replace(adapter, config=config)


def _adapter(
    file_format: Format, ctx: Context, found: list[tuple[Group, Module | Skipped]], roles: dict[str, Role]
) -> Adapter:
    modules = sorted((one for _, one in found if isinstance(one, Module)), key=lambda m: natural_key(m.name))
    for group, one in found:
        if isinstance(one, Skipped):
            roles.update(dict.fromkeys(group.keys.values(), "not_analysed"))
    placed = {key for group, _ in found for key in group.keys.values()}
    dora = "DoRA: the numbers below describe s B A, before the rescaling by magnitude, which needs the base"
    return Adapter(
        file_format=file_format,
        config=ctx.config,
        modules=modules,
        roles=roles,
        tensors=ctx.source.tensors,
        skipped=[
            *(one for _, one in found if isinstance(one, Skipped)),
            *explained({key: role for key, role in roles.items() if key not in placed}),
        ],
        notes=[dora] if any(m.kind == "dora" for m in modules) else [],
        weights=[ctx.source.path],
    )


def _kohya_module(ctx: Context, group: Group) -> Module | Skipped:
    alpha = _alpha(ctx, group)
    if isinstance(alpha, str):
        return Skipped(group.module, alpha)
    found = product_module(ctx, group, alpha) or _pair_module(ctx, group, alpha)
    return found if isinstance(found, Skipped) else with_magnitude(ctx, group, found)


def _pair_module(ctx: Context, group: Group, alpha: float | None) -> Module | Skipped:
    if (reason := ctx.misuse(group, "lora_A", "lora_B")) is not None:
        return reason
    pair = _cp_pair(ctx, group) if "lora_mid" in group.keys else pair_of(ctx, group, "lora_A", "lora_B")
    if isinstance(pair, str):
        return Skipped(group.module, pair)
    alpha = alpha or float(pair.r)  # none or 0 means the rank (sd-scripts, networks/lora.py)
    return Module(
        name=group.module,
        kind="conv" if pair.axes > 2 else "linear",  # a kernel
        shape=(pair.out, pair.inner),
        r=pair.r,
        alpha=alpha,
        scale=alpha / pair.r,
        params=sum(ctx.info(group, name).size for name in group.keys if name != "alpha"),
        load=pair.load,
        base_name=f"{group.module}.weight" if "." in group.module else None,
        keys=group.keys,
    )


def _alpha(ctx: Context, group: Group) -> float | str | None:
    """Return the scalar of `.alpha`, None without one, or what is wrong with it."""
    if "alpha" not in group.keys:
        return None
    info = ctx.info(group, "alpha")
    if info.size != 1:
        return f"alpha has {info.size} entries, expected one"
    value = float(ctx.reader(group, "alpha")().reshape(-1)[0])
    return value if math.isfinite(value) else "alpha is not finite"


def _cp_pair(ctx: Context, group: Group) -> Pair | str:
    """Return the pair of a CP-decomposed convolution: up (out, r), and mid times down (r, in k k)."""
    if (reason := ctx.misuse(group, "lora_mid")) is not None:
        return reason.reason
    down, up, mid = (ctx.info(group, name).shape for name in ("lora_A", "lora_B", "lora_mid"))
    flat = all(n == 1 for n in (*down[2:], *up[2:]))
    if len(mid) != _CORE or min(len(down), len(up)) < 2 or not flat or mid[:2] != (up[1], down[0]):
        return f"factors of shape {list(up)}, {list(mid)} and {list(down)}: expected (out, r), (r, r, k, k), (r, in)"
    r, inner = up[1], down[1] * mid[2] * mid[3]
    if r * inner > MOST_ELEMENTS:
        return f"a core of shape {list(mid)} is too large to be unfolded"
    read_down, read_up, read_mid = (ctx.reader(group, name) for name in ("lora_A", "lora_B", "lora_mid"))

    def load() -> tuple[Array, Array]:
        low = wide(read_down()).reshape(down[0], down[1])
        unfolded = np.einsum("ijkl,jr->irkl", wide(read_mid()), low)
        return wide(read_up()).reshape(up[0], r), unfolded.reshape(r, inner)

    return Pair(up[0], inner, r, _CORE, load)


def _read_diffusers(files: Files) -> Adapter:
    """The modules of a diffusers adapter."""
    source = files.source
    configs = _component_configs(source)
    contexts = {name: Context(source, config, ScalingRules(config)) for name, config in configs.items()}
    plain = Context(source, AdapterConfig(), ScalingRules(AdapterConfig()))
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
        roles[name] = _diffusers_role(field)
    found = [
        (group, _diffusers_module(contexts.get(component), plain, component, group))
        for (component, _), group in groups.items()
    ]
    adapter = _adapter(DIFFUSERS, plain, found, roles)
    assumed = [] if configs else ["the file gives no alpha: it is taken to be the rank, as diffusers does"]
    return replace(adapter, notes=[*adapter.notes, *assumed])


def _diffusers_role(field: str) -> Role:
    if field == "alpha":
        return "scale"
    if field.endswith(".bias"):
        return "bias"
    return "magnitude" if field == "lora_magnitude_vector" else "lora_pair"


def _diffusers_module(declared: Context | None, plain: Context, component: str, group: Group) -> Module | Skipped:
    ctx = declared or plain
    alpha = _alpha(ctx, group)
    if isinstance(alpha, str):
        return Skipped(f"{component}.{group.module}", alpha)
    keys = {field: key for field, key in group.keys.items() if field != "alpha"}
    found = lora_module(ctx, Group(group.module, keys=keys))
    name = f"{component}.{found.name}"
    if isinstance(found, Skipped):
        return replace(found, name=name)
    if declared is not None and alpha is None:
        return replace(found, name=name)
    if found.dense is not None:  # it holds the scale of the config that is not there
        return Skipped(name, "DoRA without a config: its scale is not known")
    alpha = alpha or float(found.r)
    return replace(found, name=name, alpha=alpha, scale=alpha / found.r, config_r=None, rslora=False)


def _component_configs(source: TensorSource) -> dict[str, AdapterConfig]:
    """Return the config of each component that the metadata holds: keys are `<component>.<field>`."""
    text = source.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        flat = msgspec.json.decode(text, type=dict[str, Any])
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
