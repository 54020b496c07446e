"""Which keys of a configuration file are known although no setting is read from them (known.toml).

The lists are parsed only where a file holds keys that nobody read, which is what `unknown_keys` reports.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["lora", "training", "trl", "axolotl", "llama_factory", "mlx", "torchtune"]

_FAMILIES = ("vllm_", "unsloth_", "_")  # settings of engines, and private fields of a dataclass


@cache
def known_keys(dialect: Dialect) -> frozenset[str]:
    """The keys that a dialect has besides the settings read from it."""
    lists: dict[str, str] = tomllib.loads(Path(__file__).with_name("known.toml").read_text(encoding="utf-8"))
    return frozenset(lists[dialect].split())


def knows_lora(key: str) -> bool:
    """Whether PEFT has a LoRA setting of this name, or had one."""
    return key in known_keys("lora")


def knows_training(key: str) -> bool:
    """Whether transformers or TRL has a training argument of this name, or had one."""
    return key in known_keys("training") or key in known_keys("trl") or key.startswith(_FAMILIES)
