"""Adapters made of factors that are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."


def adapter(folder: Path, modules: dict[str, Any], *, extra: dict[str, Any] | None = None, **config: Any) -> Path:
    """An adapter whose modules have these factors (b, a), in their own dtypes."""
    folder.mkdir(parents=True)
    tensors = {f"{PREFIX}{name}": value for name, value in (extra or {}).items()}
    for name, (b, a) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    r = max(len(a) for _, a in modules.values()) if modules else 1
    given = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": sorted(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


def diagonal(*sigma: float, d_out: int = 6, d_in: int = 5, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Factors of a diagonal update with these singular values."""
    n = len(sigma)
    return (np.eye(d_out, n) * np.asarray(sigma)).astype(dtype), np.eye(n, d_in).astype(dtype)


def kohya(path: Path, modules: dict[str, tuple[np.ndarray, np.ndarray, float]], **metadata: str) -> Path:
    tensors = {}
    for name, (b, a, alpha) in modules.items():
        tensors[f"lora_unet_{name}.lora_up.weight"] = b
        tensors[f"lora_unet_{name}.lora_down.weight"] = a
        tensors[f"lora_unet_{name}.alpha"] = np.asarray(alpha, np.float16)
    save_file(tensors, path, metadata=metadata)
    return path
