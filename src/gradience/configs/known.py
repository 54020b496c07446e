"""Which keys of a configuration file are known although no setting is read from them (known.toml).

The lists are parsed only where a file holds keys that nobody read, which is what `unknown_keys` reports.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeAlias

Dialect: TypeAlias = Literal["lora", "training", "trl", "axolotl", "llama_factory", "mlx", "torchtune"]

_FAMILIES = ("vllm_", "unsloth_", "_")  # settings of engines, and private fields of a dataclass


@cache
def _lists() -> dict[str, frozenset[str]]:
    lists: dict[str, str] = tomllib.loads(Path(__file__).with_name("known.toml").read_text(encoding="utf-8"))
    return {name: frozenset(words.split()) for name, words in lists.items()}


def known_keys(dialect: Dialect) -> frozenset[str]:
    """The keys that a dialect has besides the settings read from it."""
    return _lists()[dialect]


ALIKE: Final = 0.85  # difflib's ratio, from which a key is taken for a misspelt name
_SHORT: Final = 4  # characters: between shorter names nearly everything is alike


def nearest_known(key: str) -> str | None:
    """The name of any dialect that a key is a misspelling of, by its last part; None where it is like none.

    >>> nearest_known("learning_rat"), nearest_known("model.lora_rnak"), nearest_known("my_own_note")
    ('learning_rate', 'lora_rank', None)
    """
    last = key.rpartition(".")[2]
    if len(last) < _SHORT:
        return None
    names = sorted(frozenset().union(*_lists().values()) - {last})
    return next(iter(get_close_matches(last.lower(), names, n=1, cutoff=ALIKE)), None)


def knows_lora(key: str) -> bool:
    """Whether PEFT has a LoRA setting of this name, or had one."""
    return key in known_keys("lora")


def knows_training(key: str) -> bool:
    """Whether transformers or TRL has a training argument of this name, or had one."""
    return key in known_keys("training") or key in known_keys("trl") or key.startswith(_FAMILIES)
