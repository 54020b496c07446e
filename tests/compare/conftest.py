"""Real adapters on one small model, saved by PEFT, and what PEFT's merge of each adds to the weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn


class Net(nn.Module):
    """Two layers with an attention and an MLP projection each, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(30, 12)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(16, 20), "up_proj": nn.Linear(16, 24)}) for _ in range(2)
        )

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
        from peft import LoraConfig, PeftModel, get_peft_model

        config = {"r": 4, "target_modules": ["q_proj", "up_proj"], **config}
        folder = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on the configs of the tests
            model = get_peft_model(Net(), LoraConfig(**config))
            randomise(model, seed)
            if edit is not None:
                edit(model)
            model.save_pretrained(folder)
            base = Net()
            merged = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload()
        before, after = weights_of(base), weights_of(merged)
        return Saved(folder, {k: after[k] - before[k] for k in before if np.any(after[k] != before[k])})

    return build


def weights_of(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in model.state_dict().items()}


def randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
