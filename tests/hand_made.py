"""Adapters made of factors that are given, and what is in the files that a verb writes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def adapter(folder: Path, modules: dict[str, Any], *, extra: dict[str, Any] | None = None, **config: Any) -> Path:
    """An adapter whose modules have these factors (b, a), in their own dtypes."""
    folder.mkdir(parents=True)
    tensors = {f"{PREFIX}{name}": np.ascontiguousarray(value) for name, value in (extra or {}).items()}
    for name, (b, a) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    r = max(len(a) for _, a in modules.values()) if modules else 1
    given = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": sorted(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def diagonal(
    *sizes: float, start: int = 0, d_out: int = 6, d_in: int = 5, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of an update that is diagonal from a place on, with these entries."""
    b, a = np.zeros((d_out, len(sizes)), dtype), np.zeros((len(sizes), d_in), dtype)
    for k, size in enumerate(sizes):
        b[start + k, k], a[k, start + k] = size, 1.0
    return b, a


def drawn(out: int, r: int, inner: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random factors (b, a), of which each direction is three fifths as long as the one before."""
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((out, r)), rng.standard_normal((r, inner)) * 0.6 ** np.arange(r)[:, None]
    return b.astype(np.float32), a.astype(np.float32)


def base(folder: Path, **tensors: np.ndarray) -> Path:
    """A base model's folder with these tensors; `__` in a name stands for a dot."""
    folder.mkdir()
    save_file({name.replace("__", "."): x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def kohya(path: Path, modules: dict[str, tuple[np.ndarray, np.ndarray, float]], **metadata: str) -> Path:
    """A file in kohya's format of these (up, down, alpha)."""
    tensors = {}
    for name, (b, a, alpha) in modules.items():
        tensors[f"lora_unet_{name}.lora_up.weight"] = b
        tensors[f"lora_unet_{name}.lora_down.weight"] = a
        tensors[f"lora_unet_{name}.alpha"] = np.asarray(alpha, np.float16)
    save_file(tensors, path, metadata=metadata)
    return path


def config_of(folder: Path) -> dict[str, Any]:
    """The adapter's config."""
    return json.loads((folder / "adapter_config.json").read_text())


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's tensors, by their names without PEFT's prefix."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


def edited(folder: Path, change: Any) -> Path:
    """The adapter, each of its tensors replaced by what a function of name and tensor gives."""
    tensors = {f"{PREFIX}{name}": change(name, tensor) for name, tensor in tensors_of(folder).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def update(folder: Path, name: str) -> np.ndarray:
    """A module's s B A in float64, with s by the config and its patterns."""
    config, tensors = config_of(folder), tensors_of(folder)
    b, a = (tensors[f"{name}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    r = config.get("rank_pattern", {}).get(name, config["r"])
    alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
    return alpha / (r**0.5 if config.get("use_rslora") else r) * b @ a


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank by a dense float64 SVD."""
    flat = matrix.reshape(len(matrix), -1)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(matrix.shape)


def left_out(matrix: np.ndarray, rank: int) -> float:
    """The relative Frobenius error of the best approximation of that rank."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return float(np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma))
