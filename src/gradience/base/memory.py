"""Bytes of what is trained, and of what an optimizer keeps beside it.

Measured with PEFT 0.21 and torch 2.13 on a base in bfloat16: LoRA factors, magnitudes and token rows are cast to
float32 (`autocast_adapter_dtype`), whole modules and biases keep the base's type, and AdamW's moments and the
gradient have the type of the number they belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from gradience.base.sites import Site

__all__ = ["Memory", "memory", "stored_dtype"]

_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHORT: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_AS_STORED: Final = ("modules_to_save", "bias")  # kinds that PEFT does not cast


class Memory(NamedTuple):
    """Bytes of the trained numbers, of the optimizer's states with the gradients, and what was taken for granted."""

    trained: int
    optimizer: int | None
    assumption: str


class _State(NamedTuple):
    """What an optimizer keeps for one number: moments of the number's own type, or of a byte each."""

    moments: int
    packed: bool
    says: str


_ADAM: Final = _State(2, packed=False, says="Adam family: two moments and a gradient for each trained number")
_STATES: Final = (  # what is in the optimizer's name; the first that fits
    (("adam", "8bit"), _State(2, packed=True, says="8-bit Adam: two 1-byte moments (block constants not counted)")),
    (("adam",), _ADAM),
    (("lion", "8bit"), _State(1, packed=True, says="8-bit Lion: one 1-byte moment (block constants not counted)")),
    (("lion",), _State(1, packed=False, says="Lion: one moment and a gradient for each trained number")),
)


def stored_dtype(sites: Iterable[Site]) -> str:
    """Return the type that most of the base is stored in: float32 where it is none that trains."""
    found = Counter(_SHORT[site.dtype] for site in sites if site.dtype in _SHORT)
    return found.most_common(1)[0][0] if found else "float32"


def memory(lora: int, besides: Mapping[str, int], *, optimizer: str | None, adapter_dtype: str, stored: str) -> Memory:
    """Return the bytes on one process, the base loaded as it is stored.

    Args:
        lora: trained numbers of LoRA itself.
        besides: other trained numbers by kind.
        optimizer: its name; None for the Adam family, every library's default.
        adapter_dtype: the type of LoRA's numbers.
        stored: the type of the base's.
    """
    groups = [(lora, adapter_dtype)]
    groups += [(entries, stored if kind in _AS_STORED else adapter_dtype) for kind, entries in besides.items()]
    trained = sum(entries * _BYTES[dtype] for entries, dtype in groups)
    state = _state(optimizer)
    if state is None:
        return Memory(trained, None, "")
    kept = sum(entries * (state.moments * (1 if state.packed else _BYTES[dtype])) for entries, dtype in groups)
    return Memory(trained, kept + trained, f"{state.says}, in {adapter_dtype}; the base loaded in {stored}")


def _state(optimizer: str | None) -> _State | None:
    if optimizer is None:
        return _ADAM
    return next((state for words, state in _STATES if all(word in optimizer for word in words)), None)
