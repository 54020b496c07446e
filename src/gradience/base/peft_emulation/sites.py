"""Tensors of a base's files to the places where an adapter could go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.adapters.names import is_embedding, layer_index
from gradience.base.peft_emulation.architecture import CONV1D_TYPES, Architecture

Kind: TypeAlias = Literal["linear", "embedding", "conv", "parameter", "router", "packed", "other"]
Declared: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
"""Name of a tensor to its shape and safetensors' name of its dtype."""

OUTPUTS: Final = ("lm_head", "embed_out")

_CONV1D_LEAVES: Final = ("c_attn", "c_proj", "c_fc", "q_attn")
_SCALES: Final = ("bias", "weight_scale_inv", "weight_scale", "input_scale")
_EXPERT: Final = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
_GATES: Final = ("gate_proj", "w1")
_DOWNS: Final = ("down_proj", "w2")
_PACKED: Final = re.compile(
    r"\.(?:weight\.(?:absmax|quant_map|quant_state.*|nested_.*)|qweight|qzeros|scales|g_idx|weight_packed|weight_shape"
    r"|SCB|W_q|codebooks|codes)$"
)
_BUFFER: Final = re.compile(
    r"(?:^|\.)(?:inv_freq|position_ids|token_type_ids|masked_bias|running_mean|running_var|num_batches_tracked)$"
)
_LAYER: Final = re.compile(r"(?:.*?\.)?[A-Za-z_]\w*\.\d+(?=\.|$)")


class Site(NamedTuple):
    """One place: a module with a weight, or a parameter of a module.

    `shape` is that of the weight; for a matrix (out, in), for an embedding (rows, width). `bias` is the length of
    its bias, or 0. `entries` are all of its own numbers. A `router` is a matrix that PEFT's LoRA adapts as a
    parameter only; a `packed` weight is quantised, and its headers do not give its size. A `tied` module shares its
    weight with one that is counted.
    """

    kind: Kind
    shape: tuple[int, ...]
    entries: int
    bias: int = 0
    dtype: str = ""
    tied: bool = False


def sites_of(architecture: Architecture, tensors: Declared) -> dict[str, Site]:
    """The sites by name: a module's path, or a parameter's."""
    packed = {_PACKED.sub("", name) for name in tensors if _PACKED.search(name)}
    sites = {module: Site("packed", (), 0) for module in packed}
    for name, (shape, dtype) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in packed or _PACKED.search(name) or _BUFFER.search(name) or leaf in _SCALES:
            continue
        if leaf == "weight":
            sites[module] = _weighed(architecture, module, shape, dtype)
        else:
            sites[name] = Site("parameter" if len(shape) >= 2 else "other", shape, _size(shape), dtype=dtype)
    return _with_biases(sites, tensors)


def _weighed(architecture: Architecture, module: str, shape: tuple[int, ...], dtype: str) -> Site:
    leaf = module.rpartition(".")[2]
    kind: Kind = "linear"
    if len(shape) != 2:
        kind = "conv" if len(shape) > 2 else "other"
    elif leaf == "relative_attention_bias" or (leaf not in OUTPUTS and is_embedding(module)):
        kind = "embedding"
    elif architecture.model_type in CONV1D_TYPES and leaf in _CONV1D_LEAVES:
        shape = (shape[1], shape[0])
    return Site(kind, shape, _size(shape), dtype=dtype)


def _with_biases(sites: dict[str, Site], tensors: Declared) -> dict[str, Site]:
    for name, (shape, _) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" and len(shape) == 1 and module in sites:
            site = sites[module]
            sites[module] = site._replace(bias=shape[0], entries=site.entries + shape[0])
    return sites


def fused_experts(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites as transformers 5 has them in memory: all experts of a layer as two 3-D parameters."""
    groups: dict[str, list[tuple[str, Site]]] = {}
    whole: dict[str, Site] = {}
    for name, site in sites.items():
        hit = _EXPERT.fullmatch(name)
        if hit is None:
            whole[name.replace(".block_sparse_moe.", ".mlp.")] = site
        else:
            groups.setdefault(hit[1].replace(".block_sparse_moe.", ".mlp."), []).append((hit[3], site))
    for path, members in groups.items():
        whole |= _stacked(path, members)
    return whole


def with_routers(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites with the routers beside stacks of experts marked: transformers 5 has classes for them."""
    blocks = {name.rpartition(".experts.")[0] for name, site in sites.items() if site.kind == "parameter"}
    routers = {f"{block}.{leaf}" for block in blocks for leaf in ("gate", "router")}
    return {
        name: site._replace(kind="router") if name in routers and site.kind == "linear" else site
        for name, site in sites.items()
    }


def _stacked(path: str, members: list[tuple[str, Site]]) -> dict[str, Site]:
    downs = [site for leaf, site in members if leaf in _DOWNS]
    gates = [site for leaf, site in members if leaf in _GATES]
    ups = [site for leaf, site in members if leaf not in (*_DOWNS, *_GATES)]
    first = {f"{path}.gate_up_proj": gates + ups} if gates else {f"{path}.up_proj": ups}
    stacks = {**first, f"{path}.down_proj": downs}
    return {name: _stack(parts, n_experts=len(downs) or len(parts)) for name, parts in stacks.items() if parts}


def _stack(parts: list[Site], *, n_experts: int) -> Site:
    if any(part.kind == "packed" for part in parts):
        return Site("packed", (), 0)
    rows = sum(part.shape[0] for part in parts) // n_experts
    return Site(
        "parameter", (n_experts, rows, parts[0].shape[1]), sum(part.entries for part in parts), 0, parts[0].dtype
    )


def site_layer(name: str) -> str | None:
    """The layer that a module is part of, as the stack's path and the layer's index, or None.

    >>> site_layer("model.layers.3.mlp.experts.7.w1"), site_layer("h.0.attn.c_attn"), site_layer("lm_head")
    ('model.layers.3', 'h.0', None)
    """
    index, hit = layer_index(name), _LAYER.match(name)
    return None if index is None or hit is None else f"{hit[0].rpartition('.')[0]}.{index}"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
