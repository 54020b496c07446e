"""The module tree of a base model as PEFT will find it in memory, from config.json and safetensors headers alone.

The names in the files differ from the module tree in four ways, which are corrected here. A class with a head adds a
prefix. An output layer that shares the embedding's matrix is not stored. The files may hold another task's head.
transformers 5 fuses experts as it loads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.adapters import is_embedding, layer_index
from gradience.base.forms import declared
from gradience.base.peft_emulation import CONV1D_TYPES, Architecture, read_architecture
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import AdapterError

Kind: TypeAlias = Literal["linear", "embedding", "conv", "parameter", "router", "packed", "other"]
Declared: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
"""A tensor's name to its shape and its dtype (safetensors' name)."""

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


_FUSED_FROM: Final = 5  # transformers' major version
_HEAD: Final = re.compile(
    r"(?:lm_head|embed_out|score|classifier|cls|qa_outputs|pre_classifier|vocab_\w+|generator_\w+|discriminator_\w+)"
    r"(?:\.|$)"
)
_GENERATES: Final = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration")
# The first that fits is replaced, so a longer beginning stands before a shorter one.
_INSIDE: Final = (
    ("embed_out.", "lm_head."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_model.", "model.vision_model."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
_HEADS: Final = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


class Site(NamedTuple):
    """A module with a weight, or a bare parameter of a module: something that LoRA could adapt.

    `shape` is the weight's: (out, in) of a matrix, (rows, width) of an embedding. `bias` is the length of its bias, or
    0. `entries` counts all of its own numbers. PEFT's LoRA adapts a `router` as a parameter only. A `packed` weight is
    quantised, and its headers do not give its size. A `tied` module shares its weight with another site, which is
    counted instead.
    """

    kind: Kind
    shape: tuple[int, ...]
    entries: int
    bias: int = 0
    dtype: str = ""
    tied: bool = False


class Layout(NamedTuple):
    """The module tree of a base: its sites by name, the names of the modules that contain sites, and notes."""

    architecture: Architecture
    sites: dict[str, Site]
    containers: frozenset[str]
    transformers: int
    """Major version whose module tree this is."""
    notes: tuple[str, ...]

    @property
    def is_renamed(self) -> bool:
        """Whether transformers renames the modules as it loads them, in a way that is not emulated here."""
        return self.transformers >= _FUSED_FROM and self.architecture.is_renamed

    @property
    def layers(self) -> frozenset[str]:
        """The layers that contain a site which an adapter could target."""
        layers = (site_layer(name) for name, site in self.sites.items() if site.kind != "other")
        return frozenset(layer for layer in layers if layer is not None)

    def moved(self, old: str, new: str) -> Layout:
        """The layout with the modules below `new` put below `old` instead; an empty text is the top."""
        above, stem = f"{new}." if new else "", f"{old}." if old else ""
        sites = {
            stem + name.removeprefix(above) if name.startswith(above) else name: site
            for name, site in self.sites.items()
        }
        return self._replace(sites=sites, containers=_containers(sites))

    @property
    def embedding(self) -> str | None:
        """The name of the input embedding: the embedding with most rows; None without one."""
        return _embedding(self.sites)

    @property
    def output(self) -> str | None:
        """The name of the output layer of a language model, or None."""
        return next((name for name in OUTPUTS if name in self.sites), None)


def read_layout(base: Path, *, transformers: str | None, task_type: str | None) -> Layout:
    """The module tree that a training run with this task_type would adapt.

    Args:
        base: a model's folder, or organisation/name in the hub's local cache.
        transformers: the version that will load the model; None for 5.
        task_type: PEFT's task_type; None for the class that the files were saved from.

    Raises:
        AdapterError: files are missing, damaged or of another format.
    """
    try:
        shards = find_shards(base)
    except OSError as error:
        message = f"cannot look into {base}: {error.strerror or error}"
        raise AdapterError(message, advice="give the base model's folder") from error
    return layout_of(BaseWeights(shards), transformers=transformers, task_type=task_type)


def layout_of(weights: BaseWeights, *, transformers: str | None, task_type: str | None) -> Layout:
    """As `read_layout`, of a base that is open."""
    architecture = read_architecture(weights.files[0].path.parent)
    return build_layout(architecture, declared(weights), transformers=transformers, task_type=task_type)


def build_layout(
    architecture: Architecture, tensors: Declared, *, transformers: str | None = None, task_type: str | None = None
) -> Layout:
    """The module tree of a base whose files hold these tensors."""
    major = int((transformers or str(_FUSED_FROM)).partition(".")[0])
    other_head = task_type in _HEADS and not architecture.head.endswith(_HEADS[task_type])
    tensors = _with_prefix(architecture, tensors, task_type)
    if other_head:
        tensors = {name: value for name, value in tensors.items() if not _HEAD.match(name)}
    if major >= _FUSED_FROM:
        tensors = _with_new_names(tensors)
    sites = sites_of(architecture, tensors)
    if major >= _FUSED_FROM:
        sites = with_routers(fused_experts(sites) if architecture.fuses_experts else sites)
    sites |= _tied(architecture, sites, task_type)
    return Layout(architecture, sites, _containers(sites), major, tuple(_notes(architecture, sites, task_type)))


def _notes(architecture: Architecture, sites: dict[str, Site], task_type: str | None) -> Iterator[str]:
    if task_type in _HEADS and not architecture.head.endswith(_HEADS[task_type]):
        yield f"the new head of {task_type} is not in the files: its size is not counted"
    if any(site.kind == "packed" for site in sites.values()):
        yield "the base is stored quantised: its headers do not give the size of packed weights"


def _with_new_names(tensors: Declared) -> Declared:
    """The tensors under transformers 5's names: it renames LLaVA-like vision-language models and GPT-NeoX's head."""
    # CLIP's vision_model, for one, keeps its name: only beside a language_model is it a part of a LLaVA-like model.
    moves = _INSIDE if any(name.startswith("language_model.") for name in tensors) else _INSIDE[:1]
    return {_moved(name, moves): value for name, value in tensors.items()}


def renamed(name: str) -> str:
    """A module's name under transformers 5, which renames those of LLaVA-like models as it loads them."""
    return _moved(name, _INSIDE)


def _moved(name: str, moves: Iterable[tuple[str, str]]) -> str:
    for old, new in moves:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _with_prefix(architecture: Architecture, tensors: Declared, task_type: str | None) -> Declared:
    """The tensors with the prefix that a class with a head puts before names, if the file is of the bare model."""
    prefix = f"{architecture.prefix}."
    headless = task_type is None and (not architecture.head or architecture.head.endswith("Model"))
    headless = headless and not architecture.head.endswith("LMHeadModel")
    if headless or any(name.startswith(prefix) for name in tensors):
        return tensors
    # Of a type that is not known, `model` is a guess: it is made only where the names look like a bare decoder's.
    if prefix == "model." and not any(name.startswith(("layers.", "embed_tokens.")) for name in tensors):
        return tensors
    return {name if _HEAD.match(name) else f"{prefix}{name}": value for name, value in tensors.items()}


def _tied(architecture: Architecture, sites: dict[str, Site], task_type: str | None) -> dict[str, Site]:
    """The sites that share the embedding's matrix and are therefore not stored."""
    embedding, head = _embedding(sites), architecture.head
    if embedding is None:
        return {}
    twin = Site("linear", sites[embedding].shape, sites[embedding].entries, 0, sites[embedding].dtype, tied=True)
    heads = {}
    generates = task_type in {"CAUSAL_LM", "SEQ_2_SEQ_LM"} or (task_type is None and head.endswith(_GENERATES))
    if generates and not any(name in sites for name in OUTPUTS):
        heads["lm_head"] = twin
    if embedding.rpartition(".")[2] == "shared":
        stem = embedding.removesuffix("shared")
        names = (f"{stem}{half}.embed_tokens" for half in ("encoder", "decoder"))
        heads |= {name: twin._replace(kind="embedding") for name in names if name not in sites}
    return heads


def _embedding(sites: dict[str, Site]) -> str | None:
    rows = {name: site.shape[0] for name, site in sites.items() if site.kind == "embedding"}
    return max(rows, key=lambda name: rows[name], default=None)


def _containers(sites: Iterable[str]) -> frozenset[str]:
    """The names of all modules that contain a site, at any depth."""
    parents: set[str] = set()
    for name in sites:
        path = name.rpartition(".")[0]
        while path and path not in parents:
            parents.add(path)
            path = path.rpartition(".")[0]
    return frozenset(parents)


def sites_of(architecture: Architecture, tensors: Declared) -> dict[str, Site]:
    """The sites of a base with these tensors, by the path of the module or of the bare parameter."""
    packed = {_PACKED.sub("", name) for name in tensors if _PACKED.search(name)}
    sites = {module: Site("packed", (), 0) for module in packed}
    for name, (shape, dtype) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in packed or _PACKED.search(name) or _BUFFER.search(name) or leaf in _SCALES:
            continue
        if leaf == "weight":
            sites[module] = _weighed(architecture, module, shape, dtype)
        else:
            sites[name] = Site("parameter" if len(shape) >= 2 else "other", shape, math.prod(shape), dtype=dtype)
    return _with_biases(sites, tensors)


def _weighed(architecture: Architecture, module: str, shape: tuple[int, ...], dtype: str) -> Site:
    leaf = module.rpartition(".")[2]
    kind: Kind = "linear"
    if len(shape) != 2:
        kind = "conv" if len(shape) > 2 else "other"
    # T5's is an embedding, of distances, in spite of its name.
    elif leaf == "relative_attention_bias" or (leaf not in OUTPUTS and is_embedding(module)):
        kind = "embedding"
    elif architecture.model_type in CONV1D_TYPES and leaf in _CONV1D_LEAVES:
        shape = (shape[1], shape[0])
    return Site(kind, shape, math.prod(shape), dtype=dtype)


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
    """The sites with routers beside stacks of experts marked: in transformers 5 they are no linear layers."""
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
