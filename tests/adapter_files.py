"""Adapter files of given shapes and configs, for tests of how they are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."
Shapes = dict[str, tuple[int, ...]]


def lora(*paths: str, r: int = 2, d_out: int = 5, d_in: int = 3) -> Shapes:
    """Pairs of these modules."""
    return {f"{path}.lora_{x}.weight": s for path in paths for x, s in (("A", (r, d_in)), ("B", (d_out, r)))}


EMBEDDING: Shapes = {"wte.lora_embedding_A": (2, 3), "wte.lora_embedding_B": (5, 2)}
ADALORA: Shapes = {"q.lora_A": (2, 3), "q.lora_B": (5, 2), "q.lora_E": (2, 1)}
LOHA: Shapes = {f"q.hada_w{i}_{x}": s for i in (1, 2) for x, s in (("a", (5, 2)), ("b", (2, 3)))}
TUCKER: Shapes = {
    **{f"q.hada_w{i}_{x}": s for i in (1, 2) for x, s in (("a", (2, 5)), ("b", (2, 3)))},
    **{f"q.hada_t{i}": (2, 2, 2, 2) for i in (1, 2)},
}
LOKR: Shapes = {"q.lokr_w1": (2, 3), "q.lokr_w2": (5, 2)}
VERA: Shapes = {"vera_A": (2, 5), "vera_B": (6, 2), "q.vera_lambda_b": (6,), "q.vera_lambda_d": (2,)}


def saved(folder: Path, shapes: Shapes, **config: Any) -> Path:
    """A folder as PEFT writes it. The numbers of a tensor count from one; a config of None is not written."""
    tensors = {_name(key): 1.0 + np.arange(math.prod(s), dtype=np.float32).reshape(s) for key, s in shapes.items()}
    return written(folder, tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})


def _name(key: str) -> str:
    return f"base_model.{key}" if key.startswith("vera_") else f"{PREFIX}{key}"


def written(
    folder: Path,
    tensors: dict[str, Any],
    config: dict[str, Any] | str | None = None,
    metadata: dict[str, str] | None = None,
    name: str = "adapter_model.safetensors",
) -> Path:
    """A folder of these tensors under these names, and a config if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.asarray(x, order="C") for key, x in tensors.items()}, folder / name, metadata)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder
