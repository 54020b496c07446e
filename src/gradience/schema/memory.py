"""The memory that one training step needs, as `check` foretells it from configurations alone, and a run's time."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gradience.schema import NonNegativeInt, Real, about

PAIRED: Final = frozenset({"dpo", "orpo", "reward"})
"""Objectives an example of which is two sequences."""


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """One training step as far as its memory depends on it."""

    base: Annotated[str, about("Folder of the config.json.")]
    adapter: Annotated[dict[str, object], about("Fields of the adapter's config; empty for a full fine-tune.")] = {}
    task: Annotated[str, about("PEFT's task_type; empty if not stated.")] = ""
    batch: Annotated[NonNegativeInt, about("Examples on the device at once; a pair is two sequences.")] = 1
    length: Annotated[NonNegativeInt, about("Tokens of each.")] = 1
    padded: Annotated[bool, about("Whether rows differ in length, so that attention has a mask.")] = True
    accumulates: Annotated[bool, about("Whether gradients of an earlier micro-batch are there.")] = False
    checkpointing: Annotated[bool, about("Whether activations are recomputed.")] = False
    autocast: Annotated[str, about("dtype of autocast; empty without.")] = ""
    dtype: Annotated[str, about("dtype of the weights; empty for that of config.json.")] = ""
    attention: Annotated[str, about("transformers' name of the kernel; empty for its own choice.")] = ""
    bits: Annotated[NonNegativeInt, about("Bits of the base's linear weights; 0 if they are not coded.")] = 0
    optimizer: Annotated[str, about("Name as in TrainingArguments.")] = "adamw_torch"
    fused_loss: Annotated[bool, about("Whether the loss is computed in chunks, without all logits.")] = False
    adapter_float32: Annotated[bool, about("PEFT's autocast_adapter_dtype.")] = True
    device: Annotated[str, about("`cuda` or `cpu`, whose kernels are meant.")] = "cuda"
    objective: Annotated[str, about("dpo, kto, orpo, reward or rl; empty for a supervised loss.")] = ""
    reference: Annotated[str, about("`adapter` turned off, or another `model`; empty without a reference.")] = ""
    completion: Annotated[NonNegativeInt, about("Generated tokens of a row.")] = 0
    generated: Annotated[NonNegativeInt, about("Rows that the model itself generates at once.")] = 0
    dropout: Annotated[bool, about("Whether modules of dropout are on.")] = True


class MemoryParts(msgspec.Struct, kw_only=True, frozen=True):
    """What holds the memory at the peak, bytes."""

    weights: NonNegativeInt = 0
    adapter: NonNegativeInt = 0
    optimizer: NonNegativeInt = 0
    activations: Annotated[NonNegativeInt, about("Kept by the forward pass for the backward pass.")] = 0
    loss: Annotated[NonNegativeInt, about("Logits, and what is computed of them.")] = 0
    backward: Annotated[NonNegativeInt, about("Gradients, and what lives for a moment between them.")] = 0


class MemoryChange(msgspec.Struct, kw_only=True, frozen=True):
    """A change of the settings, and the peak with it."""

    change: str
    peak_bytes: NonNegativeInt


class Reached(msgspec.Struct, kw_only=True, frozen=True):
    """What the adapter's targets amount to in the model, counted on the meta device."""

    modules: Annotated[NonNegativeInt, about("Modules that get an adapter.")]
    trainable_params: NonNegativeInt
    base_params: Annotated[NonNegativeInt, about("Parameters that are not trained.")]


class Memory(msgspec.Struct, kw_only=True, frozen=True):
    """The peak of one training step on one device; null where it is not known."""

    peak_bytes: Annotated[NonNegativeInt, about("Allocated at the longest batch.")] | None = None
    reserved_bytes: (
        Annotated[list[int], about("What the allocator may have reserved by then: the least, the most.")] | None
    ) = None
    parts: Annotated[MemoryParts, about("Of the peak; without a model, those that need none.")] | None = None
    reached: Annotated[Reached, about("Null where the model could not be made.")] | None = None
    assumes: Annotated[list[str], about("What the files do not say.")] = []
    method: Annotated[str, about("How the peak was found.")] = ""
    reason: Annotated[str, about("Why the peak is not known; else empty.")] = ""
    limit_bytes: Annotated[NonNegativeInt, about("Memory of the card, as --memory states it.")] | None = None
    changes: Annotated[list[MemoryChange], about("What would fit, the cheapest first.")] = []


class Time(msgspec.Struct, kw_only=True, frozen=True):
    """How long training takes by a log of the same base, or by a given time of a step; null where they do not tell."""

    seconds_per_step: Annotated[Real, about("Without evaluations and saves.")] | None = None
    steps: Annotated[NonNegativeInt, about("Planned optimizer steps.")] | None = None
    seconds: Annotated[Real, about("Of all planned steps.")] | None = None
    by: Annotated[str, about("Name of the log; empty if the time of a step was given.")] = ""
    logged_seconds_per_step: Real | None = None
    reason: Annotated[str, about("Why the time is not known; else empty.")] = ""
