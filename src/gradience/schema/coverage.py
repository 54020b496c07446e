"""What a configuration's targets reach in a base model, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gradience.schema.scalars import NonNegativeInt

__all__ = ["Coverage", "Refused"]


class Refused(msgspec.Struct, kw_only=True, frozen=True):
    """A module that the targets name and PEFT will not adapt: get_peft_model raises."""

    name: str
    reason: str


class Coverage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Counted from the base's config.json and safetensors headers by PEFT's rules of matching; nothing is loaded."""

    base: Annotated[str, Meta(description="Name of the folder or hub id.")]
    model_type: str
    layout: Annotated[str, Meta(description="Whose module tree was assumed, such as `transformers 5`.")]
    modules: Annotated[NonNegativeInt, Meta(description="Modules and parameters that get an adapter.")]
    by_type: Annotated[dict[str, int], Meta(description="The same by type: attn, mlp, embedding, ...")] = {}
    layers: Annotated[NonNegativeInt, Meta(description="Layers with at least one adapted module.")]
    layers_total: Annotated[NonNegativeInt, Meta(description="Layers of the base.")]
    lora_params: (
        Annotated[NonNegativeInt, Meta(description="Entries of all A and B, biases and magnitudes.")] | None
    ) = None
    trainable_params: (
        Annotated[NonNegativeInt, Meta(description="The same, with whole modules, biases and token rows.")] | None
    ) = None
    trained_besides: Annotated[
        dict[str, int], Meta(description="Trainable entries that are no LoRA factor, by kind.")
    ] = {}
    base_params: Annotated[NonNegativeInt, Meta(description="Entries of the base, as its files declare them.")] = 0
    adapter_dtype: Annotated[str, Meta(description="What LoRA's numbers are trained in.")] = "float32"
    adapter_bytes: Annotated[NonNegativeInt, Meta(description="All that is trained, while training.")] | None = None
    optimizer_bytes: Annotated[NonNegativeInt, Meta(description="States and gradients, on one process.")] | None = None
    optimizer_assumption: Annotated[str, Meta(description="What optimizer_bytes takes for granted.")] = ""
    unmatched_targets: Annotated[list[str], Meta(description="Names in target_modules that hit nothing.")] = []
    unmatched_excludes: Annotated[list[str], Meta(description="Names in exclude_modules that hit nothing.")] = []
    refused: list[Refused] = []
    vocabulary: Annotated[NonNegativeInt, Meta(description="Rows of the input embedding.")] | None = None
    added_tokens: Annotated[
        list[str], Meta(description="Tokens of the run's tokenizer that the base's does not have.")
    ] = []
    embedding_trained: Annotated[bool, Meta(description="Whether rows of the input embedding are trained.")] = False
    notes: Annotated[list[str], Meta(description="What was assumed, and what could not be counted.")] = []
