"""An adapter cut to lower ranks: what was asked, what each module lost, and how large the result is."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema.scalars import Fraction, NonNegativeInt

__all__ = ["RESIZE_SCHEMA_ID", "Criterion", "ResizeReport", "ResizedModule"]

RESIZE_SCHEMA_ID: Final = "gradience.resize/v1"

Criterion: TypeAlias = Literal[
    "rank", "energy", "rel_error", "max_mb", "max_params", "like_suggested", "sv_ratio", "sv_fro", "sv_cumulative"
]


class ResizedModule(msgspec.Struct, kw_only=True, frozen=True):
    """One module's update before and after. Experts of one parameter share their rank."""

    name: Annotated[str, Meta(description="Module path without `base_model.model.`.")]
    kind: Annotated[str, Meta(description="How the update is stored: `linear`, `embedding`, `conv`, `dora`, ...")]
    rank_before: NonNegativeInt
    rank_after: Annotated[NonNegativeInt, Meta(description="The rank of the factors on disk, never 0.")]
    relative_error: Annotated[
        Fraction | None,
        Meta(
            description="Frobenius norm of what was left out over that of the update, before the factors are rounded "
            "to their dtype; null where the update is zero. For DoRA: of the whole change to the weight, magnitudes "
            "refitted, and it may exceed that of s B A."
        ),
    ] = None
    params_before: NonNegativeInt
    params_after: NonNegativeInt


class ResizeReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What `gradience resize` did or, for a dry run, would do."""

    schema: Literal["gradience.resize/v1"] = RESIZE_SCHEMA_ID
    source: Annotated[str, Meta(description="The adapter, as given.")]
    out: Annotated[str, Meta(description="The folder or file written; null for a dry run.")] | None = None
    criterion: Criterion
    value: Annotated[float, Meta(description="The criterion's number; 0 where it has none.")]
    dtype: Annotated[str, Meta(description="Of the new factors, by safetensors' name; null: as they were.")] | None = (
        None
    )
    r: Annotated[
        NonNegativeInt,
        Meta(description="`r` of the new config, exceptions in `rank_pattern`; else the commonest rank."),
    ]
    lora_alpha: int | float
    use_rslora: bool
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, int | float] = {}
    relative_error: Annotated[
        Fraction | None,
        Meta(description="Of the whole: over all modules' squared Frobenius norms; null if all are zero."),
    ] = None
    params_before: Annotated[NonNegativeInt, Meta(description="Parameters of the factors.")]
    params_after: NonNegativeInt
    bytes_before: Annotated[NonNegativeInt, Meta(description="Of the weights file.")]
    bytes_after: NonNegativeInt
    modules: list[ResizedModule] = []
    notes: list[str] = []
