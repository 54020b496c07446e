"""Bases, adapters that PEFT saved, and merges that PEFT made of them."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradience import verify_merged
from gradience.schema.merge import VerifyMergedReport


class Net(nn.Module):
    """One of each layer that an adapter may wrap, with names as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 24)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(24, 40), "up_proj": nn.Linear(24, 48)}) for _ in range(2)
        )
        self.c_attn = Conv1D(72, 24)
        nn.init.normal_(self.c_attn.weight, std=0.2)
        self.conv = nn.Conv2d(6, 16, 3)
        self.pointwise = nn.Conv2d(6, 20, 1)
        self.square = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.classifier = nn.Linear(24, 3)

    def forward(self, x):
        return x


class Case(NamedTuple):
    """Folders of a base and an adapter, with the base in memory; `merge` and `write` make folders of merged models."""

    root: Path
    base: Path
    adapter: Path
    model: Any

    def merge(self, name: str = "merged", *, dtype: Any = None, save: Any = None, **options: Any) -> Path:
        """Merge by PEFT in a dtype (the base's if None) and save as another, if asked."""
        return self.write(self.merged(dtype=dtype, **options), name, save=save)

    def merged(self, *, dtype: Any = None, half_adapter: Any = None, **options: Any) -> dict[str, torch.Tensor]:
        """Return what PEFT's merge makes of it."""
        from peft import PeftModel

        model = copy.deepcopy(self.model)
        if dtype is not None:
            model = model.to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = PeftModel.from_pretrained(model, self.adapter)
            if half_adapter is not None:
                for key, parameter in loaded.named_parameters():
                    if "lora_" in key:
                        parameter.data = parameter.data.to(half_adapter)
            return loaded.merge_and_unload(**options).state_dict()

    def write(self, state: dict[str, torch.Tensor], name: str = "merged", *, save: Any = None) -> Path:
        """Write a model's tensors."""
        folder = self.root / name
        folder.mkdir()
        held = {key: x.to(save or x.dtype).clone().contiguous() for key, x in state.items()}
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def stored(self) -> dict[str, torch.Tensor]:
        """Return the base's tensors."""
        return load_file(self.base / "model.safetensors")

    def configure(self, **fields: Any) -> None:
        """Change the adapter's config."""
        path = self.adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def verify(self, merged: Path, **options: Any) -> VerifyMergedReport:
        """Return the report on a folder."""
        return verify_merged(self.base, self.adapter, merged, **options)


def trained(model: Any, *, strength: float) -> None:
    """Give every trainable parameter numbers as training might."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "magnitude" in name:
            noise = parameter.data.float() * (1 + 0.1 * noise)
        parameter.data = (noise if "magnitude" in name else noise * strength).to(parameter.dtype)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Return a function that saves a base of a dtype and an adapter of it, trained or nearly so."""

    def build(
        config: Any,
        *,
        dtype: Any = torch.float32,
        strength: float = 0.2,
        model: Any = None,
        adapter_dtype: Any = None,
        name: str = "adapter",
    ) -> Case:
        from peft import get_peft_model

        model = (Net() if model is None else model).to(dtype)
        case = Case(tmp_path, tmp_path / "base", tmp_path / name, model)
        if not case.base.exists():
            case.write(model.state_dict(), "base")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(copy.deepcopy(model), config)
            trained(wrapped, strength=strength)
            if adapter_dtype is not None:
                wrapped = wrapped.to(adapter_dtype)
            wrapped.save_pretrained(case.adapter)
        return case

    return build
