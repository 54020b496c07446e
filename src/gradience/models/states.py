"""States in which a loaded base with an adapter is read: without parts of the adapter, at another scale, rounded.

Each state is a context that changes the model in memory and puts back what it changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import peft
import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from gradience.adapters import layer_index, module_type
from gradience.models import FIRST, LoadedModel
from gradience.spectral.quantised import restored

_QUARTERS: Final = 4


def adapted(loaded: LoadedModel) -> dict[str, Any]:
    """The adapter's layers, and the modules that it saves whole, by their paths in the base."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    named = loaded.model.base_model.model.named_modules() if hasattr(loaded.model, "base_model") else ()
    return {name: module for name, module in named if isinstance(module, kinds)}


def digest_of(loaded: LoadedModel) -> str:
    """A digest of the adapter's tensors by name and value, equal for the model in memory and for its saved file."""
    # Left to itself, PEFT asks the hub for the base's config, to see whether its vocabulary was resized.
    state = peft.get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(f"{name}{list(state[name].shape)}".encode())
        # In float32: NumPy has no bfloat16, and PEFT holds in float32 what its file may have in 16 bits.
        whole.update(state[name].detach().float().cpu().numpy().tobytes())
    return f"sha256:{whole.hexdigest()}"


def groups_of(
    paths: Collection[str], saved: Collection[str] = (), *, each_layer: bool = True
) -> dict[str, frozenset[str]]:
    """Groups of modules that a program may leave out together, by name, the largest first.

    Attention, MLP, each kind of module, quarters and halves of the layers, `each_layer`, and each of the modules that
    are `saved` whole. Groups of equal content are named once, and all modules together are no group.

    >>> list(groups_of(["layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"]))
    ['attention', 'MLP']
    """
    by_layer: dict[int, set[str]] = {}
    by_kind: dict[str, set[str]] = {}
    by_type: dict[str, set[str]] = {}
    for path in (path for path in paths if path not in saved):
        by_kind.setdefault(path.rpartition(".")[2], set()).add(path)
        by_type.setdefault(module_type(path), set()).add(path)
        if (layer := layer_index(path)) is not None:
            by_layer.setdefault(layer, set()).add(path)
    named: dict[str, set[str]] = {}
    named |= {words: by_type[kind] for kind, words in (("attn", "attention"), ("mlp", "MLP")) if kind in by_type}
    named |= {f"every {kind}": members for kind, members in by_kind.items()}
    layers = sorted(by_layer)
    for parts in (2, _QUARTERS):
        size = -(-len(layers) // parts)
        spans = [layers[start : start + size] for start in range(0, len(layers), size)] if len(layers) > parts else []
        named |= {f"layers {s[0]} to {s[-1]}": set().union(*(by_layer[i] for i in s)) for s in spans if len(s) > 1}
    named |= {f"layer {i}": by_layer[i] for i in layers if each_layer}
    named |= {f"{path}, saved whole": {path} for path in saved}
    groups: dict[str, frozenset[str]] = {}
    for name, members in named.items():
        if members and len(members) < len(paths) and frozenset(members) not in groups.values():
            groups[name] = frozenset(members)
    return groups


@contextmanager
def without(layers: Mapping[str, Any], paths: Collection[str]) -> Iterator[None]:
    """A context in which these modules compute what the base does."""
    try:
        for path in paths:
            layers[path].enable_adapters(enabled=False)
        yield
    finally:
        for path in paths:
            layers[path].enable_adapters(enabled=True)
            # PEFT lets what it enables be trained.
            layers[path].requires_grad_(requires_grad=False)


def with_scale(layers: Mapping[str, Any]) -> list[LoraLayer]:
    """Those of the layers whose update has a scale, which are LoRA's."""
    return [layer for layer in layers.values() if isinstance(layer, LoraLayer) and FIRST in layer.scaling]


@contextmanager
def scaled(layers: Mapping[str, Any], factor: float) -> Iterator[None]:
    """A context in which every LoRA update counts `factor` times."""
    scaled = with_scale(layers)
    before = [layer.scaling[FIRST] for layer in scaled]
    try:
        for layer, scale in zip(scaled, before, strict=True):
            layer.scaling[FIRST] = factor * scale
        yield
    finally:
        for layer, scale in zip(scaled, before, strict=True):
            layer.scaling[FIRST] = scale


class LayerFactors(NamedTuple):
    """A and B of one layer, in the shapes in which files hold them: (r, in, *kernel) and (out, r, *1)."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter


def factors_of(layer: Any) -> LayerFactors:
    """The factors of one of LoRA's layers."""
    if FIRST in layer.lora_embedding_A:
        return LayerFactors(layer.lora_embedding_A[FIRST], layer.lora_embedding_B[FIRST])
    return LayerFactors(layer.lora_A[FIRST].weight, layer.lora_B[FIRST].weight)


def mixed(layer: Any, m: npt.NDArray[np.float64]) -> LayerFactors:
    """The factors M A and B of a layer for a matrix M, (r, r), in their dtypes and on their device."""
    a, b = factors_of(layer)
    # On the processor, because some devices have no float64, which M is in.
    flat = a.reshape(len(a), -1).cpu().double()
    product = (torch.from_numpy(m) @ flat).to(a).reshape(a.shape)
    return LayerFactors(torch.nn.Parameter(product, requires_grad=False), b)


@contextmanager
def with_factors(layers: Mapping[str, Any], new: Mapping[str, LayerFactors]) -> Iterator[None]:
    """A context in which these layers have other factors, of any rank, in place of their own."""
    own = {path: factors_of(layers[path]) for path in new}
    try:
        for path, factors in new.items():
            _place(layers[path], factors)
        yield
    finally:
        for path, factors in own.items():
            _place(layers[path], factors)


def _place(layer: Any, factors: LayerFactors) -> None:
    if FIRST in layer.lora_embedding_A:
        layer.lora_embedding_A[FIRST], layer.lora_embedding_B[FIRST] = factors
    else:
        layer.lora_A[FIRST].weight, layer.lora_B[FIRST].weight = factors


def _matrices(loaded: LoadedModel) -> Iterator[tuple[str, Any]]:
    """Each module of the model that multiplies by a weight or looks rows of it up, but for the adapter's, by path."""
    for name, module in loaded.model.named_modules():
        if ".lora_" not in name and ".base_layer" not in name and _is_matrix(_held(module)):
            yield name, module


@contextmanager
def rounded(loaded: LoadedModel, to: str, *, merged: bool = False, heads: bool = True) -> Iterator[None]:
    """A context in which the model computes in bfloat16, or with its matrices as a format of 8 or 4 bits gives them.

    Only one rounded matrix is in memory at a time.

    Args:
        loaded: the model.
        to: `bfloat16`, or a name of `gradience.spectral.quantised.FORMATS`.
        merged: whether the adapter is merged into each matrix first. Without it the base's matrices are rounded alone.
        heads: whether the matrices outside the layers, a head and token embeddings, are rounded too.
    """
    if to == "bfloat16":
        with torch.autocast(loaded.device.type, dtype=torch.bfloat16):
            yield
        return
    hooks: list[Any] = []
    for name, module in _matrices(loaded):
        if heads or layer_index(name) is not None:
            hooks += _hooks(module, to, merged=merged and _held(module) is not module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _held(module: Any) -> Any:
    """The module that an adapter's layer wraps; another as it is."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _is_matrix(module: Any) -> bool:
    """Whether the module multiplies by a weight, or looks rows of it up."""
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    is_one = isinstance(module, kinds) or type(module).__name__ == "Conv1D"  # GPT-2's, which is transformers'
    return is_one and module.weight.is_floating_point()


def _hooks(module: Any, to: str, *, merged: bool) -> Sequence[Any]:
    kept: list[torch.Tensor] = []
    matrix = _held(module)
    is_turned = type(matrix).__name__ == "Conv1D"  # its weight is (in, out), and files of codes have rows of inputs

    def stored(weight: torch.Tensor) -> torch.Tensor:
        # A copy, because JAX's arrays are read-only, which a tensor of torch cannot be.
        values = np.array(restored(weight.float().cpu().numpy(), to))
        return torch.from_numpy(values).to(weight.device, weight.dtype)

    def before(layer: Any, _inputs: Any) -> None:
        kept.append(matrix.weight.data)
        if merged and not layer.disable_adapters:
            # PEFT merges in place, and would change the tensor that is kept.
            matrix.weight.data = matrix.weight.data.clone()
            layer.merge()
        weight = matrix.weight.data
        matrix.weight.data = stored(weight.T).T.contiguous() if is_turned else stored(weight)

    def after(layer: Any, _inputs: Any, _output: Any) -> None:
        if merged and layer.merged:
            layer.unmerge()  # a bias too; the weight is put back as it was
        matrix.weight.data = kept.pop()

    # The second hook runs after a pass that failed too, or a weight would stay rounded for all that is read later.
    return module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
