"""PEFT's tensor names taken apart: module path, field, adapter name."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["PREFIX", "Key", "module_path", "parse_key", "pattern_name"]

PREFIX: Final = "base_model.model."

LORA_FIELDS: Final = (
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_diag",
)
_FIELDS: Final = frozenset(
    [
        *LORA_FIELDS,
        *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        "vera_lambda_b",
        "vera_lambda_d",
        "hira_A",
        "hira_B",
        "hira_embedding_A",
        "hira_embedding_B",
        "miss_block",
    ]
)
# torch.compile and FSDP leave their own wrappers in the names of a raw state dict.
_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Key(NamedTuple):
    """A tensor that belongs to a module's update. `leaf` is `weight`, `bias` or empty."""

    module: str
    field: str
    adapter: str
    leaf: str


def parse_key(key: str) -> Key | None:
    """Return what a tensor's name says, or None where it names no part of an update.

    >>> parse_key("base_model.model.h.0.attn.lora_A.default.weight")
    Key(module='h.0.attn', field='lora_A', adapter='default', leaf='weight')
    """
    parts = key.removeprefix(PREFIX).split(".")
    at = next((i for i in range(len(parts) - 1, 0, -1) if parts[i] in _FIELDS), 0)
    if at == 0:
        return None
    rest = parts[at + 1 :]
    leaf = rest.pop() if rest and rest[-1] in {"weight", "bias"} else ""
    path = parts[:at]
    if not _WRAPPERS.isdisjoint(path):
        path = [part for part in path if part not in _WRAPPERS]
    return Key(".".join(path), parts[at], ".".join(rest), leaf)


def module_path(module: str) -> str:
    """Return the module's path in the base model: PEFT's nested `base_layer` left out."""
    if "base_layer" not in module:
        return module
    return ".".join(part for part in module.split(".") if part != "base_layer")


def pattern_name(module: str) -> str:
    """Return the path that PEFT matches patterns against.

    MultiheadAttention wraps its own out_proj, with the rank and alpha of the whole.
    """
    return module.removesuffix(".base_layer.out_proj")
