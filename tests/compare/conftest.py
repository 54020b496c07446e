"""Real adapters on one small model, saved by PEFT, and what PEFT's merge of each adds to the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft_models import layers, loaded, merged_weights, weights_of
from torch import nn


class Net(nn.Module):
    """Two layers with an attention and an MLP projection each, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(30, 12)
        self.layers = layers(16)

    def forward(self, x):
        return x


class Saved(NamedTuple):
    """An adapter's folder, and the dense update of each weight."""

    folder: Path
    update: dict[str, Any]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Saved]:
    """Return a function that saves an adapter of a config, with values drawn from a seed or set by `edit`."""

    def build(name: str, *, seed: int = 0, edit: Callable[[Any], None] | None = None, **config: Any) -> Saved:
        from peft import LoraConfig, get_peft_model

        config = {"r": 4, "target_modules": ["q_proj", "up_proj"], **config}
        folder = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on the configs of the tests
            model = get_peft_model(Net(), LoraConfig(**config))
            randomise(model, seed)
            if edit is not None:
                edit(model)
            model.save_pretrained(folder)
        before, after = weights_of(Net()), merged_weights(loaded(Net(), folder))
        return Saved(folder, {k: after[k] - before[k] for k in before if np.any(after[k] != before[k])})

    return build


def randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
