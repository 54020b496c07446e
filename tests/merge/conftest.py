"""Real adapters on one small model, saved by PEFT, and what PEFT's merge of each adds to the weights."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft_models import layers, merged_update
from torch import nn
from transformers.pytorch_utils import Conv1D


class Experts(nn.Module):
    """The weights of four experts in one parameter each, as transformers keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 10, 16))
        self.down_proj = nn.Parameter(torch.randn(4, 16, 5))

    def forward(self, x):
        return x


class Net(nn.Module):
    """Two of each layer that an adapter may wrap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(30, 12)
        self.layers = layers(16)
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.attention = nn.MultiheadAttention(16, 2)
        self.experts = Experts()
        self.classifier = nn.Linear(16, 3)

    def forward(self, x):
        return x


class Turned(nn.Module):
    """A layer of GPT-2, which stores its weight (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c_attn = Conv1D(36, 12)

    def forward(self, x):
        return x


class Saved(NamedTuple):
    """An adapter's folder, the model, and the dense update of each weight."""

    folder: Path
    model: Any
    update: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "adapter_config.json").read_text())


@pytest.fixture
def merged() -> Callable[[Any, Path], dict[str, Any]]:
    """Return the function of that name."""
    return merged_update


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Saved]:
    """Return a function that saves an adapter of a config, with values drawn from a seed."""

    def build(name: str, *, seed: int = 0, model: Any = None, dtype: Any = None, **config: Any) -> Saved:
        from peft import LoraConfig, get_peft_model

        model = Net() if model is None else model
        config = {"r": 4, "target_modules": ["q_proj", "up_proj"], **config}
        folder = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on the configs of the tests
            wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
            generator = torch.Generator().manual_seed(seed)
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator)).to(dtype)
            wrapped.save_pretrained(folder)
        return Saved(folder, model, merged_update(model, folder))

    return build


def largest_error(found: dict[str, Any], parts: Iterable[tuple[float, dict[str, Any]]]) -> float:
    """Return the largest deviation from sum w_i dW_i, relative to the largest entry of each weight's."""
    parts = list(parts)
    errors = []
    for name, value in found.items():
        truth = sum(weight * update[name] for weight, update in parts)
        size = np.abs(truth).max(initial=0.0)
        errors.append(np.abs(value - truth).max(initial=0.0) / (size or 1.0))
    return float(max(errors))


@pytest.fixture
def furthest() -> Callable[..., float]:
    """Return the measure `largest_error`."""
    return largest_error


@pytest.fixture
def turned() -> nn.Module:
    """Return a model that stores its weight (in, out)."""
    return Turned()
