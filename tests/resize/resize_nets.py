"""A model with every layer that an adapter may wrap, and what PEFT's merge makes of an adapter of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft_models import layers, loaded, merged_weights, weights_of
from torch import nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """Two of each layer that an adapter may wrap, with names as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 12)
        self.layers = layers(12)
        self.c_attn = Conv1D(36, 12)
        self.conv1d = nn.Conv1d(6, 8, 3)
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)
        self.mha = nn.MultiheadAttention(12, 2)
        self.classifier = nn.Linear(12, 3)

    def forward(self, x):
        return x


class Case(NamedTuple):
    """A saved adapter, its base on disk, and the model it belongs to."""

    folder: Path
    base: Path
    model: Any

    def update(self, folder: Path | None = None) -> dict[str, np.ndarray]:
        """Return merged minus base by weight, of this adapter or another one of the same model, loaded by PEFT."""
        return update_of(self.model, folder or self.folder)


def update_of(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Return what PEFT's merge adds to each weight; loading must not warn."""
    before, after = weights_of(model), merged_weights(loaded(model, folder).double())
    return {name: after[name] - before[name] for name in before}


def randomise(model: Any) -> None:
    """Give each factor a spectrum that falls, each magnitude a value near its own."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if "magnitude" in name:
            noise = parameter.data * (1 + 0.2 * noise)
        elif "lora_A" in name or "lora_embedding_A" in name:
            fall = 0.6 ** torch.arange(len(noise))
            noise *= 0.3 * fall.reshape(-1, *[1] * (noise.ndim - 1))
        parameter.data = noise.to(parameter.dtype)


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Return the best approximation of that rank by a dense float64 SVD."""
    flat = matrix.reshape(len(matrix), -1)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(matrix.shape)


def same(got: np.ndarray, wanted: np.ndarray, size: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Return whether two updates differ by less than the tolerance of the whole update's norm."""
    return bool(np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(size))
