"""What cannot be merged from factors alone, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.adapters.lora import base_changing
from gradience.errors import AdapterError
from gradience.rewrite.several import Side

__all__ = ["obstacles_between", "obstacles_of", "refuse"]

_KINDS: Final = ("linear", "embedding", "conv", "expert")
_CONVERT: Final = "'gradience convert' makes a plain LoRA of most types"
_SAME: Final = ("fan_in_fan_out", "layer_replication", "ensure_weight_tying")


def refuse(sides: Sequence[Side]) -> None:
    """Raise where the sum of the updates cannot be written as one plain LoRA.

    Raises:
        AdapterError: with the first reason.
    """
    for side in sides:
        reason = next(obstacles_of(side), None)
        if reason is not None:
            raise AdapterError(f"cannot merge {side.path}: {reason}", advice=_CONVERT)
    reason = next(obstacles_between(sides), None)
    if reason is not None:
        raise AdapterError(f"cannot merge these adapters: {reason}", advice="see 'gradience merge-check'")


def obstacles_of(side: Side) -> Iterator[str]:
    """Yield why an adapter is no plain LoRA: its update is another than s B A, or holds more than that."""
    adapter, config = side.adapter, side.adapter.config
    if adapter.format != "peft":
        yield f"it is in {adapter.format}'s format, not PEFT's"
        return
    if config.peft_type not in {"LORA", None}:
        yield f"peft_type {config.peft_type} is not LoRA"
        return
    if (init := base_changing(config.init_lora_weights)) is not None:
        yield (
            f"init_lora_weights={config.init_lora_weights!r}: {init} took a part out of the base, so its update is not "
            "s B A alone"
        )
    if any(module.magnitude is not None for module in adapter.modules):
        yield "DoRA rescales each row of W + s B A: its update is no function of the factors alone"
    for field, what in (
        ("kasa_config", "KaSA takes singular values out of the base"),
        ("use_bdlora", "BD-LoRA's factors are block-diagonal"),
        ("use_qalora", "QALoRA's A is of pooled inputs"),
        ("arrow_config", "Arrow routes by the input"),
        ("alora_invocation_tokens", "aLoRA applies after its invocation tokens only"),
        ("lora_bias", "lora_bias: a bias of its own beside B A"),
    ):
        if side.raw.get(field):
            yield f"{what} ({field})"
    if any(module.adapter is not None for module in adapter.modules):
        yield "the file holds several adapters"
    yield from _unknown(side)


def _unknown(side: Side) -> Iterator[str]:
    adapter = side.adapter
    other = next((m for m in adapter.modules if m.kind not in _KINDS and m.magnitude is None), None)
    if other is not None:
        yield f"{other.name} is of kind {other.kind}"
    if adapter.needs_base:
        yield f"{adapter.needs_base[0].name} needs the base model"
    strange = [name for name, role in adapter.roles.items() if role in {"unknown", "not_analysed"}]
    if strange:
        yield f"{len(strange)} of its tensors are not understood (first: {strange[0]})"


def obstacles_between(sides: Sequence[Side]) -> Iterator[str]:
    """Yield why plain LoRAs do not fit each other."""
    for field in _SAME:
        values = [side.raw.get(field) or None for side in sides]
        if any(value != values[0] for value in values):
            told = " and ".join(f"{side.name} has {value!r}" for side, value in zip(sides, values, strict=True))
            yield f"{field} differs: {told}"
    named = [sorted(side.raw["target_parameters"]) for side in sides if side.raw.get("target_parameters")]
    other = next((value for value in named if value != named[0]), None)
    if other is not None:
        yield f"target_parameters differs ({named[0]} and {other}), and with it which tensors are of which parameter"
