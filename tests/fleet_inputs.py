"""Small adapters for a fleet, and near-duplicates of adapters."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file


def factors(seed=0, *, r=4, width=24, layers=2, decay=0.5, scale=1.0):
    """PEFT's tensors of a small model whose spectrum decays, so that an audit calls them trained."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            stem = f"base_model.model.model.layers.{layer}.{module}"
            fall = np.sqrt(decay) ** np.arange(r)  # for each factor, because in trained adapters both decay
            a = rng.standard_normal((r, width)) * fall[:, None] * scale
            tensors[f"{stem}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = (rng.standard_normal((2 * width, r)) * fall).astype(np.float32)
    return tensors


def peft(folder, tensors=None, *, base="tiny", r=4, **config):
    """Write an adapter as PEFT does, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors(r=r) if tensors is None else tensors, folder / "adapter_model.safetensors")
    whole = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": ["q_proj", "up_proj"]}
    text = json.dumps({**whole, "base_model_name_or_path": base, **config})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def with_noise(tensors, share, seed=9):
    """The tensors with Gaussian noise added, whose size is a share of each tensor's."""
    rng = np.random.default_rng(seed)
    noisy = {}
    for name, value in tensors.items():
        noise = rng.standard_normal(value.shape).astype(np.float32)
        noisy[name] = value + share * noise * (np.linalg.norm(value) / np.linalg.norm(noise)).astype(np.float32)
    return noisy
