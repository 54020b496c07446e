"""Real adapters saved by PEFT, and the truth about them: what PEFT merges, before and after a conversion."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft_models import layers, merged_update, save_base
from torch import nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """Two of each layer that an adapter may wrap, with names as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 12)
        self.layers = layers(16)
        self.c_attn = Conv1D(36, 12)
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x):
        return x


class Case(NamedTuple):
    """A saved adapter, its base on disk, the model in memory, and what PEFT's merge of it adds to each weight."""

    folder: Path
    base: Path
    model: Any
    update: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "adapter_config.json").read_text())


def _furthest(case: Case, folder: Path) -> float:
    """Return the largest error of a weight's update, relative to the largest entry of what PEFT merged before."""
    after = merged_update(case.model, folder)
    assert after.keys() == case.update.keys()
    errors = []
    for name, truth in case.update.items():
        size = np.abs(truth).max(initial=0.0)
        difference = np.abs(after[name] - truth).max(initial=0.0)
        errors.append(difference / size if size else difference)
    return float(max(errors))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Return a function that wraps a model with a PEFT config, gives the adapter values, and saves it."""

    def build(config: Any, model: Any = None, *, edit: Callable[[Any], None] | None = None, name: str = "old") -> Case:
        from peft import get_peft_model

        model = (Net() if model is None else model).eval()
        folder, base = tmp_path / name, tmp_path / f"{name}-base"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on the configs of the tests
            wrapped = get_peft_model(copy.deepcopy(model), config)
            randomise(wrapped)
            if edit is not None:
                edit(wrapped)
            wrapped.save_pretrained(folder)
            update = merged_update(model, folder)
        save_base(model, base)
        return Case(folder, base, model, update)

    return build


def randomise(model: Any, seed: int = 0) -> None:
    """Give every trainable tensor values of order one, and magnitudes near their own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            old = parameter.data
            parameter.data = (old * (1 + 0.2 * noise) if "magnitude" in name else 0.3 * noise).to(old.dtype)


@pytest.fixture
def furthest() -> Callable[[Case, Path], float]:
    """Return the measure of `_furthest`: a conversion's error against what PEFT merged before."""
    return _furthest


@pytest.fixture
def merged() -> Callable[[Any, Path], dict[str, Any]]:
    """Return what an adapter adds to a model's weights when PEFT merges it, loaded without a warning."""
    return merged_update


@pytest.fixture
def outputs() -> Callable[[Any, Path, Any], Any]:
    """Return a function that gives the logits of a model with an adapter that PEFT loads."""

    def compute(model: Any, folder: Path, tokens: Any) -> Any:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        with torch.no_grad():
            return adapted(input_ids=torch.tensor(tokens)).logits.numpy()

    return compute


@pytest.fixture
def net() -> Net:
    """Return a small model with names as real ones have them."""
    return Net().eval()
