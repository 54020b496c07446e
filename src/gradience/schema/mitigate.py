"""An adapter whose intruder dimensions are scaled down: how many there were, and how many are left."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gradience.schema.base import NotCompared
from gradience.schema.scalars import Fraction, NonNegativeInt

__all__ = ["MITIGATE_SCHEMA_ID", "MitigateReport", "MitigatedModule"]

MITIGATE_SCHEMA_ID: Final = "gradience.mitigate/v1"


class MitigatedModule(msgspec.Struct, kw_only=True, frozen=True):
    """One module: intruders among the k leading left singular vectors of W + dW, before and after."""

    name: Annotated[str, Meta(description="Module path without `base_model.model.`.")]
    before: Annotated[NonNegativeInt, Meta(description="Intruders at eps; an undecided vector counts.")]
    scaled: Annotated[NonNegativeInt, Meta(description="Vectors shown to be intruders: these were scaled.")]
    after: Annotated[NonNegativeInt, Meta(description="Intruders of the adapter as written, counted anew.")]
    undecided: Annotated[
        NonNegativeInt, Meta(description="Vectors that the bounds leave open; 0 where exact. These were not scaled.")
    ]
    relative_change: Annotated[Fraction, Meta(description="Frobenius norm of what was taken out over that of dW.")]
    method: Literal["exact", "lanczos"]
    converged: bool


class MitigateReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What `gradience mitigate` did or, for a dry run, would do. dW' = (I - (1 - scale) U U^T) dW."""

    schema: Literal["gradience.mitigate/v1"] = MITIGATE_SCHEMA_ID
    source: Annotated[str, Meta(description="The adapter, as given.")]
    base: Annotated[str, Meta(description="The base model, as given.")]
    out: Annotated[str, Meta(description="The folder written; null for a dry run.")] | None = None
    scale: Annotated[Fraction, Meta(description="What is left of dW along each intruder direction.")]
    k: NonNegativeInt
    eps: Fraction
    before: Annotated[NonNegativeInt, Meta(description="Intruders over all modules.")]
    after: NonNegativeInt
    modules: list[MitigatedModule] = []
    not_looked_at: Annotated[list[NotCompared], Meta(description="Copied bit for bit, with the reason.")] = []
