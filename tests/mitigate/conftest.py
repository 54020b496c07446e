"""A base of a falling spectrum, and a real PEFT adapter with directions in it that the base does not have."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft_models import loaded, merged_weights, save_base, weights_of
from torch import nn
from transformers.pytorch_utils import Conv1D

OUT, INNER = 40, 32


class Net(nn.Module):
    """Linear layers, one stored turned, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(INNER, OUT)}) for _ in range(2))
        self.c_attn = Conv1D(OUT, INNER)
        self.conv = nn.Conv2d(8, OUT, 2)
        self.embed_tokens = nn.Embedding(50, 12)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                parameter.data = falling(parameter.shape, generator)

    def forward(self, x):
        return x


def falling(shape: Any, generator: torch.Generator) -> torch.Tensor:
    """Return random singular vectors with singular values 10, 9, 8.1, ...: leading ones are well apart."""
    flat = torch.randn((shape[0], int(np.prod(shape[1:]))), generator=generator)
    u, _, v = torch.linalg.svd(flat, full_matrices=False)
    return (
        (u * (10 * 0.9 ** torch.arange(u.shape[1]))) @ v
        if len(shape) == 2
        else ((u * (10 * 0.9 ** torch.arange(u.shape[1]))) @ v).reshape(shape)
    )


class Case(NamedTuple):
    """An adapter's folder, its base's, and the model."""

    folder: Path
    base: Path
    model: Any

    def update(self, folder: Path) -> dict[str, np.ndarray]:
        """Return merged minus base by weight, in float64; loading must not warn."""
        before, after = weights_of(self.model), merged_weights(loaded(self.model, folder).double())
        return {name: after[name] - before[name] for name in before}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Return a function that saves an adapter of a strength beside the base's largest singular value, 10."""

    def build(config: Any, *, strength: float = 9.0) -> Case:
        from peft import get_peft_model

        model = Net()
        save_base(model, tmp_path / "base")
        generator = torch.Generator().manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(copy.deepcopy(model), config)
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.data = noise / torch.linalg.norm(noise) * strength**0.5
            wrapped.save_pretrained(tmp_path / "adapter")
        return Case(tmp_path / "adapter", tmp_path / "base", model)

    return build
