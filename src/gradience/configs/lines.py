"""The line of a configuration file on which a key stands, for annotations that point at it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gradience.configs.settings import LORA, OPTIMIZER, RUN, TRAINING
from gradience.io.reading import read_small

_LARGEST = 1 << 20  # bytes
_MORE = {"betas": ("adam_beta1", "adam_beta2"), "dtype": ("bf16", "fp16"), "batch_size": ("per_gpu_train_batch_size",)}


def keys_of(field: str) -> list[str]:
    """Return the keys under which a field of the snapshot may stand in a file; itself where none are known."""
    settings = (item for item in (*LORA, *OPTIMIZER, *TRAINING, *RUN) if item.field == field)
    found = [name for item in settings for name in (*item.native, *item.loose)]
    return [*found, *_MORE.get(field, ()), field]


def line_of(path: Path, keys: Iterable[str]) -> int | None:
    """Return the line, from 1, on which the first of the keys that the file has stands; None where none is found."""
    if path.suffix.lower() not in {".json", ".yaml", ".yml"}:
        return None
    try:
        text = read_small(path, most=_LARGEST, what="a config").decode()
    except (OSError, UnicodeDecodeError):
        return None
    before = "" if path.suffix.lower() == ".json" else r"^[^#\n]*?"  # a commented line of YAML does not count
    for key in keys:
        hit = re.search(rf"""{before}(["']?)(?<![\w.-]){re.escape(key)}\1\s*:""", text, re.MULTILINE)
        if hit is not None:
            return text.count("\n", 0, hit.end()) + 1
    return None
