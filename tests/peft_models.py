"""Small models with the module names of real ones, and their weights after PEFT has loaded and merged an adapter."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D


def layers(width: int) -> nn.ModuleList:
    """Return two layers with an attention and an MLP projection each."""
    return nn.ModuleList(
        nn.ModuleDict({"q_proj": nn.Linear(width, 20), "up_proj": nn.Linear(width, 24)}) for _ in range(2)
    )


def loaded(model: Any, folder: Path) -> Any:
    """Return a copy of the model with the adapter on it; a warning while PEFT loads it fails the test."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # PEFT 0.21 with transformers 5
        if json.loads((folder / "adapter_config.json").read_text()).get("target_parameters"):
            warnings.filterwarnings("ignore", message=".*did not match any targeted module")  # it looks at modules only
        return PeftModel.from_pretrained(copy.deepcopy(model), folder)


def merged_weights(adapted: Any) -> dict[str, Any]:
    """Return the weights after PEFT's merge, as float64 arrays. Warnings of the merge are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights_of(adapted.merge_and_unload())


def weights_of(model: Any) -> dict[str, Any]:
    """Return copies of a model's weights as float64 arrays."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in model.state_dict().items()}


def merged_update(model: Any, folder: Path) -> dict[str, Any]:
    """Return merged minus base, in float64, of an adapter that PEFT loads without a word of warning."""
    before, after = weights_of(model), merged_weights(loaded(model, folder).double())
    return {name: after[name] - before[name] for name in before if name in after}


def save_base(model: Any, folder: Path) -> None:
    """Save the model's weights as one safetensors file in a folder, like a base model."""
    folder.mkdir(exist_ok=True)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")


class Experts(nn.Module):
    """The weights of four experts in one parameter each, as transformers keeps them."""

    def __init__(self, *, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.gate_up_proj = nn.Parameter(torch.randn((4, 16, 20) if is_transposed else (4, 20, 16)))
        self.down_proj = nn.Parameter(torch.randn((4, 10, 16) if is_transposed else (4, 16, 10)))

    def forward(self, x: Any) -> Any:
        return x


class Net(nn.Module):
    """One or two of each layer that an adapter may wrap, with names as real models have them."""

    def __init__(self, *, is_transposed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 12)
        self.layers = layers(16)
        self.c_attn = Conv1D(36, 12)
        self.conv1d = nn.Conv1d(6, 8, 3)
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)
        self.attention = nn.MultiheadAttention(16, 2)
        self.experts = Experts(is_transposed=is_transposed)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return x


class Case(NamedTuple):
    """A saved adapter, the folder of its base, and the model in memory."""

    folder: Path
    base: Path
    model: Any

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "adapter_config.json").read_text())

    def update(self, folder: Path | None = None) -> dict[str, Any]:
        """What PEFT's merge of this adapter, or of another one for the model, adds to each weight."""
        return merged_update(self.model, folder or self.folder)


def made(
    folder: Path,
    config: Any,
    model: Any = None,
    *,
    seed: int = 0,
    fall: float = 1.0,
    dtype: Any = None,
    edit: Callable[[Any], None] | None = None,
) -> Case:
    """Save an adapter of the model, by default a `Net`, and its base beside it.

    Factors are drawn from the seed, each direction of A `fall` times as long as the one before; magnitudes are near
    their own. `edit` may change the wrapped model before it is saved.
    """
    from peft import get_peft_model

    model, base = (Net() if model is None else model).eval(), folder.parent / f"{folder.name}-base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on the configs of the tests
        wrapped = get_peft_model(copy.deepcopy(model), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise, own = torch.randn(parameter.shape, generator=generator), parameter.data
                if "lora_A" in name or "lora_embedding_A" in name:
                    noise *= (fall ** torch.arange(len(noise))).reshape(-1, *[1] * (noise.ndim - 1))
                value = own * (1 + 0.2 * noise) if "magnitude" in name else 0.3 * noise
                parameter.data = value.to(own.dtype if dtype is None else dtype)
        if edit is not None:
            edit(wrapped)
        wrapped.save_pretrained(folder)
    save_base(model, base)
    return Case(folder, base, model)


def same(got: Any, wanted: Any, size: Any, tolerance: float = 1e-6) -> bool:
    """Whether two updates differ by less than the tolerance of the whole update's norm."""
    return bool(np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(size))


def furthest(found: dict[str, Any], parts: Iterable[tuple[float, dict[str, Any]]]) -> float:
    """The largest deviation of updates from sum w_i dW_i, relative to the largest entry of each weight's."""
    parts, errors = list(parts), []
    for name, value in found.items():
        truth = sum(weight * update[name] for weight, update in parts)
        size = np.abs(truth).max(initial=0.0)
        errors.append(np.abs(value - truth).max(initial=0.0) / (size or 1.0))
    return float(max(errors))
