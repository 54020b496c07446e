"""What `gradience convert` prints as JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.scalars import NonNegativeInt

__all__ = ["CONVERT_SCHEMA_ID", "ConvertReport", "ConvertedModule", "Target"]

CONVERT_SCHEMA_ID: Final = "gradience.convert/v1"

NonNegative: TypeAlias = Annotated[float, Meta(ge=0.0)]

Target: TypeAlias = Literal["peft", "mlx"]


class ConvertedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update before and after."""

    name: Annotated[str, Meta(description="Its path in the adapter that was read.")]
    kind: Annotated[str, Meta(description="`linear`, `embedding`, `conv`, `dora`, `adalora`, `loha`, `lokr`, ...")]
    target: Annotated[str, Meta(description="Its path in the adapter that is written.")]
    rank_before: Annotated[NonNegativeInt, Meta(description="The rank of its factors, as they are stored.")]
    rank_after: Annotated[NonNegativeInt, Meta(description="The rank of the LoRA that is written.")]
    method: Annotated[
        Literal["copied", "factors", "truncated", "dense"],
        Meta(
            description="`copied`: the factors' own numbers, turned or padded at most. `factors`: the same update "
            "from factors computed in float64. `truncated`: the best approximation of rank_after, from the factors. "
            "`dense`: the same from the update as a matrix, which took the base weight or the whole product."
        ),
    ]
    relative_error: Annotated[
        NonNegative | None,
        Meta(
            description="Frobenius norm of what is left out over that of the update, before the factors are rounded "
            "to the type they are stored in; null where the update is zero.",
        ),
    ] = None


class ConvertReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What an adapter became in another format, module by module."""

    schema: Literal["gradience.convert/v1"]
    source: Annotated[str, Meta(description="The folder or file that was read.")]
    source_format: Annotated[str, Meta(description="`peft`, `mlx`, `kohya` or `diffusers`.")]
    source_type: Annotated[str, Meta(description="PEFT's peft_type, with what makes it special; else the format.")]
    target_format: Target
    out: Annotated[str, Meta(description="The folder that was written; empty on a dry run.")] = ""
    options: Annotated[dict[str, str | int | float | bool], Meta(description="What was asked for, without paths.")] = {}
    modules: list[ConvertedModule] = []
    relative_error: Annotated[
        NonNegative | None,
        Meta(description="Of the whole: square root of the sum of squares left out over that of the updates."),
    ] = None
    params_before: Annotated[NonNegativeInt, Meta(description="Elements of all tensors that were read.")] = 0
    params_after: Annotated[NonNegativeInt, Meta(description="Elements of all tensors that are written.")] = 0
    carried: Annotated[list[str], Meta(description="Tensors that are copied bit for bit beside the modules.")] = []
    dropped: Annotated[list[str], Meta(description="Tensors that the target has no place for, left out as asked.")] = []
    notes: list[str] = []
