"""Small adapters written by hand, and a small base beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audited import low_dimensional, save_adapter
from safetensors.numpy import save_file

LAYERS, OUT, INNER, R = 4, 48, 32, 8


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a PEFT folder; `factors` gives (b, a) of a module by its number."""

    def write(factors=None, *, name: str = "peft", layers: int = LAYERS, **config) -> Path:
        rng = np.random.default_rng(0)
        pairs = [factors(i) if factors else low_dimensional(rng) for i in range(layers)]
        return save_adapter(tmp_path / name, pairs, **{"r": R, "lora_alpha": 16, **config})

    return write


@pytest.fixture
def write_base(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a base of the adapter's shapes."""

    def write(name: str = "base", *, seed: int = 1, prefix: str = "", shape=(OUT, INNER)) -> Path:
        rng = np.random.default_rng(seed)
        folder = tmp_path / name
        folder.mkdir()
        tensors = {
            f"{prefix}model.layers.{i}.self_attn.q_proj.weight": rng.standard_normal(shape).astype(np.float32)
            for i in range(LAYERS)
        }
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write
